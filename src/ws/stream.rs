//! The engine of one socket: frames in, frames out. It stands on tungstenite; the rest of the crate
//! knows only this file's names.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Sink, Stream};
use hyper::upgrade::Upgraded;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message as Raw, Utf8Bytes as RawText};

use super::io::Io;
use crate::close::Close;
use crate::message::{Message, Utf8Bytes};

/// tungstenite allocates and zero-fills this much per socket: 128 KiB by default, 137 KB per idle
/// socket; 4 KiB costs 6.
const READ_BUFFER: usize = 4 * 1024;
/// Written out when this much is buffered. Allocated only when used.
const WRITE_BUFFER: usize = 64 * 1024;

/// What a client sent.
#[derive(Debug, PartialEq)]
pub(crate) enum Frame {
    Message(Message),
    /// A ping, already answered, or a pong: a sign of life.
    Alive,
    Close(Close),
}

/// One upgraded stream. After an error or the end, only [`poll_drain`](Self::poll_drain) reads.
#[derive(Debug)]
pub(crate) struct WsStream(WebSocketStream<Io>);

impl WsStream {
    pub(crate) async fn new(upgraded: Upgraded, max_message_size: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            .max_message_size(Some(max_message_size))
            .max_frame_size(Some(max_message_size));
        let (io, read) = Io::new(upgraded);
        let (read, role) = (read.into(), Role::Server);
        Self(WebSocketStream::from_partially_read(io, read, role, Some(config)).await)
    }

    /// The next frame; `None` when the stream ended. An error is what to close with.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, Close>>> {
        Poll::Ready(Some(match ready!(Pin::new(&mut self.0).poll_next(cx)) {
            None => return Poll::Ready(None),
            Some(Ok(raw)) => frame(raw),
            Some(Err(error)) => Err(closing(&error)),
        }))
    }

    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        Pin::new(&mut self.0)
            .poll_ready(cx)
            .map_err(|error| closing(&error))
    }

    /// Queues a message; [`poll_ready`](Self::poll_ready) must have said so.
    pub(crate) fn send(&mut self, message: Message) -> Result<(), Close> {
        let data = if message.as_text().is_some() {
            Data::Text
        } else {
            Data::Binary
        };
        // A raw frame: it was UTF-8 when it came, and needs no second look per recipient.
        self.start_send(Raw::Frame(RawFrame::message(
            message.into_bytes(),
            OpCode::Data(data),
            true,
        )))
    }

    pub(crate) fn ping(&mut self) -> Result<(), Close> {
        self.start_send(Raw::Ping(Default::default()))
    }

    /// Queues the Close frame; nothing may be sent after it.
    pub(crate) fn close(&mut self, close: &Close) -> Result<(), Close> {
        let frame = close.is_sendable().then(|| CloseFrame {
            code: close.code.into(),
            reason: RawText::from(close.wire_reason()),
        });
        self.start_send(Raw::Close(frame))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Close>> {
        Pin::new(&mut self.0)
            .poll_flush(cx)
            .map_err(|error| closing(&error))
    }

    /// Shuts the write side, then reads and forgets until the peer has shut its own: closing with
    /// unread bytes would reset the connection and could destroy the Close frame on its way.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let io = self.0.get_mut();
        if ready!(Pin::new(&mut *io).poll_shutdown(cx)).is_err() {
            return Poll::Ready(());
        }
        let mut scratch = [0; 1024];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Says goodbye to a client that never becomes a socket.
    pub(crate) async fn refuse(mut self, close: &Close) {
        if self.close(close).is_ok() && poll_fn(|cx| self.poll_flush(cx)).await.is_ok() {
            poll_fn(|cx| self.poll_drain(cx)).await;
        }
    }

    /// Bytes the peer's side accepted so far.
    pub(crate) fn written(&self) -> u64 {
        self.0.get_ref().written()
    }

    fn start_send(&mut self, raw: Raw) -> Result<(), Close> {
        Pin::new(&mut self.0)
            .start_send(raw)
            .map_err(|error| closing(&error))
    }
}

fn frame(raw: Raw) -> Result<Frame, Close> {
    Ok(match raw {
        Raw::Text(text) => {
            let text = Utf8Bytes::try_from(bytes::Bytes::from(text));
            Frame::Message(Message::Text(text.map_err(|_| invalid_text())?))
        }
        Raw::Binary(bytes) => Frame::Message(Message::Binary(bytes)),
        Raw::Ping(_) | Raw::Pong(_) | Raw::Frame(_) => Frame::Alive,
        Raw::Close(None) => Frame::Close(Close::from_static(Close::NO_STATUS, "")),
        Raw::Close(Some(close)) => {
            Frame::Close(Close::new(close.code.into(), close.reason.as_str()))
        }
    })
}

/// What a failure means for the socket (RFC 6455, section 7.4.1).
fn closing(error: &Error) -> Close {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Close::from_static(Close::TOO_BIG, "message too big")
        }
        Error::Utf8(_) => invalid_text(),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => vanished(),
        Error::Protocol(_) => Close::from_static(Close::PROTOCOL_ERROR, "protocol error"),
        _ => vanished(),
    }
}

fn invalid_text() -> Close {
    Close::from_static(Close::INVALID_DATA, "text is not UTF-8")
}

fn vanished() -> Close {
    Close::from_static(Close::ABNORMAL, "the connection was lost")
}
