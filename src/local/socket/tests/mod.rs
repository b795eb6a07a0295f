//! The ends of a socket, each alone and all at once.

#[cfg(feature = "deflate")]
mod inflating;
mod model;
mod reader;

use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::AsyncReadExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::outcome::{Collected, LifeStage};
use super::*;
use crate::local::CLOSING;
use crate::local::expiry::Times;
use crate::local::heartbeat::HeartbeatTimes;
use crate::model::close::reason;
use crate::model::id::NodeId;
use crate::model::limits::{OutboxLimits, SlowConsumer};
use crate::model::manner::Manner;
use crate::ws::frame::Frame;
use crate::ws::{Agreed, Io, TaskWriter};

/// A stream that nobody shares.
impl<W: FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>> TaskWriter for W {
    fn poll_writable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        unreachable!("the task writes by itself")
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self(cx, bytes)
    }
}

fn by_task<W: FnMut(&mut Context<'_>, &[u8]) -> Poll<io::Result<usize>>>(write: W) -> W {
    write
}

#[derive(Default)]
struct Flag(Mutex<bool>);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *self.0.lock() = true;
    }
}

/// Long ago by the wall clock, which stands still.
fn at(now: Instant) -> Times {
    Times { now, wall: 0 }
}

fn outbox() -> SocketEnds {
    SocketEnds::new(
        SocketId {
            node: NodeId(1),
            number: 1,
        },
        "alice".into(),
        topic(),
        None,
        Agreed::NOTHING,
    )
}

fn topic() -> Topic {
    Topic::user(&"alice".into()).unwrap()
}

fn limits(messages: usize, bytes: usize, policy: SlowConsumer) -> OutboxLimits {
    OutboxLimits {
        messages,
        bytes,
        policy,
    }
}

/// What the socket's task would write now, with a kernel that takes everything.
fn written(outbox: &SocketEnds) -> Vec<u8> {
    let mut out = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = by_task(|_, bytes| {
        out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    });
    let result = outbox.driver.poll_write(&mut cx, &mut all);
    assert!(matches!(result, Poll::Ready(Ok(()))));
    out
}

fn frames<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    texts
        .into_iter()
        .flat_map(|text| Frame::text(text).as_bytes().to_vec())
        .collect()
}

/// The task has its turn, and nothing is taken.
fn write_in_vain(outbox: &SocketEnds) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        outbox
            .driver
            .poll_write(&mut cx, &mut by_task(|_, _| Poll::Pending))
            .is_pending()
    );
}

fn taken(wants_flush: bool) -> Collected {
    Collected {
        pushed: Pushed::Taken,
        wants_flush,
    }
}

#[test]
fn nobody_is_slow_before_the_turn_of_the_task_that_alone_can_write() {
    let limits = limits(2, 1000, SlowConsumer::Close);
    let message = Frame::text("x");
    let outbox = outbox();
    for wake in 0..3 {
        for n in 0..2 {
            let collected = outbox.sender.collect(&message, &Manner::InTurn, &limits);
            assert_eq!(collected, taken(n == 0), "wake {wake}");
        }
        assert_eq!(outbox.sender.flush(), Flushed::ByTask);
    }
    assert_eq!(
        outbox.sender.send(&message, &Manner::InTurn, &limits),
        Pushed::Taken
    );
    write_in_vain(&outbox);
    assert_eq!(
        outbox.sender.send(&message, &Manner::InTurn, &limits),
        Pushed::Overflowed(8)
    );
}

#[test]
fn a_burst_has_its_limit_too() {
    let limits = limits(2, 1000, SlowConsumer::Close);
    let outbox = outbox();
    for n in 0..9 {
        let collected = outbox
            .sender
            .collect(&Frame::text("x"), &Manner::InTurn, &limits);
        assert_eq!(collected, taken(n == 0));
    }
    outbox.sender.flush();
    let collected = outbox
        .sender
        .collect(&Frame::text("x"), &Manner::InTurn, &limits);
    assert_eq!(collected.pushed, Pushed::Overflowed(10));
}

#[test]
fn a_volatile_message_is_left_out_behind_others_and_closes_nobody() {
    let limits = limits(2, 1000, SlowConsumer::Close);
    let outbox = outbox();
    let volatile = |text| {
        let frame = Frame::text(text);
        outbox.sender.send(&frame, &Manner::Volatile, &limits)
    };
    // Nobody is behind before the turn of the task that alone can write.
    assert_eq!([volatile("1"), volatile("2")], [Pushed::Taken; 2]);
    write_in_vain(&outbox);
    assert_eq!([volatile("3"), volatile("4")], [Pushed::LeftOut; 2]);
    assert_eq!(outbox.sender.close_reason(), None);
    assert_eq!(written(&outbox), frames(["1", "2"]));
    assert_eq!(volatile("5"), Pushed::Taken);
    assert_eq!(written(&outbox), frames(["5"]));
}

