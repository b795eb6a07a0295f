//! The bytes of an upgraded request: the TCP stream itself where it can be had.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// An upgraded stream that counts what the peer accepted, which shows whether it makes progress.
#[derive(Debug)]
pub(crate) struct Io {
    stream: Stream,
    written: u64,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    /// TLS, HTTP/2, or a server of another kind.
    Other(TokioIo<Upgraded>),
}

impl Io {
    /// Takes the stream out of hyper, with what it had already read. On TCP it sets `TCP_NODELAY`,
    /// which servers leave off: a message after a message would wait for the first one's
    /// acknowledgement, 40 ms on Linux.
    pub(crate) fn new(upgraded: Upgraded) -> (Self, Bytes) {
        let parts =
            downcast::<TokioIo<TcpStream>>(upgraded).map(|parts| (parts.io, parts.read_buf));
        let parts = parts.or_else(|upgraded| {
            upgraded
                .downcast::<TokioIo<TcpStream>>()
                .map(|parts| (parts.io, parts.read_buf))
        });
        let (stream, read) = match parts {
            Ok((io, read)) => {
                let stream = io.into_inner();
                // A failure costs latency and nothing else.
                let _ = stream.set_nodelay(true);
                (Stream::Tcp(stream), read)
            }
            Err(upgraded) => (Stream::Other(TokioIo::new(upgraded)), Bytes::new()),
        };
        (Self { stream, written: 0 }, read)
    }

    /// Bytes the peer's side accepted so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Other(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = match &mut this.stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Other(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        if let Poll::Ready(Ok(count)) = written {
            this.written += count as u64;
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Other(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Other(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
