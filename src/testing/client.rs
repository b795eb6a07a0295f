//! The other end of a socket.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::codec::{FrameReader, masked};
use super::expect::{ClientEvent, in_time, unexpected};
use super::reading::ClientReading;
use crate::model::close::{Close, reason};
use crate::model::code::CloseCode;
use crate::model::history::Missed;
use crate::model::history::position::Position;
use crate::model::message::Message;
use crate::model::utf8::Utf8Bytes;
use crate::ws::frame::{Frame, Heard};

/// The client of one socket. It answers pings and a Close by itself, as a browser does, and keeps up to 1,024 messages
/// that the test has not read; then it reads no more, and is a slow consumer.
///
/// Every method that waits panics past the deadline ([`App::deadline`](super::App::deadline)).
///
/// Dropping it is a client that vanishes (1006); [`close`](Self::close) says goodbye.
pub struct Client {
    /// Shared with what answers pings.
    writer: Arc<Mutex<ClientWriter>>,
    events: mpsc::Receiver<ClientEvent>,
    /// What came before the first position.
    unread: VecDeque<ClientEvent>,
    ended: Option<Close>,
    /// None where it is told no positions.
    told: Option<ClientReading>,
    headers: HeaderMap,
    deadline: Duration,
    _reading: AbortOnDropHandle<()>,
}

impl Client {
    pub(super) fn new(
        upgraded: Upgraded,
        headers: HeaderMap,
        is_told: bool,
        deadline: Duration,
    ) -> Self {
        let (reading, stream) = split(TokioIo::new(upgraded));
        let is_over = false;
        let writer = Arc::new(Mutex::new(ClientWriter { stream, is_over }));
        let (sender, events) = mpsc::channel(UNREAD);
        let reading = tokio::spawn(read(reading, writer.clone(), sender));
        Self {
            writer,
            events,
            unread: VecDeque::new(),
            ended: None,
            told: is_told.then(ClientReading::default),
            headers,
            deadline,
            _reading: AbortOnDropHandle::new(reading),
        }
    }

    /// The headers of the answer to its handshake, such as `sec-websocket-protocol`.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Sends a message of either kind.
    ///
    /// # Panics
    /// When the socket has ended, or nobody reads the message.
    ///
    /// # Cancel safety
    /// Cancelled, the message may be there in part, and what follows makes no sense to the app: drop the client.
    #[track_caller]
    pub fn send(&mut self, message: impl Into<Message>) -> impl Future<Output = ()> + Send {
        let message = message.into();
        self.write(Frame::message(&message), Location::caller())
    }

    /// Sends a text.
    ///
    /// # Panics
    /// Those of [`send`](Self::send).
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    #[track_caller]
    pub fn send_text(&mut self, text: impl Into<Utf8Bytes>) -> impl Future<Output = ()> + Send {
        self.send(Message::text(text))
    }