#[test]
fn the_latest_of_a_key_takes_the_place_of_the_one_that_waits() {
    let limits = limits(3, 1000, SlowConsumer::Close);
    let outbox = outbox();
    let say = |text: &str, key: &str| {
        let manner = match key {
            "" => Manner::InTurn,
            key => Manner::Latest(key.into()),
        };
        outbox.sender.send(&Frame::text(text), &manner, &limits)
    };
    assert_eq!(say("a1", "a"), Pushed::Taken);
    write_in_vain(&outbox);
    assert_eq!(say("x", ""), Pushed::Taken);
    assert_eq!(say("b1", "b"), Pushed::Taken);
    for n in 2..9 {
        assert_eq!(say(&format!("a{n}"), "a"), Pushed::Superseded);
        assert_eq!(say(&format!("b{n}"), "b"), Pushed::Superseded);
    }
    assert_eq!(written(&outbox), frames(["a8", "x", "b8"]));
    assert_eq!(say("a9", "a"), Pushed::Taken);
    assert_eq!(written(&outbox), frames(["a9"]));
}

/// Its own message filled the outbox, and nothing was offered to the kernel yet.
#[tokio::test]
async fn a_handler_that_speaks_to_its_own_room_is_not_slow() {
    let limits = limits(1, 1000, SlowConsumer::Close);
    let (outbox, mut client, _reader) = connected().await;
    outbox.handler.push(Frame::text("own")).unwrap();
    let message = Frame::text("room");
    assert_eq!(
        outbox.sender.send(&message, &Manner::InTurn, &limits),
        Pushed::Taken
    );
    assert_eq!(written(&outbox), b"");
    outbox.driver.shut();
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, frames(["own", "room"]));
}

#[test]
fn a_slow_consumer_is_closed_at_either_limit() {
    for (messages, bytes) in [(2, 1000), (1000, 24)] {
        let limits = limits(messages, bytes, SlowConsumer::Close);
        let outbox = outbox();
        assert_eq!(
            outbox
                .sender
                .send(&Frame::text("0123456789"), &Manner::InTurn, &limits),
            Pushed::Taken
        );
        assert_eq!(
            outbox
                .sender
                .send(&Frame::text("0123456789"), &Manner::InTurn, &limits),
            Pushed::Taken
        );
        write_in_vain(&outbox);
        assert_eq!(
            outbox
                .sender
                .send(&Frame::text("x"), &Manner::InTurn, &limits),
            Pushed::Overflowed(3)
        );
        assert_eq!(
            outbox
                .sender
                .send(&Frame::text("x"), &Manner::InTurn, &limits),
            Pushed::Closed
        );
        let close = Close::new(1013, "slow consumer");
        assert_eq!(written(&outbox), Frame::close(&close).as_bytes());
        assert_eq!(outbox.sender.close_reason(), Some(close));
    }
}

#[test]
fn the_oldest_make_room_when_configured() {
    let limits = limits(2, 1000, SlowConsumer::DropOldest);
    let outbox = outbox();
    for text in ["1", "2"] {
        assert_eq!(
            outbox
                .sender
                .send(&Frame::text(text), &Manner::InTurn, &limits),
            Pushed::Taken
        );
    }
    write_in_vain(&outbox);
    assert_eq!(
        outbox
            .sender
            .send(&Frame::text("3"), &Manner::InTurn, &limits),
        Pushed::Dropped(1)
    );
    assert_eq!(written(&outbox), frames(["2", "3"]));
}

/// Nothing is left to be dropped for it but a frame that is begun.
#[test]
fn what_was_dropped_before_an_overflow_is_counted() {
    let limits = limits(9, 80, SlowConsumer::DropOldest);
    let outbox = outbox();
    for size in [30, 10, 10] {
        let message = Frame::text(&"x".repeat(size));
        assert_eq!(
            outbox.sender.send(&message, &Manner::InTurn, &limits),
            Pushed::Taken
        );
    }
    let mut room = 1;
    let mut one_byte = by_task(|_, _| match std::mem::take(&mut room) {
        0 => Poll::Pending,
        count => Poll::Ready(Ok(count)),
    });
    let mut cx = Context::from_waker(Waker::noop());
    let writing = outbox.driver.poll_write(&mut cx, &mut one_byte);
    assert!(writing.is_pending());
    // Its next turn brings nothing, so that the client is slow.
    write_in_vain(&outbox);
    let big = Frame::text(&"x".repeat(70));
    assert_eq!(
        outbox.sender.send(&big, &Manner::InTurn, &limits),
        Pushed::Overflowed(3)
    );
}

