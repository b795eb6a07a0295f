//! How a stream of events is written: WHATWG HTML, section 9.2, from the server's side.
//!
//! Only browsers decide whether they come back, and `EventSource` always does after the end of a stream, but for an answer
//! that is none. So what a client is to do is told to it in its own terms: when it is to come back by `retry`, and that it is
//! not to by an id that it brings along and that is answered with 204.

use std::time::Duration;

use axum_core::body::Body;
use axum_core::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue};

use crate::model::close::Close;
use crate::model::message::Message;

/// The answer that carries a stream. Nobody keeps it: neither a cache, nor nginx before it hands it on.
pub(crate) fn response(stream: Body) -> Response {
    let mut response = Response::new(stream);
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// When a client is to come back: with `spread` from 0 to 1 they do not come all at once.
pub(crate) fn retry(spread: f64) -> Duration {
    SOONEST + SPREAD.mul_f64(spread)
}

/// Begins the stream. What it says holds for the client's next connection, also when nothing more comes, since the
/// process was killed.
pub(crate) fn write_opening(retry: Duration, out: &mut Vec<u8>) {
    write_retry(retry, out);
    write_field("id", CAME_BEFORE, out);
    end_event(out);
}

/// A text is read back with line feeds for all its ends of lines: there is no other way to write them.
pub(crate) fn write_message(message: &Message, id: Option<&str>, out: &mut Vec<u8>) {
    if let Some(id) = id {
        write_field("id", id, out);
    }
    match message {
        Message::Text(text) => write_data(text, out),
        Message::Binary(bytes) => {
            write_field("event", "binary", out);
            write_field("data", &BASE64_STANDARD.encode(bytes), out);
        }
    }
    end_event(out);
}

/// Where the client goes on if it comes back. No event: there are no data.
pub(crate) fn write_position(position: &str, out: &mut Vec<u8>) {
    write_field("id", position, out);
    end_event(out);
}

/// What it missed cannot be told.
pub(crate) fn write_missed(why: &str, position: &str, out: &mut Vec<u8>) {
    write_field("id", position, out);
    write_field("event", "missed", out);
    write_field("data", why, out);
    end_event(out);
}

/// Keeps proxies from taking silence for the end.
pub(crate) fn write_comment(out: &mut Vec<u8>) {
    out.extend(b":\n\n");
}

/// Why the stream ends, and what the client is to do then.
pub(crate) fn write_close(close: &Close, retry: Duration, out: &mut Vec<u8>) {
    match is_final(close) {
        true => write_field("id", &format!("{OVER}{}", close.code), out),
        false => write_retry(retry, out),
    }
    write_field("event", "close", out);
    let json = serde_json::to_string(close).expect("a number and a text can be written");
    write_field("data", &json, out);
    end_event(out);
}

/// Has the client come back later, and says nothing else.
pub(crate) fn write_later(retry: Duration, out: &mut Vec<u8>) {
    write_retry(retry, out);
    end_event(out);
}

/// Whether a client that brings this id was told not to come back.
pub(crate) fn is_over(last_event_id: &str) -> bool {
    last_event_id.starts_with(OVER)
}

/// Whether this id only says that a client had a stream before.
pub(crate) fn is_no_position(last_event_id: &str) -> bool {
    last_event_id == CAME_BEFORE
}

/// Whether whoever closed it meant to be done with the client: it would be sent away again.
fn is_final(close: &Close) -> bool {
    close.code == Close::NORMAL || (4400..4500).contains(&close.code.0)
}

fn write_data(text: &str, out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        write_field("data", &rest[..end], out);
        let length = if rest[end..].starts_with("\r\n") {
            2
        } else {
            1
        };
        rest = &rest[end + length..];
    }
    write_field("data", rest, out);
}

fn write_retry(retry: Duration, out: &mut Vec<u8>) {
    write_field("retry", &retry.as_millis().to_string(), out);
}

/// The space is no part of the value: one that begins with a space keeps it.
fn write_field(name: &str, value: &str, out: &mut Vec<u8>) {
    for part in [name, ": ", value, "\n"] {
        out.extend(part.as_bytes());
    }
}

fn end_event(out: &mut Vec<u8>) {
    out.push(b'\n');
}

