//! How far a client is that may come back.

use crate::local::socket::resuming::PositionTold;
use crate::model::history::Missed;
use crate::model::history::position::Position;
use crate::model::message::Message;

/// What a page keeps that offers `resume.v1`.
#[derive(Debug, Default)]
pub(super) struct ClientReading {
    base: Option<Position>,
    /// Of the last message that had one.
    number: Option<String>,
    /// Of the message that comes next.
    coming: Option<String>,
    pub(super) missed: Option<Missed>,
}

impl ClientReading {
    /// What of this is the app's.
    pub(super) fn heard(&mut self, message: Message) -> Option<Message> {
        let own = match message.as_text().and_then(PositionTold::read) {
            None => None,
            Some(PositionTold::Position(position)) => {
                self.go_on_from(position);
                return None;
            }
            Some(PositionTold::Missed { why, position }) => {
                self.missed = Missed::read(why).or(self.missed);
                self.go_on_from(position);
                return None;
            }
            Some(PositionTold::Text(number)) if is_number(number) => {
                self.coming = Some(number.to_owned());
                return None;
            }
            Some(PositionTold::Text(text)) => Some(text.into()),
        };
        self.number = self.coming.take().or(self.number.take());
        Some(own.unwrap_or(message))
    }

    /// Up to the last message that was the app's; unknown before the first word of it.
    pub(super) fn position(&self) -> Option<Position> {
        let base = self.base.clone()?;
        match &self.number {
            Some(number) => format!("{base}~{number}").parse().ok(),
            None => Some(base),
        }
    }

    fn go_on_from(&mut self, position: &str) {
        self.base = position.parse().ok();
        self.number = None;
    }
}

/// A text of the app begins with U+0001 here.
fn is_number(said: &str) -> bool {
    said.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_where_the_last_message_was_and_not_the_coming_one() {
        let mut reading = ClientReading::default();
        let mut heard = |text: &str| {
            let own = reading.heard(text.into());
            let own = own.and_then(|own| own.as_text().map(str::to_owned));
            (own, reading.position().map(|position| position.to_string()))
        };
        let at = |position: &str| Some(position.to_owned());
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(heard("before"), (text("before"), None));
        assert_eq!(heard("\u{1}=abc"), (None, at("abc")));
        assert_eq!(heard("not kept"), (text("not kept"), at("abc")));
        assert_eq!(heard("\u{1}7"), (None, at("abc")));
        assert_eq!(heard("kept"), (text("kept"), at("abc~7")));
        assert_eq!(heard("\u{1}\u{1}7"), (text("\u{1}7"), at("abc~7")));
        assert_eq!(heard("\u{1}=def"), (None, at("def")));
        assert_eq!(heard("\u{1}! too-many ghi"), (None, at("ghi")));
        assert_eq!(reading.missed, Some(Missed::TooMany));
    }
}