/// Whatever is added here is added to each idle socket (`benches/README.md`, under Sockets). Of what its ends share the
/// queues are 80 bytes, the three wakers 48, id, user and topic 48, stream, life, heartbeat and expiry 16 each, the time of a
/// stall and the rooms that it left 8 each; the rest are flags, locks and what aligns them. Reasons are boxed for it, and queues
/// give their memory back. Beside the handler its task has 40 bytes for the stream and whom it belongs to, 8 for the
/// decoder, 16 for what a client sends, for the phase and for flags. Of tokio's own there are 112, and the whole is rounded up to a
/// multiple of 128.
#[cfg(target_pointer_width = "64")]
#[test]
fn an_idle_socket_is_small() {
    assert_eq!(size_of::<Shared>(), 280);
    type Task = Together<std::future::Ready<()>, crate::local::admission::Registration>;
    assert_eq!(size_of::<Task>(), 72);
}

#[test]
fn one_message_of_any_size_fits_into_an_empty_outbox() {
    let limits = limits(2, 10, SlowConsumer::Close);
    let outbox = outbox();
    assert_eq!(
        outbox
            .sender
            .send(&Frame::binary(&[0; 1000]), &Manner::InTurn, &limits),
        Pushed::Taken
    );
    assert_eq!(
        outbox
            .sender
            .send(&Frame::text("x"), &Manner::InTurn, &limits),
        Pushed::Overflowed(2)
    );
}

#[test]
fn a_close_comes_after_what_was_queued_and_the_first_wins() {
    let limits = limits(8, 1000, SlowConsumer::Close);
    let outbox = outbox();
    outbox
        .sender
        .send(&Frame::text("last words"), &Manner::InTurn, &limits);
    assert!(outbox.sender.close(Close::new(4000, "first")));
    assert!(!outbox.sender.close(Close::new(4001, "second")));
    let mut expected = frames(["last words"]);
    expected.extend(Frame::close(&Close::new(4000, "first")).as_bytes());
    assert_eq!(written(&outbox), expected);
    assert_eq!(
        outbox.sender.close_reason(),
        Some(Close::new(4000, "first"))
    );
}

#[tokio::test]
async fn a_collected_close_leaves_after_the_messages_in_the_same_write() {
    let limits = limits(8, 1000, SlowConsumer::Close);
    let (outbox, mut client, _reader) = connected().await;
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(flag.clone());
    let finished = outbox
        .handler
        .poll_finished(&mut Context::from_waker(&waker));
    assert!(finished.is_pending());
    let close = Close::new(4000, "kicked");
    let collected = outbox
        .sender
        .collect(&Frame::text("last words"), &Manner::InTurn, &limits);
    assert_eq!(collected, taken(true));
    assert!(
        !outbox.sender.collect_close(&close),
        "not the first of this wake"
    );
    assert!(!outbox.sender.collect_close(&Close::new(4001, "second")));
    assert_eq!(
        outbox
            .sender
            .collect(&Frame::text("late"), &Manner::InTurn, &limits)
            .pushed,
        Pushed::Closed
    );
    let nothing = client.try_read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(nothing, Err(ErrorKind::WouldBlock), "written too early");

    outbox.sender.flush();
    assert!(*flag.0.lock(), "its tasks must notice the end");
    let mut expected = frames(["last words"]);
    expected.extend(Frame::close(&close).as_bytes());
    let mut read = vec![0; expected.len()];
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(read, expected);
}

#[test]
fn pings_do_not_fill_the_memory_and_the_newest_is_answered() {
    let outbox = outbox();
    for n in 0..100_000u32 {
        outbox.driver.pong(Frame::pong(&n.to_be_bytes()));
    }
    let pongs = written(&outbox);
    let one = Frame::pong(&[0; 4]).len();
    assert!(pongs.len() <= 20 * one, "{} bytes", pongs.len());
    assert!(pongs.ends_with(&99_999u32.to_be_bytes()));
}

/// Comes back to the socket that wakes it, as any executor may.
struct ComesBack {
    sender: Sender,
    came: AtomicUsize,
}

impl ComesBack {
    fn to(ends: &SocketEnds) -> Arc<Self> {
        Arc::new(Self {
            sender: ends.sender.clone(),
            came: AtomicUsize::new(0),
        })
    }

