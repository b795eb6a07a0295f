//! A socket without a client: it has no task, so that whoever ends it sees to its end.

use std::sync::Arc;
use std::task::Wake;

use parking_lot::Mutex;

use super::admission::{Registration, Reservation};
use super::registry::Member;
use super::socket::{Ends, ReaderEnd, Registered, Sender};

/// Gives back what a subscription has when it is woken, which is when something ends the socket.
struct Ending {
    socket: Sender,
    registration: Mutex<Option<Registration>>,
}

impl Reservation {
    /// From now on the socket is reachable from every node; what comes waits for its reader. It is so until something
    /// ends it, at the latest the end of the reader.
    pub(crate) fn subscribe(self) -> ReaderEnd {
        let Ends {
            sender,
            driver,
            sweep,
            ..
        } = self.ends(None);
        let reader = ReaderEnd::instead_of(driver);
        let registration = self.enter(&sender, sweep, None);
        let ending = Ending {
            socket: sender,
            registration: Mutex::new(Some(registration)),
        };
        reader.when_ended(Arc::new(ending).into());
        reader
    }
}

impl Wake for Ending {
    fn wake(self: Arc<Self>) {
        let Some(close) = self.socket.close_reason() else {
            return;
        };
        let registration = self.registration.lock().take();
        if let Some(mut registration) = registration {
            registration.unregister(&close);
            let socket = self.socket.id();
            tracing::debug!(%socket, code = close.code.0, reason = close.reason.as_str(), "socket closed");
        }
    }
}
