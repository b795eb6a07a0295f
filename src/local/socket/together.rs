//! A socket's driver and its handler, in one task of the runtime.
//!
//! ```text
//!                    the handler returns, or panics
//!   both ----------------------------------------------> the driver alone
//!     |                                                        |
//!     |  the stream is gone                                    |  the stream is gone
//!     v                                                        v
//!   the handler alone -----------------------------------> (the task ends)
//!                        the handler returns, or panics
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use tokio::task::unconstrained;

use super::{Driver, Registered, Sender};
use crate::local::registry::Member;

/// Resolves when the handler has returned and the stream is gone; each is dropped as soon as it is over. The handler
/// comes first: what it says leaves in the same turn. Kept by hand, since `join` and what it needs besides would
/// add to every socket.
#[pin_project::pin_project]
#[derive(Debug)]
pub(crate) struct Together<H, R: Registered> {
    #[pin]
    handler: Option<H>,
    driving: Driving<R>,
}

/// The driver, or what is left when that is over: a handler may outlive it.
#[derive(Debug)]
enum Driving<R: Registered> {
    Goes(Driver<R>),
    Over(Sender),
}

impl<R: Registered> Driving<R> {
    fn socket(&self) -> Sender {
        match self {
            Self::Goes(driver) => driver.sender(),
            Self::Over(socket) => socket.clone(),
        }
    }
}

impl<H: Future<Output = ()>, R: Registered + Unpin> Together<H, R> {
    /// Begins the handler; one that panics already is none.
    pub(crate) fn begin(handler: impl FnOnce() -> H, driver: Driver<R>) -> Self {
        let handler = catch_unwind(AssertUnwindSafe(handler));
        Self {
            handler: handler.map_err(|_| panicked(&driver.sender())).ok(),
            driving: Driving::Goes(driver),
        }
    }
}

impl<H: Future<Output = ()>, R: Registered + Unpin> Future for Together<H, R> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if let Some(handler) = this.handler.as_mut().as_pin_mut() {
            let polled = catch_unwind(AssertUnwindSafe(|| handler.poll(cx)));
            let polled = polled.unwrap_or_else(|_| {
                panicked(&this.driving.socket());
                Poll::Ready(())
            });
            if polled.is_ready() {
                this.handler.set(None);
            }
        }
        // A handler in the same task may use up tokio's budget every time, and would leave it none to read with.
        if let Driving::Goes(driver) = this.driving
            && pin!(unconstrained(&mut *driver)).poll(cx).is_ready()
        {
            *this.driving = Driving::Over(driver.sender());
        }
        match (this.handler.as_ref().get_ref(), this.driving) {
            (None, Driving::Over(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }
}

fn panicked(socket: &Sender) {
    let (socket, user) = (socket.id(), socket.user().as_str());
    tracing::error!(%socket, user, "the handler panicked: its socket is closed with 1011, the node goes on");
}