    fn back(&self) {
        let limits = limits(99, 9999, SlowConsumer::Close);
        self.sender.close_reason();
        let _ = self
            .sender
            .collect(&Frame::text("again"), &Manner::InTurn, &limits);
        let _ = self.sender.0.inbox.lock().room();
    }
}

impl Wake for ComesBack {
    fn wake(self: Arc<Self>) {
        self.back();
        self.came.fetch_add(1, SeqCst);
    }
}

/// A waker that is replaced is dropped.
impl Drop for ComesBack {
    fn drop(&mut self) {
        self.back();
    }
}

/// On a thread of its own, which would hang.
fn in_time(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        work();
        done.send(())
    });
    let ended = ended.recv_timeout(Duration::from_secs(30));
    assert!(ended.is_ok(), "{what}: a dead-lock, or a panic");
}

#[test]
fn wakers_may_come_back() {
    type Act = fn(&mut SocketEnds, &OutboxLimits);
    let acts: [(&str, Act); 10] = [
        ("send", |ends, limits| {
            ends.sender.send(&Frame::text("x"), &Manner::InTurn, limits);
        }),
        ("flush", |ends, limits| {
            let _ = ends
                .sender
                .collect(&Frame::text("x"), &Manner::InTurn, limits);
            ends.sender.flush();
        }),
        ("close", |ends, _| {
            ends.sender.close(reason::DONE);
        }),
        ("answer", |ends, _| ends.driver.answer(reason::DONE)),
        ("abandon", |ends, _| ends.driver.abandon(reason::VANISHED)),
        ("cut", |ends, _| ends.sweep.cut()),
        ("finish", |ends, _| {
            drop(std::mem::replace(&mut ends.driver, outbox().driver));
        }),
        ("speak", |ends, _| {
            let _ = ends.handler.push(Frame::text("x"));
        }),
        ("hear", |ends, _| _ = ends.driver.heard("x".into())),
        ("hear no more", |ends, _| ends.driver.end_inbox()),
    ];
    for (what, act) in acts {
        in_time(what, move || {
            let (mut ends, limits) = (outbox(), limits(1, 1000, SlowConsumer::Close));
            let back = ComesBack::to(&ends);
            let waker = Waker::from(back.clone());
            let mut cx = Context::from_waker(&waker);
            // The task waits for something to write, the handler for a message and for the end.
            let writing = ends
                .driver
                .poll_write(&mut cx, &mut by_task(|_, _| Poll::Pending));
            assert!(writing.is_ready());
            assert!(ends.handler.poll_recv(&mut cx).is_pending());
            assert!(ends.handler.poll_finished(&mut cx).is_pending());
            act(&mut ends, &limits);
            assert!(back.came.load(SeqCst) > 0, "{what} wakes");
        });
    }
}

