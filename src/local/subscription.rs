//! A socket that is read: a subscription, or one whose client takes what is said as the body of a response. It has no task
//! that drives it, so that whoever ends it sees to its end.
//!
//! That may be several at a time: who ends the socket wakes what gives its registration back, and its reader is dropped. One of
//! them unregisters it, and the registration itself stays until nobody reads, since by it the node keeps time for what is still to
//! be read:
//!
//! ```text
//!              something ends it                     it is unregistered
//!  Registered ------------------------> Taken ------------------------------> Unregistered
//!      |                                  |                                        |
//!      |  the reader is dropped           |  the reader is dropped                 |  the reader is dropped
//!      +--------------------------------> Nothing <--------------------------------+
//! ```
//! What is unregistered and finds *Nothing* is dropped by whoever did it. No lock is held while it is.

use std::mem::replace;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::admission::{Registration, Reservation};
use super::expiry::Expiry;
use super::registry::Member;
use super::socket::resuming::Telling;
use super::socket::{HandlerEnd, ReaderEnd, Registered, Sender, SocketEnds};
use crate::model::close::Close;
use crate::model::description::Description;

/// The reader of a socket. It stays watched over until this is dropped.
#[derive(Debug)]
pub(crate) struct Streamed {
    pub(crate) end: ReaderEnd,
    ending: Arc<SubscriptionEnding>,
}

/// Gives back what such a socket has when it is woken, which is when something ends the socket.
#[derive(Debug)]
pub(crate) struct SubscriptionEnding {
    socket: Sender,
    held: Mutex<HeldRegistration>,
    /// The handler, where there is one: in the place of its waker is this.
    handler: AtomicWaker,
}

#[derive(Debug)]
enum HeldRegistration {
    Registered(Box<Registration>),
    /// Somebody is just unregistering it.
    Taken,
    Unregistered(#[expect(dead_code, reason = "it is held")] Box<Registration>),
    /// Nobody reads any more.
    Nothing,
}

impl Reservation {
    /// From now on the socket is reachable from every node; what comes waits for its reader. It is so until something
    /// ends it, at the latest the end of the reader.
    pub(crate) fn subscribe(self, holding: Option<Telling>) -> Streamed {
        self.stream(None, None, false, holding).0
    }

    /// The socket is reachable from now on, by a reader that hands on to a client.
    pub(crate) fn stream_to_client(
        self,
        expiry: Option<Expiry>,
        description: Option<Description>,
        holding: Option<Telling>,
    ) -> (Streamed, HandlerEnd) {
        self.stream(expiry, description, true, holding)
    }

    fn stream(
        self,
        expiry: Option<Expiry>,
        description: Option<Description>,
        has_client: bool,
        holding: Option<Telling>,
    ) -> (Streamed, HandlerEnd) {
        let SocketEnds {
            sender,
            handler,
            driver,
            sweep,
        } = self.ends(expiry);
        if let Some(telling) = holding {
            sender.hold(telling);
        }
        let end = ReaderEnd::instead_of(driver, has_client);
        let registration = self.enter(&sender, sweep, description);
        let ending = Arc::new(SubscriptionEnding {
            socket: sender,
            held: Mutex::new(HeldRegistration::Registered(registration.into())),
            handler: AtomicWaker::new(),
        });
        end.when_ended(ending.clone().into());
        (Streamed { end, ending }, handler)
    }
}

impl Streamed {
    /// What waits in the place of the handler, and wakes it.
    pub(crate) fn ending(&self) -> Arc<SubscriptionEnding> {
        self.ending.clone()
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        if let Some(close) = self.end.close_reason() {
            self.ending.unregister(&close);
        }
        let held = replace(&mut *self.ending.held.lock(), HeldRegistration::Nothing);
        drop(held);
    }
}

impl SubscriptionEnding {
    /// Asks as the handler, in whose place this waits for the end.
    pub(crate) fn poll<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        ask: impl FnOnce(&mut Context<'_>) -> T,
    ) -> T {
        self.handler.register(cx.waker());
        ask(&mut Context::from_waker(&Waker::from(self.clone())))
    }

    /// The handler may say more.
    pub(crate) fn wake_handler(&self) {
        self.handler.wake();
    }

    /// Unreachable from now on. The node keeps time for it until nobody reads it any more.
    fn unregister(&self, close: &Close) {
        let Some(mut registration) = self.held.lock().take() else {
            return;
        };
        registration.unregister(close);
        let socket = self.socket.id();
        tracing::debug!(%socket, code = close.code.0, reason = close.reason.as_str(), "socket closed");
        let mut held = self.held.lock();
        if let HeldRegistration::Taken = *held {
            *held = HeldRegistration::Unregistered(registration);
            return;
        }
        drop(held);
        drop(registration);
    }
}

impl HeldRegistration {
    /// Takes the registration out to unregister it, once.
    fn take(&mut self) -> Option<Box<Registration>> {
        match replace(self, Self::Taken) {
            Self::Registered(registration) => Some(registration),
            other => {
                *self = other;
                None
            }
        }
    }
}

impl Wake for SubscriptionEnding {
    fn wake(self: Arc<Self>) {
        if let Some(close) = self.socket.close_reason() {
            self.unregister(&close);
        }
        self.handler.wake();
    }
}
