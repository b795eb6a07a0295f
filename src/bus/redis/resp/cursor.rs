//! What a reply means that is complete.

use super::{Bounds, Broken, Item, Items, MAX_FIELDS, MAX_LINE, MAX_REPLY, Reply, VALUES};

/// Longest channel name: a namespace, a kind and an encoded id.
const MAX_NAME: usize = 1024;
/// The list of modules, a module, its arguments.
const MAX_DEPTH: usize = 3;
/// The first reply and its length, if it is complete.
pub(super) fn parse(
    input: &[u8],
    limit: usize,
    bounds: Bounds,
) -> Result<Option<(usize, Reply<'_>)>, Broken> {
    let mut cursor = Cursor {
        input,
        at: 0,
        bounds,
    };
    let Some((kind, line)) = cursor.line()? else {
        return Ok(None);
    };
    let reply = match kind {
        b':' => Reply::Integer(number(line)?),
        b'+' | b'_' | b',' | b'#' | b'(' => Reply::Other,
        b'-' => Reply::Error(line),
        b'$' => match cursor.text(line, MAX_REPLY)? {
            Some(text) => Reply::Bulk(text),
            None => return Ok(None),
        },
        b'*' | b'>' => match cursor.push(number(line)?, limit)? {
            Some(reply) => reply,
            None => return Ok(None),
        },
        _ => return Err(Broken),
    };
    Ok(Some((cursor.at, reply)))
}

struct Cursor<'a> {
    input: &'a [u8],
    at: usize,
    bounds: Bounds,
}