#[test]
fn a_waker_may_come_back_when_it_is_dropped() {
    type Wait = fn(&SocketEnds, &mut Context<'_>) -> bool;
    let waits: [(&str, Wait); 3] = [
        ("a message", |ends, cx| {
            ends.handler.poll_recv(cx).is_pending()
        }),
        ("the end", |ends, cx| {
            ends.handler.poll_finished(cx).is_pending()
        }),
        ("something to write", |ends, cx| {
            let mut nothing = by_task(|_, _| Poll::Pending);
            ends.driver.poll_write(cx, &mut nothing).is_ready()
        }),
    ];
    for (what, wait) in waits {
        in_time(what, move || {
            let ends = outbox();
            let back = ComesBack::to(&ends);
            let gone = Arc::downgrade(&back);
            let waker = Waker::from(back);
            assert!(wait(&ends, &mut Context::from_waker(&waker)));
            drop(waker);
            assert!(gone.strong_count() > 0, "{what}: nobody waits");
            wait(&ends, &mut Context::from_waker(Waker::noop()));
            assert_eq!(gone.strong_count(), 0, "{what}: it is not replaced");
        });
    }
}

/// TLS and HTTP/2 wake tasks of their own when they are written to.
#[test]
fn a_stream_may_come_back() {
    in_time("writing", || {
        let (outbox, limits) = (outbox(), limits(99, 9999, SlowConsumer::Close));
        let mut cx = Context::from_waker(Waker::noop());
        for text in ["1", "2"] {
            outbox
                .sender
                .send(&Frame::text(text), &Manner::InTurn, &limits);
        }
        let (mut out, mut turn) = (Vec::new(), 0);
        let mut taking = by_task(|_, bytes| {
            turn += 1;
            if turn == 1 {
                // Queued behind what is being written, however much of that is taken.
                outbox
                    .sender
                    .send(&Frame::text("3"), &Manner::InTurn, &limits);
                out.extend_from_slice(&bytes[..1]);
                return Poll::Ready(Ok(1));
            }
            out.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        });
        assert!(outbox.driver.poll_write(&mut cx, &mut taking).is_pending());
        assert!(outbox.driver.poll_write(&mut cx, &mut taking).is_ready());
        assert_eq!(out, frames(["1", "2", "3"]));
    });
}

#[test]
fn the_handler_waits_for_room_and_is_woken() {
    let limits = limits(1, 1000, SlowConsumer::Close);
    let outbox = outbox();
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(flag.clone());
    let mut cx = Context::from_waker(&waker);
    assert_eq!(
        outbox.handler.poll_room(&mut cx, &limits),
        Poll::Ready(Ok(()))
    );
    assert_eq!(outbox.handler.push(Frame::text("1")), Ok(()));
    assert!(outbox.handler.poll_room(&mut cx, &limits).is_pending());
    assert_eq!(written(&outbox), frames(["1"]));
    assert!(*flag.0.lock(), "room wakes the handler");
    assert!(outbox.handler.poll_room(&mut cx, &limits).is_ready());
    outbox.sender.close(Close::new(1000, ""));
    assert_eq!(
        outbox.handler.push(Frame::text("2")),
        Err(Close::new(1000, ""))
    );
}

/// An outbox that shares a stream, and the client's end of it.
async fn connected() -> (Arc<SocketEnds>, TcpStream, OwnedReadHalf) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpSocket::new_v4().unwrap();
    client.set_recv_buffer_size(4096).unwrap();
    let client = client.connect(listener.local_addr().unwrap());
    let client = client.await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    socket2::SockRef::from(&server)
        .set_send_buffer_size(4096)
        .unwrap();
    let (reader, writer) = server.into_split();
    writer.writable().await.unwrap();
    let outbox = Arc::new(outbox());
    outbox.driver.opened(Some(writer));
    (outbox, client, reader)
}

#[tokio::test]
async fn whoever_makes_room_wakes_the_handler() {
    let limits = limits(2, 1000, SlowConsumer::Close);
    let (outbox, _client, _reader) = connected().await;
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(flag.clone());
    for _ in 0..2 {
        assert!(
            outbox
                .sender
                .collect(&Frame::text("x"), &Manner::InTurn, &limits)
                .pushed
                .is_taken()
        );
    }
    let room = outbox
        .handler
        .poll_room(&mut Context::from_waker(&waker), &limits);
    assert!(room.is_pending(), "no room while the bus delivers");
    outbox.sender.flush();
    assert!(*flag.0.lock(), "the driver has nothing left to do");
}

/// The heartbeat cannot find it out, so the kernel has to.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn while_the_handler_does_not_read_the_kernel_gives_a_lost_client_up() {
    let times = HeartbeatTimes {
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(20),
        write_timeout: Duration::from_secs(10),
    };
    let (outbox, _client, reader) = connected().await;
    let patience = || socket2::SockRef::from(reader.as_ref()).tcp_user_timeout();
    outbox.driver.pause(true);
    let start = Instant::now();
    outbox
        .sweep
        .sweep(at(start + Duration::from_secs(30)), Duration::ZERO, &times);
    assert_eq!(patience().unwrap(), None, "control");
    outbox
        .sweep
        .sweep(at(start + Duration::from_secs(55)), Duration::ZERO, &times);
    assert_eq!(patience().unwrap(), Some(Duration::from_secs(45)));
}

#[test]
fn an_empty_outbox_owns_no_memory() {
    let limits = limits(1000, 1 << 20, SlowConsumer::Close);
    let outbox = outbox();
    for _ in 0..100 {
        outbox
            .sender
            .send(&Frame::binary(&[0; 1000]), &Manner::InTurn, &limits);
    }
    written(&outbox);
    assert_eq!(outbox.sender.0.core.lock().queue.capacity(), 0);
}

