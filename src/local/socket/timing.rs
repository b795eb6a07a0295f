//! What time demands of a socket: in this order, since who has ended owes only its end, who is no longer allowed here
//! is not asked whether it is alive, and who takes nothing cannot answer a ping.

use std::time::Duration;

use tokio::time::Instant;

use super::core::{Core, Writer};
use super::outcome::Swept;
use crate::local::expiry::Times;
use crate::local::heartbeat::{Beat, HeartbeatTimes, discounted};
use crate::model::close::reason;
use crate::ws::SharedWriter;
use crate::ws::frame::Frame;

impl<W: SharedWriter> Core<W> {
    /// Does what time demands. Pings of sockets that opened together are spread by their numbers.
    pub(super) fn sweep(
        &mut self,
        clock: Times,
        slept: Duration,
        times: &HeartbeatTimes,
        number: u64,
    ) -> Swept {
        let now = clock.now;
        if !slept.is_zero() {
            self.discount(slept, now);
        }
        if !self.life.is_open() {
            if self.life.expire(now) {
                self.noted.wake_all();
            }
            return Swept::Fine;
        }
        if self.expiry.is_some_and(|expiry| expiry.is_over(clock)) {
            self.close(reason::EXPIRED, || now);
            return Swept::Fine;
        }
        self.release(|resuming| resuming.forget_rooms(now).into_iter().collect());
        if let Writer::Reader { has_client: false } = self.writer {
            // There is no client, and a reader may take its time within the limits of its outbox.
            return Swept::Fine;
        }
        let stalled = self.stalled.map(Instant::from);
        if stalled.is_some_and(|since| since + times.write_timeout <= now) {
            let lost = self.queue.discard();
            self.cut(reason::STALLED);
            return Swept::Stalled(lost);
        }
        match self.heartbeat.poll(now, times, number) {
            Beat::Wait => {}
            Beat::Ping => {
                self.queue.push(Frame::ping());
                self.write_queue(|| now);
            }
            Beat::Unheard => self.trust_acknowledgements(times.patience()),
            Beat::Dead => self.cut(reason::SILENT),
        }
        Swept::Fine
    }

    /// The process slept: nobody could have done anything in that time. An identity expires all the same.
    fn discount(&mut self, slept: Duration, now: Instant) {
        self.heartbeat.discount(slept, now);
        let stalled = self.stalled.map(Instant::from);
        self.stalled = stalled.map(|since| discounted(since, slept, now).into());
        self.life.discount(slept, now);
    }

    /// No pong can be seen, but the kernel sees that nothing is acknowledged: it gives up after so long,
    /// and not after 15 minutes, as Linux does by itself.
    fn trust_acknowledgements(&self, patience: Duration) {
        if let Writer::Shared(stream) = &self.writer {
            stream.give_up_after(patience);
        }
    }
}
