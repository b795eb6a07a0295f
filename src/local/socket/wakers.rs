//! Who waits for a socket, and who is to be woken once its lock is given back.

use std::mem::take;
use std::task::Waker;

use crate::waker::wake;

/// A wake is noted under the lock and done after it, since a waker is foreign code, which may come back here.
#[derive(Default)]
pub(super) struct Wakers {
    /// The socket's task, waiting for something to write or for the end.
    pub(super) driver: Option<Waker>,
    /// The handler, waiting for room or for the end.
    pub(super) handler: Option<Waker>,
    wakes_driver: bool,
    wakes_handler: bool,
}

impl Wakers {
    pub(super) fn wake_driver(&mut self) {
        self.wakes_driver = true;
    }

    pub(super) fn wake_handler(&mut self) {
        self.wakes_handler = true;
    }

    pub(super) fn wake_all(&mut self) {
        self.wake_driver();
        self.wake_handler();
    }

    /// To be taken before the lock is given back.
    pub(super) fn take_wakes(&mut self) -> Wakes {
        let driver = take(&mut self.wakes_driver).then(|| self.driver.take());
        let handler = take(&mut self.wakes_handler).then(|| self.handler.take());
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
