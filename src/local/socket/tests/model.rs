//! Random commands of all four ends, over a kernel that takes what it likes, against a model that keeps the books.
//!
//! The model knows what was said, what was taken, and what the clock demands. It knows nothing of queues, flags and turns,
//! but for one thing: whatever is queued, somebody must be about to write it.

use std::cell::RefCell;
use std::io::IoSlice;
use std::rc::Rc;

use super::*;
use crate::local::expiry::Expiry;
use crate::local::heartbeat::{Beat, Heartbeat, discounted};
use crate::local::socket::queue::FrameQueue;
use crate::local::socket::writing::Writing;
use crate::ws::SharedWriter;

/// Takes as many bytes as there is room for.
struct Kernel {
    room: usize,
    taken: Vec<u8>,
    /// Since when it has taken nothing of what it was offered.
    refuses: Option<Instant>,
    gives_up_after: Option<Duration>,
    now: Instant,
}

impl Kernel {
    fn take(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room);
        self.room -= count;
        self.taken.extend(&bytes[..count]);
        if count > 0 {
            self.refuses = None;
        }
        if count < bytes.len() {
            self.refuses.get_or_insert(self.now);
        }
        match count {
            0 => Err(ErrorKind::WouldBlock.into()),
            _ => Ok(count),
        }
    }
}

#[derive(Clone)]
struct Stream(Rc<RefCell<Kernel>>);

impl SharedWriter for Stream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().take(bytes)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        self.0.borrow_mut().take(&bytes)
    }

    fn give_up_after(&self, patience: Duration) {
        self.0.borrow_mut().gives_up_after = Some(patience);
    }
}

/// What one of the ends does, or the kernel.
#[derive(Clone, Debug)]
enum Act {
    Say(Say),
    Push(usize),
    Room(usize),
    /// The task has its turn; meanwhile others speak.
    Drive(Vec<Say>),
    Seen,
    Pause(bool),
    Pong(u8),
    /// The client says Close.
    Answer,
    Abandon,
    Finish,
    /// So many seconds pass, of which the process slept some.
    Sweep(u64, u64),
    Cut,
}

/// What a sender does.
#[derive(Clone, Debug)]
enum Say {
    Send(usize, Manner),
    Collect(usize, Manner),
    Flush,
    Close,
    CollectClose,
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        4 => Just(Manner::InTurn),
        1 => Just(Manner::Volatile),
        1 => Just(Manner::Latest("a".into())),
        1 => Just(Manner::Latest("b".into())),
    ]
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        9 => (0usize..60, manner()).prop_map(|(size, manner)| Say::Send(size, manner)),
        9 => (0usize..60, manner()).prop_map(|(size, manner)| Say::Collect(size, manner)),
        1 => (200usize..300, manner()).prop_map(|(size, manner)| Say::Send(size, manner)),
        9 => Just(Say::Flush),
        1 => Just(Say::Close),
        1 => Just(Say::CollectClose),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        60 => say().prop_map(Act::Say),
        16 => (0usize..60).prop_map(Act::Push),
        16 => (0usize..120).prop_map(Act::Room),
        30 => vec(say(), 0..6).prop_map(Act::Drive),
        6 => Just(Act::Seen),
        4 => any::<bool>().prop_map(Act::Pause),
        6 => any::<u8>().prop_map(Act::Pong),
        16 => (0u64..12, 0u64..20).prop_map(|(secs, slept)| Act::Sweep(secs, slept.saturating_sub(12))),
        1 => Just(Act::Answer),
        1 => Just(Act::Abandon),
        1 => Just(Act::Finish),
        1 => Just(Act::Cut),
    ]
}

const TIMES: HeartbeatTimes = HeartbeatTimes {
    ping_interval: Duration::from_secs(25),
    pong_timeout: Duration::from_secs(20),
    write_timeout: Duration::from_secs(10),
};
const NUMBER: u64 = 7;

struct World {
    core: Core<Stream>,
    kernel: Rc<RefCell<Kernel>>,
    limits: OutboxLimits,
    is_shared: bool,
    now: Instant,
    expires: Instant,
    heartbeat: Heartbeat,
    /// Messages that were taken, whole.
    said: Vec<(Frame, Manner)>,
    /// How often one of those was said anew.
    renewed: usize,
    /// Pings and pongs beside them.
    controls: usize,
    lost: usize,
    /// Why it ended first, and by when the client must have answered.
    ended: Option<(Close, Instant)>,
    /// How much was written when it was cut.
    cut: Option<usize>,
    /// What was discarded was counted for nobody, since the client ended it.
    answered: bool,
    /// The task has to be polled, …
    driver: Arc<Flag>,
    /// … or waits for the kernel.
    blocked: bool,
    handler: Arc<Flag>,
    handler_waits: bool,
    flush_due: bool,
}