#[test]
fn time_ends_the_silent_the_stalled_the_expired_and_the_endless() {
    let seconds = Duration::from_secs;
    let times = HeartbeatTimes {
        ping_interval: seconds(25),
        pong_timeout: seconds(20),
        write_timeout: seconds(10),
    };
    let ended = |outbox: &SocketEnds| {
        outbox
            .sender
            .close_reason()
            .map(|close| close.code.as_u16())
    };
    let start = Instant::now();

    let silent = outbox();
    assert_eq!(
        silent
            .sweep
            .sweep(at(start + seconds(30)), Duration::ZERO, &times),
        Swept::Fine
    );
    assert_eq!(written(&silent), Frame::ping().as_bytes());
    silent
        .sweep
        .sweep(at(start + seconds(51)), Duration::ZERO, &times);
    assert_eq!(
        (ended(&silent), silent.driver.stage()),
        (Some(1006), LifeStage::Cut)
    );

    let busy_handler = outbox();
    busy_handler.driver.pause(true);
    for (second, expected) in [(30, true), (51, false), (80, true)] {
        busy_handler
            .sweep
            .sweep(at(start + seconds(second)), Duration::ZERO, &times);
        let pinged = written(&busy_handler) == Frame::ping().as_bytes();
        assert_eq!(
            (pinged, ended(&busy_handler)),
            (expected, None),
            "{second} s"
        );
    }

    let stalled = outbox();
    stalled.sender.send(
        &Frame::text("x"),
        &Manner::InTurn,
        &limits(9, 99, SlowConsumer::DropOldest),
    );
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        stalled
            .driver
            .poll_write(&mut cx, &mut by_task(|_, _| Poll::Pending))
            .is_pending()
    );
    stalled
        .sweep
        .sweep(at(start + seconds(9)), Duration::ZERO, &times);
    assert_eq!(ended(&stalled), None);
    assert_eq!(
        stalled
            .sweep
            .sweep(at(start + seconds(11)), Duration::ZERO, &times),
        Swept::Stalled(1)
    );
    assert_eq!(
        (ended(&stalled), stalled.driver.stage()),
        (Some(1013), LifeStage::Cut)
    );

    let expiring = SocketEnds::new(
        SocketId {
            node: NodeId(1),
            number: 1,
        },
        "alice".into(),
        topic(),
        Some(Expiry::at(UNIX_EPOCH + seconds(2), at(start))),
        Agreed::NOTHING,
    );
    expiring
        .sweep
        .sweep(at(start + seconds(1)), Duration::ZERO, &times);
    assert_eq!(ended(&expiring), None);
    expiring
        .sweep
        .sweep(at(start + seconds(3)), Duration::ZERO, &times);
    assert_eq!(
        (ended(&expiring), expiring.driver.stage()),
        (Some(4401), LifeStage::Ending)
    );
    expiring
        .sweep
        .sweep(at(start + seconds(3) + CLOSING), Duration::ZERO, &times);
    assert_eq!(expiring.driver.stage(), LifeStage::Cut);
}

#[test]
fn an_identity_expires_by_the_wall_clock_too() {
    let times = HeartbeatTimes {
        ping_interval: Duration::from_secs(25),
        pong_timeout: Duration::from_secs(20),
        write_timeout: Duration::from_secs(10),
    };
    let start = at(Instant::now());
    let expiry = Expiry::at(UNIX_EPOCH + Duration::from_secs(3600), start);
    let outbox = SocketEnds::new(
        outbox().handler.id(),
        "alice".into(),
        topic(),
        Some(expiry),
        Agreed::NOTHING,
    );
    // The monotonic clock stood still while the machine slept.
    for (wall, ended) in [(3_599_999, None), (3_600_000, Some(Close::EXPIRED))] {
        outbox
            .sweep
            .sweep(Times { wall, ..start }, Duration::ZERO, &times);
        assert_eq!(outbox.sender.close_reason().map(|close| close.code), ended);
    }
}

#[test]
fn an_ending_is_reported_as_it_was_written() {
    let outbox = outbox();
    outbox.sender.close(Close::new(4000, "é".repeat(100)));
    let close = outbox.sender.close_reason().unwrap();
    assert_eq!(close, Close::new(4000, "é".repeat(61)));
    assert_eq!(written(&outbox), Frame::close(&close).as_bytes());
}