const SOONEST: Duration = Duration::from_secs(1);
/// Browsers wait 3 s (Chromium) or 5 s (Firefox) by themselves, all of them as long.
const SPREAD: Duration = Duration::from_secs(4);
/// What a client brings along that had a stream before.
const CAME_BEFORE: &str = ".";
/// What begins the id of a client that is not to come back. No position begins so.
const OVER: char = '!';

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::close::reason;

    const RETRY: Duration = Duration::from_millis(2500);

    #[derive(Debug, PartialEq, Default)]
    struct Event {
        kind: String,
        data: String,
        id: String,
    }

    /// As a client reads it: sections 9.2.5 and 9.2.6.
    #[derive(Default)]
    struct Parser {
        events: Vec<Event>,
        retry: Option<u64>,
        id: String,
        pending: (String, String, Option<String>),
    }

    impl Parser {
        fn read(stream: &[u8]) -> Self {
            let mut parser = Self::default();
            let text = std::str::from_utf8(stream).unwrap();
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            let mut lines: Vec<&str> = text.split('\n').collect();
            assert_eq!(lines.pop(), Some(""), "the last line has its end");
            for line in lines {
                parser.line(line);
            }
            let unfinished = &parser.pending;
            assert!(unfinished.0.is_empty() && unfinished.1.is_empty());
            parser
        }

        fn line(&mut self, line: &str) {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            let (kind, data, id) = &mut self.pending;
            match name {
                "" if line.is_empty() => self.dispatch(),
                "" => {}
                "event" => *kind = value.into(),
                "data" => data.extend([value, "\n"]),
                "id" if !value.contains('\0') => *id = Some(value.into()),
                "retry" => self.retry = value.parse().ok().or(self.retry),
                _ => {}
            }
        }

        fn dispatch(&mut self) {
            let (kind, mut data, id) = std::mem::take(&mut self.pending);
            self.id = id.unwrap_or(std::mem::take(&mut self.id));
            if data.is_empty() {
                return;
            }
            data.pop();
            let id = self.id.clone();
            self.events.push(Event { kind, data, id });
        }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Parser {
        let mut out = Vec::new();
        write(&mut out);
        Parser::read(&out)
    }

    #[test]
    fn every_text_is_read_back_line_by_line() {
        for (text, read) in [
            ("", ""),
            ("hello", "hello"),
            (" a space: and a colon", " a space: and a colon"),
            ("a\nb\rc\r\nd\n\re", "a\nb\nc\nd\n\ne"),
            ("\n", "\n"),
            ("\r\n\r\n", "\n\n"),
            (
                "data: forged\n\nevent: close\n\n",
                "data: forged\n\nevent: close\n\n",
            ),
            ("\u{feff}marked", "\u{feff}marked"),
            ("{\"json\": 1}", "{\"json\": 1}"),
        ] {
            let parser = written(|out| write_message(&text.into(), None, out));
            let event = Event {
                data: read.into(),
                ..Event::default()
            };
            assert_eq!(parser.events, [event], "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_read_back_in_order(texts in prop::collection::vec("[a :\r\n\u{0}é]{0,9}|\\PC{0,9}", 0..9)) {
            let parser = written(|out| {
                write_opening(RETRY, out);
                for text in &texts {
                    write_message(&text.as_str().into(), None, out);
                    write_comment(out);
                }
            });
            let read: Vec<String> = parser.events.into_iter().map(|event| event.data).collect();
            let lines = |text: &String| text.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(read, texts.iter().map(lines).collect::<Vec<_>>());
        }

        #[test]
        fn bytes_come_as_base64(bytes: Vec<u8>) {
            let parser = written(|out| write_message(&bytes.clone().into(), None, out));
            let [event] = &parser.events[..] else { panic!("{:?}", parser.events) };
            prop_assert_eq!(event.kind.as_str(), "binary");
            prop_assert_eq!(BASE64_STANDARD.decode(&event.data).unwrap(), bytes);
        }
    }

    #[test]
    fn the_opening_is_no_event_and_says_when_to_come_back() {
        let parser = written(|out| write_opening(RETRY, out));
        assert_eq!(parser.events, []);
        assert_eq!((parser.retry, parser.id.as_str()), (Some(2500), "."));
        assert!(!is_over(&parser.id));
        let parser = written(write_comment);
        assert_eq!((parser.events, parser.retry), (Vec::new(), None));
    }

    #[test]
    fn a_client_comes_back_but_after_an_end_that_is_meant_for_good() {
        for (close, comes_back) in [
            (reason::RESTART, true),
            (reason::SLOW, true),
            (reason::PANICKED, true),
            (Close::new(4001, "logged out"), true),
            (reason::DONE, false),
            (reason::EXPIRED, false),
            (reason::REPLACED, false),
            (Close::new(4400, "two\nlines"), false),
        ] {
            let parser = written(|out| {
                write_opening(RETRY * 2, out);
                write_close(&close, RETRY, out);
            });
            let [event] = &parser.events[..] else {
                panic!("{:?}", parser.events)
            };
            assert_eq!(event.kind, "close");
            let told: serde_json::Value = serde_json::from_str(&event.data).unwrap();
            assert_eq!(told["code"], close.code.0);
            assert_eq!(told["reason"], &*close.reason);
            assert_eq!(is_over(&parser.id), !comes_back, "{close}");
            assert_eq!(parser.retry == Some(2500), comes_back, "{close}");
        }
    }
}
