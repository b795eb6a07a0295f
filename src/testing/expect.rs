//! What a test waits for, and what it is told when something else comes.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use tokio::time::timeout;

use crate::model::close::Close;
use crate::model::message::Message;

/// What a client gets.
#[derive(Debug, Clone)]
pub(super) enum ClientEvent {
    Message(Message),
    Closed(Close),
    /// What the app sent is no WebSocket.
    Broken(String),
}

/// As a failed test shows it: whole, since it is a test's.
impl fmt::Display for ClientEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(Message::Text(text)) => write!(f, "the text {text:?}"),
            Self::Message(Message::Binary(bytes)) => {
                write!(f, "{} bytes of binary: {bytes:?}", bytes.len())
            }
            Self::Closed(close) => write!(f, "the end: {close}"),
            Self::Broken(mistake) => write!(f, "frames that break RFC 6455: {mistake}"),
        }
    }
}

/// Waits, but not for ever.
pub(super) async fn in_time<T>(
    at: &Location<'_>,
    deadline: Duration,
    what: &str,
    event: impl Future<Output = T>,
) -> T {
    match timeout(deadline, event).await {
        Ok(event) => event,
        Err(_) => panic!("{at}: waited {deadline:?} for {what}, and nothing came"),
    }
}

/// Ends the test with what came instead.
pub(super) fn unexpected(at: &Location<'_>, what: &str, came: &ClientEvent) -> ! {
    panic!("{at}: waited for {what}, and got {came}")
}