impl World {
    fn new(is_shared: bool, drop_oldest: bool, expires: u64) -> Self {
        let now = Instant::now();
        let kernel = Kernel {
            room: 0,
            taken: Vec::new(),
            refuses: None,
            gives_up_after: None,
            now,
        };
        let kernel = Rc::new(RefCell::new(kernel));
        let seconds = Duration::from_secs(expires);
        let mut core = Core::new(
            Some(Expiry::at(UNIX_EPOCH + seconds, at(now))),
            Agreed::NOTHING,
            now,
        );
        core.open(is_shared.then(|| Stream(kernel.clone())), now);
        Self {
            core,
            kernel,
            limits: limits(6, 150, policy(drop_oldest)),
            is_shared,
            now,
            expires: now + seconds,
            heartbeat: Heartbeat::new(now),
            said: Vec::new(),
            renewed: 0,
            controls: 0,
            lost: 0,
            ended: None,
            cut: None,
            answered: false,
            driver: Arc::new(Flag(Mutex::new(true))),
            blocked: false,
            handler: Arc::default(),
            handler_waits: false,
            flush_due: false,
        }
    }

    fn act(&mut self, act: Act) {
        let now = self.now;
        match act {
            Act::Say(say) => self.say(say),
            Act::Push(size) => self.push(size),
            Act::Room(room) => self.kernel.borrow_mut().room = room,
            Act::Drive(meanwhile) => self.drive(meanwhile),
            Act::Seen => {
                self.core.seen(now);
                self.heartbeat.seen(now);
            }
            Act::Pause(paused) => {
                self.core.pause(paused, now);
                self.heartbeat.pause(paused, now);
            }
            Act::Pong(payload) => {
                let before = self.core.queue.len();
                self.core.pong(Frame::pong(&[payload]));
                self.controls += self.core.queue.len() - before;
                // It is the task's turn.
                *self.driver.0.lock() = true;
            }
            Act::Answer => {
                self.core.answer(reason::NO_STATUS, now);
                self.answered |= self.ended.is_none();
                self.ends(reason::NO_STATUS);
                *self.driver.0.lock() = true;
            }
            Act::Abandon => {
                self.core.abandon(reason::VANISHED);
                self.is_cut(reason::VANISHED);
            }
            Act::Finish => {
                drop(self.core.finish());
                self.is_cut(reason::DROPPED);
            }
            Act::Sweep(seconds, slept) => self.sweep(seconds, slept.min(seconds)),
            Act::Cut => {
                self.core.cut(reason::STOPPED);
                self.is_cut(reason::STOPPED);
            }
        }
        self.check();
    }

    // The ends -------------------------------------------------------------------------------------

    fn say(&mut self, say: Say) {
        let now = || self.now;
        let (is_open, flush_was_due) = (self.ended.is_none(), self.core.due.flush);
        let number = self.said.len() + self.renewed;
        let frame = |size| Frame::text(&format!("{number}:{}", "x".repeat(size)));
        let (waits, waited) = (!self.core.queue.is_empty(), self.core.queue.left());
        let (frame, manner, pushed) = match say {
            Say::Send(size, manner) => {
                let frame = frame(size);
                let pushed = self.core.send(&frame, &manner, &self.limits, now);
                (frame, manner, pushed)
            }
            Say::Collect(size, manner) => {
                let frame = frame(size);
                let collected = self.core.collect(&frame, &manner, &self.limits, now);
                self.flush_due |= collected.wants_flush;
                (frame, manner, collected.pushed)
            }
            Say::Flush => {
                self.core.flush(now);
                self.flush_due = false;
                return;
            }
            Say::Close => {
                assert_eq!(
                    self.core.close(reason::DONE, now),
                    is_open,
                    "the first wins"
                );
                return self.ends(reason::DONE);
            }
            Say::CollectClose => {
                self.flush_due |= self.core.collect_close(&reason::REPLACED, now);
                return self.ends(reason::REPLACED);
            }
        };
        assert_eq!(pushed == Pushed::Closed, !is_open);
        match pushed {
            Pushed::Dropped(count) => {
                assert_ne!(manner, Manner::Volatile, "it costs nobody");
                self.lost += count;
            }
            Pushed::Superseded => {
                let mut said = self.said.iter_mut().rev();
                let old = said.find(|(_, before)| *before == manner);
                old.expect("one of its key").0 = frame.clone();
                self.renewed += 1;
            }
            Pushed::LeftOut => assert!(waits && manner == Manner::Volatile),
            // The one that overflowed was never taken.
            Pushed::Overflowed(count) => {
                assert_ne!(manner, Manner::Volatile, "it closes nobody");
                self.lost += count - 1;
                self.ends(reason::SLOW);
            }
            Pushed::Taken | Pushed::Known | Pushed::Closed => {}
        }
        if pushed.is_taken() {
            if pushed == Pushed::Superseded {
                let most = self.limits.bytes.max(waited);
                assert!(self.core.queue.left() <= most, "it makes room for itself");
                return;
            }
            self.said.push((frame, manner));
            self.check_bounds(flush_was_due);
        }
    }