impl<'a> Cursor<'a> {
    /// A line's first byte and the rest.
    fn line(&mut self) -> Result<Option<(u8, &'a [u8])>, Broken> {
        let rest = &self.input[self.at..];
        let Some(end) = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n') else {
            return if rest.len() < MAX_LINE {
                Ok(None)
            } else {
                Err(Broken)
            };
        };
        let line = rest[..end].strip_suffix(b"\r").ok_or(Broken)?;
        let (kind, line) = line.split_first().ok_or(Broken)?;
        self.at += end + 1;
        Ok(Some((*kind, line)))
    }

    /// The string whose length line was just read.
    fn text(&mut self, length: &[u8], limit: usize) -> Result<Option<&'a [u8]>, Broken> {
        let length = number(length)?;
        if length > limit {
            return Err(Broken);
        }
        let Some(text) = self.input[self.at..].get(..length + 2) else {
            return Ok(None);
        };
        self.at += length + 2;
        text.strip_suffix(b"\r\n").ok_or(Broken).map(Some)
    }

    fn bulk(&mut self, limit: usize) -> Result<Option<&'a [u8]>, Broken> {
        match self.line()? {
            Some((b'$', length)) => self.text(length, limit),
            // UNSUBSCRIBE of nothing answers a null channel.
            Some((b'_', _)) => Ok(Some(b"")),
            Some(_) => Err(Broken),
            None => Ok(None),
        }
    }

    /// The elements of an array or a push: a kind, and mostly a channel and something.
    fn push(&mut self, elements: usize, limit: usize) -> Result<Option<Reply<'a>>, Broken> {
        if self.bounds.arrays
            && let Some(array) = self.array(elements)?
        {
            return Ok(array);
        }
        let Some(kind) = self.bulk(MAX_NAME)? else {
            return Ok(None);
        };
        let Some(second) = self.bulk(MAX_NAME)? else {
            return Ok(None);
        };
        match (kind, elements) {
            (b"message" | b"smessage", 3) => self.message(second, limit),
            (b"subscribe" | b"ssubscribe" | b"unsubscribe" | b"sunsubscribe", 3) => {
                match self.line()? {
                    Some((b':', _)) => Ok(Some(match kind {
                        b"subscribe" | b"ssubscribe" => Reply::Subscribed { channel: second },
                        _ => Reply::Unsubscribed { channel: second },
                    })),
                    Some(_) => Err(Broken),
                    None => Ok(None),
                }
            }
            (b"pong", 2) => Ok(Some(Reply::Other)),
            (b"server", 4..=MAX_FIELDS) if elements.is_multiple_of(2) => {
                self.hello(elements / 2 - 1)
            }
            _ => Err(Broken),
        }
    }

    /// An array that a script answers, if it is no HELLO; incomplete or not.
    fn array(&mut self, elements: usize) -> Result<Option<Option<Reply<'a>>>, Broken> {
        if elements > self.bounds.elements {
            return Err(Broken);
        }
        let start = self.at;
        if self
            .bulk(MAX_NAME)
            .is_ok_and(|kind| kind == Some(b"server"))
        {
            self.at = start;
            return Ok(None);
        }
        self.at = start;
        for _ in 0..elements {
            if self.value(MAX_DEPTH)?.is_none() {
                return Ok(Some(None));
            }
        }
        let (rest, left) = (&self.input[start..self.at], elements);
        Ok(Some(Some(Reply::Array(Items { rest, left }))))
    }

    /// The fields of a HELLO after its first.
    fn hello(&mut self, fields: usize) -> Result<Option<Reply<'a>>, Broken> {
        let (mut role, mut mode) = (None, None);
        for _ in 0..fields {
            let Some(name) = self.bulk(MAX_NAME)? else {
                return Ok(None);
            };
            let start = self.at;
            if self.value(MAX_DEPTH)?.is_none() {
                return Ok(None);
            }
            let told = match name {
                b"role" => &mut role,
                b"mode" => &mut mode,
                _ => continue,
            };
            self.at = start;
            *told = self.bulk(MAX_NAME)?;
        }
        Ok(Some(Reply::Hello { role, mode }))
    }

    /// Skips a value of any kind.
    fn value(&mut self, depth: usize) -> Result<Option<()>, Broken> {
        if self.at > self.bounds.bytes {
            return Err(Broken);
        }
        let Some((kind, line)) = self.line()? else {
            return Ok(None);
        };
        match kind {
            b'$' if self.bounds.arrays && line == b"-1" => Ok(Some(())),
            b'$' => Ok(self.text(line, MAX_LINE)?.map(|_| ())),
            b'*' if depth > 0 => {
                let elements = number(line)?;
                if elements > self.bounds.elements {
                    return Err(Broken);
                }
                for _ in 0..elements {
                    if self.value(depth - 1)?.is_none() {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            }
            b'-' if self.bounds.arrays => Ok(Some(())),
            b':' | b'+' | b'_' | b'#' => Ok(Some(())),
            _ => Err(Broken),
        }
    }

    fn message(&mut self, channel: &'a [u8], limit: usize) -> Result<Option<Reply<'a>>, Broken> {
        let length = match self.line()? {
            Some((b'$', length)) => length,
            Some(_) => return Err(Broken),
            None => return Ok(None),
        };
        let size = number(length)?;
        if size > limit {
            self.at = self
                .at
                .checked_add(size)
                .and_then(|at| at.checked_add(2))
                .ok_or(Broken)?;
            return Ok(Some(Reply::Oversized));
        }
        let payload = self.text(length, limit)?;
        Ok(payload.map(|payload| Reply::Message { channel, payload }))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Item<'a>;

    fn next(&mut self) -> Option<Item<'a>> {
        self.left = self.left.checked_sub(1)?;
        let mut cursor = Cursor {
            input: self.rest,
            at: 0,
            bounds: VALUES,
        };
        let (kind, line) = cursor.line().ok()??;
        let item = match kind {
            b':' => number(line).map_or(Item::Other, Item::Integer),
            b'-' => Item::Error(line),
            b'$' if line != b"-1" => Item::Bulk(cursor.text(line, MAX_LINE).ok()??),
            _ => {
                cursor.at = 0;
                cursor.value(MAX_DEPTH).ok()??;
                Item::Other
            }
        };
        self.rest = &self.rest[cursor.at..];
        Some(item)
    }
}

pub(super) fn number(digits: &[u8]) -> Result<usize, Broken> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Broken);
    }
    std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse().ok())
        .ok_or(Broken)
}