#[test]
fn a_process_that_slept_gives_nobody_up_for_it() {
    let seconds = Duration::from_secs;
    let times = HeartbeatTimes {
        ping_interval: seconds(25),
        pong_timeout: seconds(20),
        write_timeout: seconds(10),
    };
    let start = Instant::now();
    let woken = start + seconds(1000);
    let slept = seconds(995);
    let blocked = |outbox: &SocketEnds| {
        let mut cx = Context::from_waker(Waker::noop());
        outbox
            .driver
            .poll_write(&mut cx, &mut by_task(|_, _| Poll::Pending))
            .is_pending()
    };

    let pinged = outbox();
    pinged
        .sweep
        .sweep(at(start + seconds(30)), Duration::ZERO, &times);
    let stalled = outbox();
    stalled.sender.send(
        &Frame::text("x"),
        &Manner::InTurn,
        &limits(9, 99, SlowConsumer::Close),
    );
    assert!(blocked(&stalled));
    let closing = outbox();
    closing.sender.close(Close::new(4000, ""));
    assert!(blocked(&closing));
    let expiring = SocketEnds::new(
        pinged.handler.id(),
        "alice".into(),
        topic(),
        Some(Expiry::at(UNIX_EPOCH + seconds(2), at(start))),
        Agreed::NOTHING,
    );

    for outbox in [&pinged, &stalled, &closing, &expiring] {
        assert_eq!(outbox.sweep.sweep(at(woken), slept, &times), Swept::Fine);
    }
    assert_eq!(pinged.sender.close_reason(), None);
    assert_eq!(stalled.sender.close_reason(), None);
    assert_eq!(closing.driver.stage(), LifeStage::Ending);
    assert_eq!(
        expiring.sender.close_reason().map(|close| close.code),
        Some(Close::EXPIRED),
        "an identity is no better for it"
    );

    // Their time goes on where it stood.
    for outbox in [&pinged, &stalled, &closing] {
        outbox
            .sweep
            .sweep(at(woken + seconds(21)), Duration::ZERO, &times);
        assert_eq!(outbox.driver.stage(), LifeStage::Cut);
    }
}

/// One thing that happens to an outbox.
#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Collect(usize),
    WriteCollected,
    /// The task writes; the kernel takes this much.
    Write(usize),
    Close,
    CollectClose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0usize..40).prop_map(Step::Send),
        8 => (0usize..40).prop_map(Step::Collect),
        8 => Just(Step::WriteCollected),
        8 => (0usize..60).prop_map(Step::Write),
        1 => Just(Step::Close),
        1 => Just(Step::CollectClose),
    ]
}

/// What was taken, and how many of those were discarded for newer ones.
type Account = (Vec<Frame>, usize);

/// Does the steps, with frames so many times as long.
fn play(
    outbox: &SocketEnds,
    steps: Vec<Step>,
    limits: &OutboxLimits,
    scale: usize,
    mut write: impl FnMut(usize),
) -> Account {
    let (mut sent, mut lost) = (Vec::new(), 0);
    for (n, step) in steps.into_iter().enumerate() {
        let frame = |size| Frame::text(&format!("{n}:{}", "x".repeat(size * scale)));
        let (frame, pushed) = match step {
            Step::Send(size) => {
                let frame = frame(size);
                let pushed = outbox.sender.send(&frame, &Manner::InTurn, limits);
                (frame, pushed)
            }
            Step::Collect(size) => {
                let frame = frame(size);
                let pushed = outbox
                    .sender
                    .collect(&frame, &Manner::InTurn, limits)
                    .pushed;
                (frame, pushed)
            }
            Step::WriteCollected => {
                outbox.sender.flush();
                continue;
            }
            Step::Close => {
                outbox.sender.close(Close::new(4000, "closed"));
                continue;
            }
            Step::CollectClose => {
                outbox.sender.collect_close(&Close::new(4001, "collected"));
                continue;
            }
            Step::Write(room) => {
                write(room * scale);
                continue;
            }
        };
        match pushed {
            Pushed::Dropped(count) => lost += count,
            // The one that overflowed was never taken.
            Pushed::Overflowed(count) => lost += count - 1,
            Pushed::Taken | Pushed::Known | Pushed::Closed => {}
            Pushed::Superseded | Pushed::LeftOut => panic!("every one is in its turn"),
        }
        if pushed.is_taken() {
            sent.push(frame);
        }
    }
    (sent, lost)
}

/// What came out is whole frames, in order, and all but those that were counted as lost.
fn check(out: &[u8], (sent, lost): Account, end: Option<Close>) -> Result<(), TestCaseError> {
    let (mut rest, mut arrived) = (out, 0);
    for frame in &sent {
        if let Some(after) = rest.strip_prefix(frame.as_bytes()) {
            rest = after;
            arrived += 1;
        }
    }
    prop_assert_eq!(arrived + lost, sent.len(), "lost without being counted");
    let end = end.map(|close| Frame::close(&close));
    let end = end.as_ref().map_or(&[][..], Frame::as_bytes);
    prop_assert!(rest == end, "a torn frame");
    Ok(())
}

fn policy(drop_oldest: bool) -> SlowConsumer {
    match drop_oldest {
        true => SlowConsumer::DropOldest,
        false => SlowConsumer::Close,
    }
}