    fn push(&mut self, size: usize) {
        let room = self.core.room(&self.limits);
        self.handler_waits = room.is_pending();
        match room {
            Poll::Pending => {
                *self.handler.0.lock() = false;
                self.core.wakers.handler = Some(self.handler.clone().into());
            }
            Poll::Ready(Err(close)) => {
                assert_eq!(
                    Some(close),
                    self.ended.as_ref().map(|(close, _)| close.clone())
                );
            }
            Poll::Ready(Ok(())) => {
                let number = self.said.len() + self.renewed;
                let frame = Frame::text(&format!("{number}:{}", "x".repeat(size)));
                assert_eq!(self.core.push(frame.clone()), Ok(()));
                self.said.push((frame, Manner::InTurn));
            }
        }
    }

    /// As the task does it: when it was woken, or when the kernel takes more.
    fn drive(&mut self, meanwhile: Vec<Say>) {
        let is_writable = self.blocked && self.kernel.borrow().room > 0;
        let is_woken = std::mem::take(&mut *self.driver.0.lock());
        if !is_writable && !is_woken {
            return;
        }
        self.core.wakers.driver = Some(self.driver.clone().into());
        if self.core.stage() == LifeStage::Cut {
            return self.act(Act::Finish);
        }
        let (now, mut progress) = (self.now, false);
        self.blocked = false;
        match self.core.begin_writing(&mut progress, || now) {
            Writing::Over(written) => {
                assert!(written.is_ok());
                if self.answered {
                    drop(self.core.shut());
                }
            }
            Writing::Blocked => self.blocked = true,
            Writing::ByTask(queue) => self.write_by_task(queue, meanwhile),
        }
    }

    fn write_by_task(&mut self, mut queue: FrameQueue, meanwhile: Vec<Say>) {
        let (now, before) = (self.now, queue.left());
        let written =
            queue.write_through(&mut [0; 64], |bytes| self.kernel.borrow_mut().take(bytes));
        let (progress, is_over) = (queue.left() < before, written.is_ok());
        meanwhile.into_iter().for_each(|say| self.say(say));
        let result = self.core.end_writing(queue, written, progress, || now);
        match result {
            Poll::Ready(written) => assert!(written.is_ok()),
            Poll::Pending if is_over => *self.driver.0.lock() = true,
            Poll::Pending => self.blocked = true,
        }
    }

    fn sweep(&mut self, seconds: u64, slept: u64) {
        self.now += Duration::from_secs(seconds);
        let (now, slept) = (self.now, Duration::from_secs(slept));
        self.heartbeat.discount(slept, now);
        if let Some((_, by)) = &mut self.ended {
            *by = discounted(*by, slept, now + CLOSING);
        }
        let refuses = {
            let mut kernel = self.kernel.borrow_mut();
            kernel.now = now;
            kernel.refuses = kernel.refuses.map(|since| discounted(since, slept, now));
            kernel.refuses
        };
        let swept = self.core.sweep(at(now), slept, &TIMES, NUMBER);
        let is_stalled = refuses.is_some_and(|since| since + TIMES.write_timeout <= now);
        let expected = match &self.ended {
            Some((_, by)) if *by <= now => Some(reason::DROPPED),
            Some(_) => None,
            None if self.expires <= now => return self.ends(reason::EXPIRED),
            None if is_stalled => {
                assert!(matches!(swept, Swept::Stalled(_)));
                return self.is_cut(reason::STALLED);
            }
            None => match self.heartbeat.poll(now, &TIMES, NUMBER) {
                Beat::Ping => {
                    self.controls += 1;
                    None
                }
                Beat::Unheard => {
                    let gives_up_after = self.kernel.borrow().gives_up_after;
                    assert_eq!(gives_up_after.is_some(), self.is_shared);
                    None
                }
                Beat::Dead => Some(reason::SILENT),
                Beat::Wait => None,
            },
        };
        assert_eq!(swept, Swept::Fine);
        if let Some(close) = expected {
            self.is_cut(close);
        }
    }

