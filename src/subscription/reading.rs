//! How far the reader of a subscription is that goes on.

use crate::local::socket::resuming::PositionTold;
use crate::model::history::mark::Number;
use crate::model::history::position::Position;
use crate::model::history::{Missed, Resumed};
use crate::model::message::Message;
use crate::ws::frame::Frame;

/// Up to where a reader has taken what is kept: it may stop here, and whatever waits comes to whoever goes on.
#[derive(Debug)]
pub(super) struct ReadPosition {
    base: Position,
    number: Option<Number>,
    /// What came first, and was no position.
    first: Option<Message>,
}

impl ReadPosition {
    /// From there on, unless what came first says otherwise.
    pub(super) fn begin(
        since: Option<Position>,
        first: Option<Frame>,
        resumed: &mut Resumed,
    ) -> Self {
        let mut reading = Self {
            base: since.unwrap_or_else(Position::nothing),
            number: None,
            first: None,
        };
        let first = first.and_then(|frame| reading.heard(frame, resumed));
        reading.first = first.flatten();
        reading
    }

    pub(super) fn take_first(&mut self) -> Option<Message> {
        self.first.take()
    }

    /// What a frame says to the reader, if anything; nothing any more after the last one, the Close.
    pub(super) fn heard(&mut self, frame: Frame, resumed: &mut Resumed) -> Option<Option<Message>> {
        let (number, frame) = frame.unmarked();
        let message = frame.into_message()?;
        let own = match message.as_text().and_then(PositionTold::read) {
            None => None,
            Some(PositionTold::Text(text)) => Some(text.into()),
            Some(PositionTold::Position(position)) => {
                self.go_on_from(position);
                return Some(None);
            }
            Some(PositionTold::Missed { why, position }) => {
                self.go_on_from(position);
                *resumed = Missed::read(why).map_or(*resumed, Resumed::Missed);
                return Some(None);
            }
        };
        self.number = number.or(self.number);
        Some(Some(own.unwrap_or(message)))
    }

    pub(super) fn position(&self) -> Position {
        let numbered = self.number.map(|Number(number)| {
            let position = format!("{}~{number}", self.base);
            position.parse().unwrap_or_else(|_| Position::nothing())
        });
        numbered.unwrap_or_else(|| self.base.clone())
    }

    fn go_on_from(&mut self, position: &str) {
        self.base = position.parse().unwrap_or_else(|_| Position::nothing());
        self.number = None;
    }
}
