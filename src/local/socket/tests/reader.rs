//! A subscription: what is said waits for a reader.

use std::collections::VecDeque;

use super::*;
use crate::model::message::Message;

/// A socket without a client.
struct Subscribed {
    sender: Sender,
    sweep: SweepEnd,
    reader: ReaderEnd,
}

fn subscribed() -> Subscribed {
    read(false)
}

/// One whose reader hands on to a client.
fn streamed() -> Subscribed {
    read(true)
}

fn read(has_client: bool) -> Subscribed {
    let SocketEnds {
        sender,
        driver,
        sweep,
        ..
    } = outbox();
    Subscribed {
        sender,
        sweep,
        reader: ReaderEnd::instead_of(driver, has_client),
    }
}

impl Subscribed {
    fn say(&self, text: &str, manner: &Manner, limits: &OutboxLimits) -> Pushed {
        self.sender.send(&Frame::text(text), manner, limits)
    }

    fn read(&self) -> Poll<Option<Message>> {
        self.reader
            .poll_recv(&mut Context::from_waker(Waker::noop()))
    }

    fn frame(&self) -> Poll<Option<Frame>> {
        self.reader
            .poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    fn sweep_at(&self, now: Instant) -> Swept {
        self.sweep.sweep(at(now), Duration::ZERO, &TIMES)
    }

    fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        while let Poll::Ready(Some(message)) = self.read() {
            texts.push(message.into_text().unwrap().into());
        }
        texts
    }
}

fn a_message(text: &str) -> Poll<Option<Message>> {
    Poll::Ready(Some(text.into()))
}

#[test]
fn a_burst_is_not_held_against_a_reader_that_waits_and_one_that_is_busy_keeps_to_the_limit() {
    let limits = limits(2, 1000, SlowConsumer::Close);
    for (reads, most) in [(0, 2), (1, 8)] {
        let socket = subscribed();
        for _ in 0..reads {
            assert!(socket.read().is_pending(), "it waits");
        }
        for n in 0..most {
            let pushed = socket.say("x", &Manner::InTurn, &limits);
            assert_eq!(pushed, Pushed::Taken, "{n} of {most}");
        }
        let pushed = socket.say("x", &Manner::InTurn, &limits);
        assert_eq!(pushed, Pushed::Overflowed(most + 1));
        assert_eq!(socket.reader.close_reason(), Some(reason::SLOW));
        assert_eq!(socket.read(), Poll::Ready(None));
    }
    let busy = subscribed();
    assert!(busy.read().is_pending());
    for text in ["1", "2", "3"] {
        busy.say(text, &Manner::InTurn, &limits);
    }
    assert_eq!(busy.read(), a_message("1"));
    let pushed = busy.say("4", &Manner::InTurn, &limits);
    assert_eq!(pushed, Pushed::Overflowed(3), "its turn has begun");
}

#[test]
fn the_oldest_make_room_and_only_the_newest_of_a_key_waits() {
    let limits = limits(3, 1000, SlowConsumer::DropOldest);
    let socket = subscribed();
    let latest = Manner::Latest("a".into());
    assert_eq!(socket.say("a1", &latest, &limits), Pushed::Taken);
    assert_eq!(socket.say("x", &Manner::InTurn, &limits), Pushed::Taken);
    assert_eq!(socket.say("a2", &latest, &limits), Pushed::Superseded);
    let volatile = socket.say("v", &Manner::Volatile, &limits);
    assert_eq!(volatile, Pushed::LeftOut);
    assert_eq!(socket.say("y", &Manner::InTurn, &limits), Pushed::Taken);
    assert_eq!(
        socket.say("z", &Manner::InTurn, &limits),
        Pushed::Dropped(1)
    );
    assert_eq!(socket.texts(), ["x", "y", "z"]);
    let volatile = socket.say("v", &Manner::Volatile, &limits);
    assert_eq!(volatile, Pushed::Taken, "nothing waits");
    assert_eq!(socket.texts(), ["v"]);
}

#[test]
fn messages_of_every_size_come_as_they_were_sent() {
    let limits = limits(99, usize::MAX, SlowConsumer::Close);
    let socket = subscribed();
    for size in [0, 1, 125, 126, 0xffff, 0x1_0000] {
        for message in [
            Message::text("x".repeat(size)),
            Message::binary(vec![7; size]),
        ] {
            let frame = Frame::message(&message);
            let pushed = socket.sender.send(&frame, &Manner::InTurn, &limits);
            assert_eq!(pushed, Pushed::Taken);
            assert_eq!(socket.read(), Poll::Ready(Some(message)));
        }
    }
}