    // The books ------------------------------------------------------------------------------------

    /// It has its time to say so, unless something ended it before.
    fn ends(&mut self, close: Close) {
        let by = self.now + CLOSING;
        self.ended.get_or_insert((close, by));
    }

    fn is_cut(&mut self, close: Close) {
        self.ends(close);
        let written = self.kernel.borrow().taken.len();
        self.cut.get_or_insert(written);
    }

    /// What was just queued was within the limits: those of a burst where the task has to write it, none while
    /// the bus, which has its own, collects for that one.
    fn check_bounds(&self, flush_was_due: bool) {
        let times = match (self.is_shared, flush_was_due) {
            (true, _) => 1,
            (false, false) => 4,
            (false, true) => return,
        };
        let (frames, bytes) = (self.core.queue.len(), self.core.queue.left());
        assert!(
            frames <= 1 || frames <= 6 * times && bytes <= 150 * times,
            "{frames} frames, {bytes} bytes"
        );
    }

    fn check(&mut self) {
        self.core.take_wakes().wake();
        let ended = self.ended.as_ref().map(|(close, _)| close);
        assert_eq!(self.core.life.close(), ended, "one end, and the first");
        assert_eq!(self.core.life.is_cut(), self.cut.is_some());
        let kernel = self.kernel.borrow();
        if ended.is_none() {
            assert_eq!(self.core.stalled.map(Instant::from), kernel.refuses);
        }
        match self.cut {
            Some(written) => assert_eq!(kernel.taken.len(), written, "written after the cut"),
            None => assert!(
                self.core.queue.is_empty()
                    || self.flush_due
                    || self.blocked
                    || *self.driver.0.lock(),
                "nobody is going to write what is queued"
            ),
        }
        // Of a close that is collected the flush tells.
        let is_over = ended.is_some() && !self.flush_due;
        if self.handler_waits && (is_over || self.core.queue.is_empty()) {
            assert!(
                *self.handler.0.lock(),
                "the handler waits for what is there"
            );
        }
    }

    /// The kernel takes everything at last.
    fn settle(&mut self) {
        self.act(Act::Room(usize::MAX));
        self.act(Act::Say(Say::Flush));
        for _ in 0..4 {
            self.act(Act::Drive(Vec::new()));
        }
        assert!(self.cut.is_some() || self.core.queue.is_empty());
    }

    /// What came out is whole frames in the order in which they were said, the Close frame last, and all but
    /// those that were counted as lost.
    fn account(&self) {
        let taken = &self.kernel.borrow().taken;
        let (frames, torn) = split(taken);
        let (mut said, mut arrived) = (self.said.iter(), 0);
        for (n, frame) in frames.iter().enumerate() {
            match frame[0] & 0x0f {
                8 => {
                    let (close, _) = self.ended.as_ref().expect("it has a reason");
                    assert_eq!(*frame, Frame::close(close).as_bytes());
                    assert!(n + 1 == frames.len() && torn.is_empty(), "after Close");
                }
                9 | 10 => arrived += 1,
                _ => {
                    assert!(
                        said.any(|(said, _)| said.as_bytes() == *frame),
                        "out of order"
                    );
                    arrived += 1;
                }
            }
        }
        if self.cut.is_some() {
            return;
        }
        assert!(torn.is_empty(), "a torn frame");
        let closes = frames.iter().filter(|frame| frame[0] & 0x0f == 8);
        assert_eq!(closes.count(), usize::from(self.ended.is_some()));
        if !self.answered {
            let all = self.said.len() + self.controls;
            assert_eq!(arrived + self.lost, all, "lost without being counted");
        }
    }
}

/// The frames of which these bytes are, and what is left.
fn split(mut bytes: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut frames = Vec::new();
    loop {
        let length = match bytes {
            [_, 126, a, b, ..] => 4 + usize::from(u16::from_be_bytes([*a, *b])),
            [_, length, ..] => 2 + usize::from(*length),
            _ => return (frames, bytes),
        };
        let Some((frame, rest)) = bytes.split_at_checked(length) else {
            return (frames, bytes);
        };
        frames.push(frame);
        bytes = rest;
    }
}

proptest! {
    #[test]
    fn whatever_the_ends_do_the_books_agree(
        acts in vec(act(), 0..100),
        is_shared: bool,
        drop_oldest: bool,
        expires in 20u64..400,
    ) {
        let mut world = World::new(is_shared, drop_oldest, expires);
        acts.into_iter().for_each(|act| world.act(act));
        world.settle();
        world.account();
    }
}