    /// Sends a value, as JSON in a text message.
    ///
    /// # Panics
    /// Those of [`send`](Self::send), and when the value cannot be written as JSON.
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    #[track_caller]
    pub fn send_json<T: Serialize + ?Sized>(
        &mut self,
        value: &T,
    ) -> impl Future<Output = ()> + Send + use<'_, T> {
        let json = serde_json::to_string(value).expect("the value can be written as JSON");
        self.send(json)
    }

    /// Sends bytes in a binary message.
    ///
    /// # Panics
    /// Those of [`send`](Self::send).
    ///
    /// # Cancel safety
    /// That of [`send`](Self::send).
    #[track_caller]
    pub fn send_binary(&mut self, bytes: impl Into<Bytes>) -> impl Future<Output = ()> + Send {
        self.send(Message::binary(bytes))
    }

    /// The next message.
    ///
    /// # Panics
    /// When none comes, or the end.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still there.
    #[track_caller]
    pub fn recv(&mut self) -> impl Future<Output = Message> + Send {
        self.expect_message(Location::caller(), "a message")
    }

    /// The next message, which is a text.
    ///
    /// # Panics
    /// When none comes, or something else.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still there.
    #[track_caller]
    pub fn recv_text(&mut self) -> impl Future<Output = String> + Send {
        let (at, what) = (Location::caller(), "a text");
        async move {
            match self.expect_message(at, what).await {
                Message::Text(text) => text.into(),
                other => unexpected(at, what, &ClientEvent::Message(other)),
            }
        }
    }

    /// The next message, read as JSON.
    ///
    /// # Panics
    /// When none comes, or something else.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is either returned or still there.
    #[track_caller]
    pub fn recv_json<T: DeserializeOwned>(&mut self) -> impl Future<Output = T> + Send {
        let (at, what) = (Location::caller(), std::any::type_name::<T>());
        async move {
            let message = self.expect_message(at, what).await;
            match message.json() {
                Ok(value) => value,
                Err(error) => panic!(
                    "{at}: waited for {what}, and got {} ({error})",
                    ClientEvent::Message(message)
                ),
            }
        }
    }

    /// Waits so long, and nothing comes: neither a message nor the end. It takes all of that time; under paused time it
    /// costs nothing.
    ///
    /// # Panics
    /// With what came.
    ///
    /// # Cancel safety
    /// Cancel safe: what comes is still there.
    #[track_caller]
    pub fn expect_silence(&mut self, span: Duration) -> impl Future<Output = ()> + Send {
        let at = Location::caller();
        async move {
            if let Ok(came) = timeout(span, self.next()).await {
                unexpected(at, &format!("{span:?} of silence"), &came);
            }
        }
    }

    /// Waits for the end, as the client sees it: a Close frame without a code is 1005, a stream that ends without a
    /// frame 1006.
    ///
    /// # Panics
    /// When it does not come, or a message.
    ///
    /// # Cancel safety
    /// Cancel safe: a message is still there, and the end comes again.
    #[track_caller]
    pub fn closed(&mut self) -> impl Future<Output = Close> + Send {
        self.expect_end(Location::caller(), "the end")
    }

    /// Waits for the end, which has this code.
    ///
    /// # Panics
    /// When it does not come, has another code, or a message comes.
    ///
    /// # Cancel safety
    /// That of [`closed`](Self::closed).
    #[track_caller]
    pub fn closed_with(
        &mut self,
        code: impl Into<CloseCode>,
    ) -> impl Future<Output = Close> + Send {
        let (at, code) = (Location::caller(), code.into());
        async move {
            let what = format!("the end with {code}");
            let close = self.expect_end(at, &what).await;
            if close.code != code {
                unexpected(at, &what, &ClientEvent::Closed(close));
            }
            close
        }
    }

    /// Says goodbye with 1000, and waits for the app's answer; messages that come meanwhile are dropped.
    ///
    /// # Panics
    /// When the socket has ended already, or the answer does not come.
    ///
    /// # Cancel safety
    /// Cancelled, the goodbye may be said, or said in part, and messages that came meanwhile are gone: wait for
    /// [`closed`](Self::closed), or drop the client.
    #[track_caller]
    pub fn close(&mut self) -> impl Future<Output = Close> + Send {
        self.say_goodbye(reason::DONE, Location::caller())
    }

    /// Says goodbye with a code of the test's own, and waits for the app's answer; messages that come meanwhile are dropped.
    ///
    /// # Panics
    /// Those of [`close`](Self::close).
    ///
    /// # Cancel safety
    /// That of [`close`](Self::close).
    #[track_caller]
    pub fn close_with(&mut self, close: Close) -> impl Future<Output = Close> + Send {
        self.say_goodbye(close, Location::caller())
    }

    /// Up to where the test has read what is kept: for [`Handshake::since`](super::Handshake::since), at any node.
    ///
    /// # Panics
    /// When its handshake did not say [`resumes`](super::Handshake::resumes), or the app keeps nothing; and when no position is
    /// told, as by a node that is cut off.
    ///
    /// # Cancel safety
    /// Cancel safe: what comes before it is still there.
    #[track_caller]
    pub fn position(&mut self) -> impl Future<Output = Position> + Send {
        let (at, what) = (Location::caller(), "its position");
        async move {
            assert!(
                self.told.is_some(),
                "{at}: no position is told: let the handshake say `.resumes()`, and the cluster keep something (`user_history`)"
            );
            let deadline = self.deadline;
            in_time(at, deadline, what, self.told_position(at, what)).await
        }
    }

    /// Why it is not told what it missed, if that is so: as of what the test has read, its [`position`](Self::position) too.
    pub fn missed(&self) -> Option<Missed> {
        self.told.as_ref()?.missed
    }

    async fn told_position(&mut self, at: &'static Location<'static>, what: &str) -> Position {
        loop {
            let told = self.told.as_ref().and_then(ClientReading::position);
            match told {
                Some(position) => return position,
                None => match self.hear().await {
                    Some(ClientEvent::Message(message)) => {
                        self.unread.push_back(ClientEvent::Message(message))
                    }
                    Some(end) => unexpected(at, what, &end),
                    None => {}
                },
            }
        }
    }

    async fn say_goodbye(&mut self, close: Close, at: &'static Location<'static>) -> Close {
        self.write(Frame::close(&close), at).await;
        self.end(at, "the answer to the goodbye").await
    }

    async fn write(&mut self, frame: Frame, at: &'static Location<'static>) {
        let what = "the app to read what was sent";
        let writing = async { self.writer.lock().await.write(&frame).await };
        if in_time(at, self.deadline, what, writing).await.is_err() {
            let end = self.end(at, what).await;
            unexpected(at, what, &ClientEvent::Closed(end));
        }
    }

    /// The end, whatever comes before it.
    async fn end(&mut self, at: &'static Location<'static>, what: &str) -> Close {
        let deadline = self.deadline;
        let end = async {
            loop {
                match self.next().await {
                    ClientEvent::Message(_) => {}
                    ClientEvent::Closed(close) => return close,
                    broken @ ClientEvent::Broken(_) => unexpected(at, what, &broken),
                }
            }
        };
        in_time(at, deadline, what, end).await
    }

    async fn expect_message(&mut self, at: &'static Location<'static>, what: &str) -> Message {
        match in_time(at, self.deadline, what, self.next()).await {
            ClientEvent::Message(message) => message,
            end => unexpected(at, what, &end),
        }
    }

    async fn expect_end(&mut self, at: &'static Location<'static>, what: &str) -> Close {
        match in_time(at, self.deadline, what, self.next()).await {
            ClientEvent::Closed(close) => close,
            message => unexpected(at, what, &message),
        }
    }

    async fn next(&mut self) -> ClientEvent {
        if let Some(event) = self.unread.pop_front() {
            return event;
        }
        loop {
            if let Some(event) = self.hear().await {
                return event;
            }
        }
    }

    /// What comes next, unless that is only for who comes back. The end comes again and again.
    async fn hear(&mut self) -> Option<ClientEvent> {
        if let Some(close) = &self.ended {
            return Some(ClientEvent::Closed(close.clone()));
        }
        let event = self.events.recv().await;
        match (
            event.unwrap_or(ClientEvent::Closed(reason::VANISHED)),
            &mut self.told,
        ) {
            (ClientEvent::Message(message), Some(told)) => {
                told.heard(message).map(ClientEvent::Message)
            }
            (ClientEvent::Closed(close), _) => {
                self.ended = Some(close.clone());
                Some(ClientEvent::Closed(close))
            }
            (event, _) => Some(event),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("unread", &(self.unread.len() + self.events.len()))
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// The writing side, until a Close was said.
struct ClientWriter {
    stream: WriteHalf<TokioIo<Upgraded>>,
    is_over: bool,
}

impl ClientWriter {
    async fn write(&mut self, frame: &Frame) -> io::Result<()> {
        if self.is_over {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.is_over = frame.is_close();
        self.stream.write_all(&masked(frame)).await?;
        self.stream.flush().await
    }
}

/// Reads until the end, and answers what is to be answered.
async fn read(
    mut stream: ReadHalf<TokioIo<Upgraded>>,
    writer: Arc<Mutex<ClientWriter>>,
    events: mpsc::Sender<ClientEvent>,
) {
    let mut reader = FrameReader::new();
    loop {
        let event = match reader.next() {
            Err(mistake) => ClientEvent::Broken(mistake),
            Ok(Some(Heard::Message(message))) => ClientEvent::Message(message),
            Ok(Some(Heard::Ping(payload))) => {
                // A server that is gone needs no answer.
                let _ = writer.lock().await.write(&Frame::pong(&payload)).await;
                continue;
            }
            Ok(Some(Heard::Pong)) => continue,
            Ok(Some(Heard::Close(close))) => {
                let mut writer = writer.lock().await;
                let _ = writer.write(&Frame::close(&close)).await;
                let _ = writer.stream.shutdown().await;
                ClientEvent::Closed(close)
            }
            Ok(None) => match stream.read_buf(&mut reader.buffer).await {
                Ok(1..) => continue,
                Ok(0) | Err(_) => ClientEvent::Closed(reason::VANISHED),
            },
        };
        let goes_on = matches!(event, ClientEvent::Message(_));
        if events.send(event).await.is_err() || !goes_on {
            return;
        }
    }
}

/// So many messages wait for the test.
const UNREAD: usize = 1024;