proptest! {
    #[test]
    fn whatever_the_task_can_write_at_a_time_frames_come_out_whole(steps in vec(step(), 0..60), drop_oldest: bool) {
        let (limits, outbox) = (limits(6, 150, policy(drop_oldest)), outbox());
        let mut out = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        let account = play(&outbox, steps, &limits, 1, |mut room| {
            let mut part = by_task(|_, bytes| {
                let count = bytes.len().min(room);
                out.extend_from_slice(&bytes[..count]);
                room -= count;
                if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
            });
            let _ = outbox.driver.poll_write(&mut cx, &mut part);
        });
        out.extend(written(&outbox));
        check(&out, account, outbox.sender.close_reason())?;
    }

    /// The same through a stream that senders write too, to a client that reads now and then.
    #[test]
    fn whatever_the_kernel_takes_at_a_time_frames_come_out_whole(steps in vec(step(), 0..60), drop_oldest: bool) {
        const SCALE: usize = 100;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (outbox, mut client, reader) = runtime.block_on(connected());
        let mut shared = Io::Tcp(reader);
        let limits = limits(6, 150 * SCALE, policy(drop_oldest));
        let mut out = Vec::new();
        let account = play(&outbox, steps, &limits, SCALE, |room| runtime.block_on(async {
            // Lets the runtime hear of the kernel.
            tokio::task::yield_now().await;
            let mut read = vec![0; room];
            let count = client.try_read(&mut read).unwrap_or(0);
            out.extend_from_slice(&read[..count]);
            let _ = std::future::poll_fn(|cx| Poll::Ready(outbox.driver.poll_write(cx, &mut shared))).await;
        }));
        runtime.block_on(async {
            let writing = std::future::poll_fn(|cx| outbox.driver.poll_write(cx, &mut shared));
            let (_, written) = tokio::join!(client.read_to_end(&mut out), async {
                let written = writing.await;
                outbox.driver.shut();
                written
            });
            written.unwrap();
        });
        check(&out, account, outbox.sender.close_reason())?;
    }
}

/// The same with a real kernel: senders on several threads write directly, the kernel takes
/// little, the task finishes the rest.
#[tokio::test(flavor = "multi_thread")]
async fn senders_and_task_share_one_stream_without_tearing_a_frame() {
    let (outbox, mut client, reader) = connected().await;
    let task = {
        let outbox = outbox.clone();
        let mut shared = Io::Tcp(reader);
        tokio::spawn(std::future::poll_fn(move |cx| {
            match outbox.driver.poll_write(cx, &mut shared) {
                Poll::Ready(Ok(())) if outbox.driver.stage() == LifeStage::Ending => {
                    Poll::Ready(())
                }
                Poll::Ready(Err(error)) => panic!("{error}"),
                _ => Poll::Pending,
            }
        }))
    };
    const SENDERS: usize = 4;
    const EACH: usize = 500;
    let limits = limits(usize::MAX, usize::MAX, SlowConsumer::Close);
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let outbox = outbox.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    let frame = Frame::text(&format!("{sender}:{n}:{}", "x".repeat(n % 700)));
                    if n % 3 == 0 {
                        assert!(
                            outbox
                                .sender
                                .collect(&frame, &Manner::InTurn, &limits)
                                .pushed
                                .is_taken()
                        );
                        outbox.sender.flush();
                    } else {
                        assert!(
                            outbox
                                .sender
                                .send(&frame, &Manner::InTurn, &limits)
                                .is_taken()
                        );
                    }
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let reading = tokio::spawn(async move {
        let mut next = [0; SENDERS];
        let mut head = [0; 2];
        for _ in 0..SENDERS * EACH {
            client.read_exact(&mut head).await.unwrap();
            assert_eq!(head[0], 0x81, "a frame begins");
            let length = match head[1] {
                126 => client.read_u16().await.unwrap().into(),
                short => usize::from(short),
            };
            let mut text = vec![0; length];
            client.read_exact(&mut text).await.unwrap();
            let text = String::from_utf8(text).unwrap();
            let mut parts = text.split(':');
            let sender: usize = parts.next().unwrap().parse().unwrap();
            assert_eq!(parts.next().unwrap().parse(), Ok(next[sender]), "in order");
            next[sender] += 1;
        }
        next
    });
    for sender in senders {
        sender.await.unwrap();
    }
    assert_eq!(reading.await.unwrap(), [EACH; SENDERS]);
    outbox.sender.close(Close::new(1000, ""));
    task.await.unwrap();
}