#[test]
fn time_demands_nothing_of_a_reader() {
    let socket = subscribed();
    let limits = limits(9, 1000, SlowConsumer::Close);
    socket.say("x", &Manner::InTurn, &limits);
    let start = Instant::now();
    for hours in 0..48 {
        let swept = socket.sweep_at(start + Duration::from_secs(3600 * hours));
        assert_eq!(swept, Swept::Fine);
    }
    assert_eq!(socket.reader.close_reason(), None);
    assert_eq!(socket.texts(), ["x"], "no ping among them");
}

#[test]
fn the_client_of_a_reader_is_pinged_into_silence_and_is_there_as_long_as_that_is_taken() {
    let socket = streamed();
    assert!(socket.frame().is_pending());
    let start = Instant::now();
    let mut pings = 0;
    for seconds in 0..600 {
        assert_eq!(
            socket.sweep_at(start + Duration::from_secs(seconds)),
            Swept::Fine
        );
        // A sign of life has the real time: it is never later than the next look.
        while let Poll::Ready(Some(frame)) = socket.frame() {
            assert!(frame.is_ping());
            pings += 1;
        }
    }
    assert!(pings > 20, "{pings}");
    assert_eq!(socket.reader.close_reason(), None);

    let left = streamed();
    assert!(left.frame().is_pending());
    left.sweep_at(start + Duration::from_secs(60));
    assert_eq!(
        left.reader.close_reason(),
        None,
        "it may still take the ping"
    );
    left.sweep_at(start + Duration::from_secs(81));
    assert_eq!(left.reader.close_reason(), Some(reason::SILENT));
    assert_eq!(
        left.frame(),
        Poll::Ready(None),
        "nothing is handed on any more"
    );
}

#[test]
fn the_client_of_a_reader_that_takes_nothing_is_given_up_and_what_waits_is_counted() {
    let limits = limits(9, 1000, SlowConsumer::Close);
    for takes in [0, 1] {
        let socket = streamed();
        for text in ["x", "y", "z"] {
            socket.say(text, &Manner::InTurn, &limits);
        }
        for _ in 0..takes {
            assert!(socket.frame().is_ready());
        }
        let start = Instant::now();
        assert_eq!(socket.sweep_at(start + Duration::from_secs(9)), Swept::Fine);
        let swept = socket.sweep_at(start + Duration::from_secs(11));
        assert_eq!(swept, Swept::Stalled(3 - takes));
        assert_eq!(socket.reader.close_reason(), Some(reason::STALLED));
    }
}

#[test]
fn whoever_waits_for_the_end_of_a_client_waits_no_longer_than_for_a_socket() {
    let SocketEnds {
        sender,
        handler,
        driver,
        sweep,
    } = outbox();
    let reader = ReaderEnd::instead_of(driver, true);
    let mut cx = Context::from_waker(Waker::noop());
    sender.close(reason::RESTART);
    assert!(handler.poll_ended(&mut cx).is_ready());
    assert!(
        handler.poll_finished(&mut cx).is_pending(),
        "it may still be read"
    );
    sweep.sweep(at(Instant::now() + CLOSING), Duration::ZERO, &TIMES);
    assert!(handler.poll_finished(&mut cx).is_ready());
    assert_eq!(reader.close_reason(), Some(reason::RESTART));
}

const TIMES: HeartbeatTimes = HeartbeatTimes {
    ping_interval: Duration::from_secs(25),
    pong_timeout: Duration::from_secs(20),
    write_timeout: Duration::from_secs(10),
};

#[test]
fn who_watches_for_the_end_is_woken_by_it_alone_and_once() {
    let limits = limits(1, 1000, SlowConsumer::Close);
    type End = fn(&Subscribed, &OutboxLimits);
    let ends: [End; 4] = [
        |socket, _| {
            socket.sender.close(reason::RESTART);
        },
        |socket, _| {
            socket.sender.collect_close(&reason::RESTART);
            socket.sender.flush();
        },
        |socket, limits| {
            socket.say("y", &Manner::InTurn, limits);
        },
        |socket, _| socket.sweep.cut(),
    ];
    for end in ends {
        let (socket, flag) = (subscribed(), Arc::new(Flag::default()));
        socket.reader.when_ended(flag.clone().into());
        socket.say("x", &Manner::InTurn, &limits);
        socket.sender.flush();
        assert!(!*flag.0.lock(), "it lives");
        end(&socket, &limits);
        assert!(std::mem::take(&mut *flag.0.lock()));
        socket.sender.close(reason::EXPIRED);
        drop(socket.reader);
        assert!(!*flag.0.lock() && Arc::strong_count(&flag) == 1);
        let late = subscribed();
        end(&late, &limits);
        end(&late, &limits);
        late.reader.when_ended(flag.clone().into());
        assert!(*flag.0.lock(), "it had ended before");
    }
}

