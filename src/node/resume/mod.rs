//! How a client that comes back goes on where it was: what the rules ask for is read, and what they say is done.

mod missed;
mod waiting;

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::FutureExt;
use futures::future::Either;
use tokio::time::Instant;

use self::missed::{CUT, Client, MOST, Resume, missed_in, told, told_meanwhile};
use self::waiting::Waiter;
pub(crate) use self::waiting::{Waiting, keep_asking};
use super::Node;
use crate::bus::past::Past;
use crate::local::registry::Member;
use crate::local::socket::Sender;
use crate::local::socket::resuming::{Found, Telling};
use crate::model::history::mark::{Clock, Marks, Number};
use crate::model::history::position::Position;
use crate::model::history::{Missed, Resumed};
use crate::model::topic::Topic;
use crate::ws::frame::Frame;

impl Node {
    /// Whether sockets may go on where they were.
    pub(crate) fn resumes(&self) -> bool {
        !self.config.histories.is_off()
    }

    /// How a socket goes on that holds what comes; and one that need not.
    pub(crate) async fn resumed(
        self: &Arc<Self>,
        socket: &Sender,
        holding: Option<Telling>,
        rooms: &[Topic],
        brought: Option<Position>,
    ) -> Resumed {
        match (holding, brought) {
            (Some(_), brought) => self.resume(socket, rooms, brought).await,
            (None, Some(_)) => self.record(Resumed::Missed(Missed::Forgotten)),
            (None, None) => Resumed::New,
        }
    }

    /// Reads what a client missed that has come with a position, and releases what waits in its socket. Of a newcomer only from
    /// where it goes on. While the bus is down nobody can tell: then everything that is kept waits.
    async fn resume(
        self: &Arc<Self>,
        socket: &Sender,
        rooms: &[Topic],
        brought: Option<Position>,
    ) -> Resumed {
        let came_back = brought.is_some();
        match self.find(socket, rooms, brought.as_ref()).await {
            Ok(found) => self.release(socket, found, came_back),
            Err(reason) => {
                tracing::debug!(socket = %socket.id(), %reason, "nobody knows yet what its client missed");
                let socket = socket.clone();
                self.waiting.add(Waiter { socket, brought });
                told_meanwhile(came_back)
            }
        }
    }

    /// The same for one that waits, in the rooms in which it is by now; unless still nobody knows.
    async fn resume_now(&self, waiter: &Waiter) -> Result<(), Arc<str>> {
        let Waiter { socket, brought } = waiter;
        let rooms = self.local.rooms(socket);
        let rooms = rooms.iter().map(|room| Topic::room(room.as_str()));
        let rooms: Vec<Topic> = rooms.filter_map(Result::ok).collect();
        let found = self.find(socket, &rooms, brought.as_ref()).await?;
        self.release(socket, found, brought.is_some());
        Ok(())
    }

    fn release(&self, socket: &Sender, found: Found, came_back: bool) -> Resumed {
        let resumed = told(came_back, &found);
        let now = Instant::now();
        socket.release(|resuming| resuming.release(found, now));
        self.record(resumed)
    }

    fn record(&self, resumed: Resumed) -> Resumed {
        let counters = &self.ground.counters;
        let counter = match resumed {
            Resumed::New | Resumed::Later => return resumed,
            Resumed::Complete { .. } => &counters.resumed,
            Resumed::Missed(_) => &counters.resumed_missed,
        };
        counter.fetch_add(1, Relaxed);
        resumed
    }

    async fn find(
        &self,
        socket: &Sender,
        rooms: &[Topic],
        brought: Option<&Position>,
    ) -> Result<Found, Arc<str>> {
        let keyring = &self.uplink.keyring;
        let brought = match brought {
            Some(position) => Some(keyring.read(position).await?),
            None => None,
        };
        let key = keyring.key().await?;
        let user = socket.user();
        let own = Topic::user(user).map_err(|error| Arc::from(error.to_string()))?;
        let resume = Resume::new(key, own, rooms, brought, &self.config.histories);
        let (topics, since, limits) = resume.reads();
        let past = self.ground.bus.read(topics, since, limits).await?;
        Ok(resume.find(socket.id(), user.as_str(), &past))
    }

    /// Puts a socket into a room, and gives it what it missed there if it was in it.
    pub(crate) async fn join(self: &Arc<Self>, socket: &Sender, room: &Topic) -> Option<()> {
        // A cut of before it is in the room: whatever it missed from then on is behind that.
        self.begin(socket, room).await;
        self.begin_join(socket, room)?.await;
        Some(())
    }

    /// The same: it is in the room at once, and resolves when what is sent there comes here. What it missed is read though nobody
    /// waits for it: until then what comes is held.
    pub(crate) fn begin_join(
        self: &Arc<Self>,
        socket: &Sender,
        room: &Topic,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let owed = socket.resuming(|resuming| resuming.owes(room.as_str()));
        let joined = self.local.begin_join(socket, room)?;
        let (node, socket, room) = (self.clone(), socket.clone(), room.clone());
        let Some(since) = owed else {
            let heard = async move {
                node.local.wait_confirmed(joined.confirmation).await;
                node.begin(&socket, &room).await;
            };
            return Some(Either::Left(heard));
        };
        let reading = self.ground.home.spawn(async move {
            node.local.wait_confirmed(joined.confirmation).await;
            let missed = node.missed_in(&socket, &room, &since).await;
            socket.release(|resuming| resuming.release_room(missed));
        });
        Some(Either::Right(reading.map(drop)))
    }

    /// What came to a room since.
    async fn missed_in(
        &self,
        socket: &Sender,
        room: &Topic,
        since: &Marks,
    ) -> Result<Vec<(Clock, Number, Frame)>, Missed> {
        let past = self.past(room, Some(since)).await;
        let client = Client {
            socket: socket.id(),
            formerly: socket.resuming(|resuming| resuming.formerly()),
            user: socket.user().as_str(),
        };
        missed_in(client, &past.map_err(|_| Missed::Forgotten)?, since)
    }

    async fn past(&self, room: &Topic, since: Option<&Marks>) -> Result<Past, Arc<str>> {
        let limits = since.map_or(CUT, |_| MOST);
        let rooms = slice::from_ref(room);
        self.ground.bus.read(rooms, since, limits).await
    }

    /// Has a socket go on from now in a room of whose clock it has heard nothing.
    async fn begin(&self, socket: &Sender, room: &Topic) {
        let clock = self.ground.bus.clock(room);
        let lacks = socket.resuming(|resuming| resuming.lacks(clock).then_some(()));
        let is_kept = self.config.histories.of(room.kind()).is_some();
        if lacks.is_none() || !is_kept {
            return;
        }
        match self.past(room, None).await {
            Ok(past) => {
                let cuts = past.cuts();
                socket.release(|resuming| {
                    resuming.begin(&cuts);
                    Vec::new()
                });
            }
            Err(reason) => {
                tracing::debug!(socket = %socket.id(), %reason, "its client cannot go on in a room: nobody knows from where");
            }
        }
    }
}
