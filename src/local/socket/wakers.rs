//! Who waits for a socket, and who is to be woken once its lock is given back.

use std::mem::take;
use std::task::Waker;

use crate::waker::wake;

#[derive(Default)]
pub(super) struct Wakers {
    /// The socket's task, waiting for something to write or for the end.
    pub(super) driver: Option<Waker>,
    /// The handler, waiting for room or for the end.
    pub(super) handler: Option<Waker>,
}

/// A wake is noted under the lock and done after it, since a waker is foreign code, which may come back here. Apart from
/// the wakers, so that it shares its place with other flags.
#[derive(Default)]
pub(super) struct Noted {
    driver: bool,
    handler: bool,
}

impl Noted {
    pub(super) fn wake_driver(&mut self) {
        self.driver = true;
    }

    pub(super) fn wake_handler(&mut self) {
        self.handler = true;
    }

    pub(super) fn wake_all(&mut self) {
        self.wake_driver();
        self.wake_handler();
    }

    /// To be taken before the lock is given back.
    pub(super) fn take(&mut self, wakers: &mut Wakers) -> Wakes {
        let driver = take(&mut self.driver).then(|| wakers.driver.take());
        let handler = take(&mut self.handler).then(|| wakers.handler.take());
        Wakes(driver.flatten(), handler.flatten())
    }
}

/// The wakers of those whom a change concerns.
#[must_use = "somebody waits for it"]
pub(super) struct Wakes(Option<Waker>, Option<Waker>);

impl Wakes {
    pub(super) fn wake(self) {
        wake(self.0);
        wake(self.1);
    }
}
