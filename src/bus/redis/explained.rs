//! A stream that says why it ended before anything was heard: most of all the port speaks TLS where the URL does not.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What to do about a failure, and whether that came before the first word.
type Fix = fn(&io::Error, bool) -> Option<&'static str>;

pub(super) struct Explained<S> {
    stream: S,
    fix: Fix,
    is_unheard: bool,
    ending: Ending,
}

/// Why a stream ended. The redis crate has one word for it where several answers are awaited, or none yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Ending(Arc<OnceLock<String>>);

impl Ending {
    pub(super) fn told(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

const MAYBE_TLS: &str = "does this port speak TLS? Then it is named as rediss://, rediss-sentinel:// or rediss-cluster://, \
     sentinels alone by sentinelTls=true";

impl<S> Explained<S> {
    pub(super) fn plain(stream: S) -> Self {
        Self::by(stream, |error, is_unheard| {
            (is_unheard && is_end(error)).then_some(MAYBE_TLS)
        })
    }

    pub(super) fn by(stream: S, fix: Fix) -> Self {
        Self {
            stream,
            fix,
            is_unheard: true,
            ending: Ending::default(),
        }
    }

    pub(super) fn ending(&self) -> Ending {
        self.ending.clone()
    }

    fn explain(&self, error: io::Error) -> io::Error {
        let fix = (self.fix)(&error, self.is_unheard);
        let error = explain(error, fix);
        // What follows the first is a consequence.
        self.ending.0.get_or_init(|| error.to_string());
        error
    }
}

/// What failed, and what to do about it where that is known.
pub(super) fn explain(error: io::Error, fix: Option<&str>) -> io::Error {
    match fix {
        Some(fix) => io::Error::new(error.kind(), format!("{error} ({fix})")),
        None => error,
    }
}

/// Whether the other side ended it.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let ends = [
        BrokenPipe,
        ConnectionAborted,
        ConnectionReset,
        UnexpectedEof,
    ];
    ends.contains(&error.kind())
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        Poll::Ready(match read {
            Err(error) => Err(this.explain(error)),
            Ok(()) if buf.filled().len() > before => {
                this.is_unheard = false;
                Ok(())
            }
            Ok(()) if this.is_unheard && buf.remaining() > 0 => {
                let closed = "it closed the connection without a word";
                Err(this.explain(io::Error::new(io::ErrorKind::UnexpectedEof, closed)))
            }
            Ok(()) => Ok(()),
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf));
        Poll::Ready(written.map_err(|error| this.explain(error)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.stream).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| this.explain(error)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(written.map_err(|error| this.explain(error)))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
