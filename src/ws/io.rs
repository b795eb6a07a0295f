//! The bytes of an upgraded request: the TCP stream itself where it can be had.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::frame::Frame;
use crate::model::close::Close;

/// What one read or one gathered write takes at most. One buffer a thread serves all its sockets, so an idle
/// socket has none.
const BUFFER_SIZE: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer. Whoever wants it meanwhile, from within `work`, gets one of his own.
pub(crate) fn lend_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    let mut buffer = BUFFER.take();
    buffer.resize(BUFFER_SIZE, 0);
    let done = work(&mut buffer);
    BUFFER.set(buffer);
    done
}

/// The reading side of an upgraded stream; over TLS and HTTP/2 both sides.
#[derive(Debug)]
pub(crate) enum Io {
    /// The writing side is the outbox's, where senders use it by themselves.
    Tcp(OwnedReadHalf),
    /// TLS, HTTP/2, or a server of another kind: only the socket's task writes.
    Other(Box<TokioIo<Upgraded>>),
}

/// How whoever has something to say writes to a stream that the senders and the task share. It never waits.
pub(crate) trait SharedWriter {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Lets the kernel give the connection up when nothing was acknowledged for so long.
    fn give_up_after(&self, patience: Duration);
}

impl SharedWriter for OwnedWriteHalf {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write(self, bytes)
    }

    /// `send` is cheaper than `writev` of one.
    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match slices {
            [one] => Self::try_write(self, one),
            many => Self::try_write_vectored(self, many),
        }
    }

    fn give_up_after(&self, patience: Duration) {
        // A failure makes a rare end late.
        #[cfg(target_os = "linux")]
        let _ = SockRef::from(self.as_ref()).set_tcp_user_timeout(Some(patience));
        #[cfg(not(target_os = "linux"))]
        let _ = patience;
    }
}

/// How the socket's task writes.
pub(crate) trait TaskWriter {
    /// Waits until a stream that senders share takes more.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Writes to a stream that nobody shares.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
}

impl TaskWriter for Io {
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.as_ref().poll_write_ready(cx),
            Self::Other(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Err(ErrorKind::NotConnected.into())),
            Self::Other(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }
}

/// What the end of a handshake leaves.
#[derive(Debug)]
pub(crate) struct OpenedIo {
    pub(crate) io: Io,
    pub(crate) writer: Option<OwnedWriteHalf>,
    /// What hyper had read beyond the handshake.
    pub(crate) early: Bytes,
}

impl OpenedIo {
    /// Takes the stream out of hyper. On TCP it sets `TCP_NODELAY`, which servers leave off: a message
    /// after a message would wait for the first one's acknowledgement, 40 ms on Linux.
    pub(crate) fn new(upgraded: Upgraded) -> Self {
        let parts =
            downcast::<TokioIo<TcpStream>>(upgraded).map(|parts| (parts.io, parts.read_buf));
        let parts = parts.or_else(|upgraded| {
            upgraded
                .downcast::<TokioIo<TcpStream>>()
                .map(|parts| (parts.io, parts.read_buf))
        });
        match parts {
            Ok((io, early)) => {
                let stream = io.into_inner();
                // A failure costs latency and nothing else.
                let _ = stream.set_nodelay(true);
                let (reader, writer) = stream.into_split();
                // Even an empty slice would pin hyper's buffer of 8 KiB.
                let early = if early.is_empty() {
                    Bytes::new()
                } else {
                    early
                };
                Self {
                    io: Io::Tcp(reader),
                    writer: Some(writer),
                    early,
                }
            }
            Err(upgraded) => {
                let io = Io::Other(Box::new(TokioIo::new(upgraded)));
                Self {
                    io,
                    writer: None,
                    early: Bytes::new(),
                }
            }
        }
    }

    /// Says goodbye to a client that never becomes a socket.
    pub(crate) async fn refuse(self, close: &Close) {
        let (frame, mut io) = (Frame::close(close), self.io);
        let said = match (&mut io, self.writer) {
            (_, Some(mut writer)) => writer.write_all(frame.as_bytes()).await,
            (Io::Other(stream), None) => match stream.write_all(frame.as_bytes()).await {
                Ok(()) => stream.shutdown().await,
                failed => failed,
            },
            (Io::Tcp(_), None) => Ok(()),
        };
        while said.is_ok()
            && poll_fn(|cx| io.poll_read(cx, |read| !read.is_empty()))
                .await
                .unwrap_or(false)
        {}
    }
}

impl Io {
    /// Reads once and hands on what came; nothing at the end of the stream.
    pub(crate) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut [u8]) -> T,
    ) -> Poll<io::Result<T>> {
        lend_buffer(|buffer| {
            let mut read = ReadBuf::new(buffer);
            ready!(match self {
                Self::Tcp(stream) => Pin::new(stream).poll_read(cx, &mut read),
                Self::Other(stream) => Pin::new(stream).poll_read(cx, &mut read),
            })?;
            Poll::Ready(Ok(take(read.filled_mut())))
        })
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Shuts the writing side; that of a TCP stream is shut by dropping it.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