/// One thing that happens to a subscription.
#[derive(Clone, Debug)]
enum Act {
    Send(usize, Manner),
    Collect(usize, Manner),
    Flush,
    Read,
    Close,
}

fn act() -> impl Strategy<Value = Act> {
    let manner = || {
        prop_oneof![
            4 => Just(Manner::InTurn),
            1 => Just(Manner::Volatile),
            1 => Just(Manner::Latest("a".into())),
        ]
    };
    prop_oneof![
        20 => (0usize..40, manner()).prop_map(|(size, manner)| Act::Send(size, manner)),
        10 => (0usize..40, manner()).prop_map(|(size, manner)| Act::Collect(size, manner)),
        10 => Just(Act::Flush),
        25 => Just(Act::Read),
        1 => Just(Act::Close),
    ]
}

/// What waits, each with its key.
type Waiting = VecDeque<(String, Option<Arc<str>>)>;

/// Keeps the book of one that was said.
fn account(waiting: &mut Waiting, text: String, manner: &Manner, pushed: Pushed) {
    let key = match manner {
        Manner::Latest(key) => Some(key.clone()),
        Manner::InTurn | Manner::Volatile => None,
    };
    match pushed {
        Pushed::Taken => waiting.push_back((text, key)),
        Pushed::Dropped(count) => {
            waiting.drain(..count);
            waiting.push_back((text, key));
        }
        Pushed::Superseded => {
            let of_key = waiting.iter_mut().rev().find(|(_, old)| *old == key);
            of_key.unwrap().0 = text;
        }
        Pushed::LeftOut => assert_eq!(*manner, Manner::Volatile),
        Pushed::Overflowed(lost) => {
            assert_eq!(lost, waiting.len() + 1);
            waiting.clear();
        }
        Pushed::Known | Pushed::Closed => {}
    }
}

proptest! {
    #[test]
    fn what_is_taken_is_read_in_order_or_counted_and_a_reader_that_waits_is_woken(
        acts in vec(act(), 0..120),
        drop_oldest: bool,
    ) {
        const MOST: usize = 4;
        let limits = limits(MOST, 150, policy(drop_oldest));
        let (socket, flag) = (subscribed(), Arc::new(Flag::default()));
        let waker = Waker::from(flag.clone());
        let (mut waiting, mut waits, mut collected) = (Waiting::new(), false, false);
        for (n, act) in acts.into_iter().enumerate() {
            let before = waiting.len();
            let text = |size| format!("{n}:{}", "x".repeat(size));
            match act {
                Act::Send(size, manner) => {
                    let pushed = socket.say(&text(size), &manner, &limits);
                    account(&mut waiting, text(size), &manner, pushed);
                    let most = if waits { 4 * MOST } else { MOST };
                    prop_assert!(collected || waiting.len() <= most.max(before));
                }
                Act::Collect(size, manner) => {
                    let frame = Frame::text(&text(size));
                    let Collected { pushed, wants_flush } = socket.sender.collect(&frame, &manner, &limits);
                    account(&mut waiting, text(size), &manner, pushed);
                    collected |= wants_flush;
                }
                Act::Flush => {
                    socket.sender.flush();
                    collected = false;
                }
                Act::Close => {
                    socket.sender.close(reason::RESTART);
                }
                Act::Read => {
                    let read = socket.reader.poll_recv(&mut Context::from_waker(&waker));
                    let open = socket.reader.close_reason().is_none();
                    match waiting.pop_front() {
                        Some((text, _)) => prop_assert_eq!(read, a_message(&text)),
                        None if open => prop_assert!(read.is_pending()),
                        None => prop_assert_eq!(read, Poll::Ready(None)),
                    }
                    waits = before == 0 && open;
                    *flag.0.lock() = false;
                }
            }
            let ended = socket.reader.close_reason().is_some();
            let news = ended || !waiting.is_empty() && !collected;
            prop_assert!(!waits || !news || *flag.0.lock(), "it waits and is not woken");
        }
    }
}
