//! How what came on a channel is read: foreign bytes, of which nothing is believed.

use std::borrow::Cow;

use super::{
    ANSWER, Action, BINARY, CLOSE, CONTROL, EPHEMERAL, EXCEPT, EXCEPT_USERS, EXTENSION, Envelope,
    Garbage, LATEST, Lasting, NUMBER, PLAIN, PROBE, REPORT, SENT, TEXT, UNION, VERSION, VOLATILE,
    WATCH, foreign,
};
use crate::bus::scope::Scope;
use crate::model::form::Form;
use crate::model::id::{NodeId, SocketId};
use crate::model::manner::Manner;
use crate::model::topic::TopicRef;

/// Reads what came on a channel. Allocates no more than a small multiple of the input.
pub(crate) fn decode(bytes: &[u8]) -> Result<Envelope<'_>, Garbage> {
    if bytes.first() == Some(&b'{') {
        return foreign::decode(bytes);
    }
    let mut input = EnvelopeCursor(bytes);
    if input.byte()? != VERSION {
        return Err(Garbage);
    }
    let (kind, flags) = (input.byte()?, input.byte()?);
    let known = UNION | EXCEPT | EXCEPT_USERS | EXTENSION | EPHEMERAL | NUMBER;
    if flags & !known != 0 || flags & EPHEMERAL != 0 && flags & NUMBER != 0 {
        return Err(Garbage);
    }
    let origin = Some(NodeId(input.u64()?));
    let lasting = match () {
        () if flags & NUMBER != 0 => Lasting::Kept(input.u64()?),
        () if flags & EPHEMERAL != 0 => Lasting::Ephemeral,
        () => Lasting::Unsaid,
    };
    let (union, scope) = scoped(&mut input, flags)?;
    let (mut manner, mut sent, mut form) = (Manner::InTurn, None, Form::Any);
    if flags & EXTENSION != 0 {
        let length = input.u16()?;
        (manner, sent, form) = extension(EnvelopeCursor(input.take(length.into())?))?;
    }
    let action = match kind {
        PROBE => Action::Probe,
        TEXT => Action::Text(Cow::Borrowed(text(input.0)?)),
        BINARY => Action::Binary(Cow::Borrowed(input.0)),
        CONTROL => Action::Control(input.0),
        ANSWER => Action::Answer {
            id: input.u64()?,
            more: input.byte()? != 0,
            part: input.0,
        },
        REPORT => Action::Report(input.0),
        WATCH => Action::Watch(input.0),
        CLOSE => Action::Close {
            code: input.u16()?,
            reason: Cow::Borrowed(text(input.0)?),
        },
        _ => Action::Unknown,
    };
    Ok(Envelope {
        origin,
        union,
        scope,
        manner,
        form,
        lasting,
        sent,
        action,
    })
}

/// The number of a union, if it is one, and whom it names.
fn scoped<'a>(
    input: &mut EnvelopeCursor<'a>,
    flags: u8,
) -> Result<(Option<u64>, Scope<'a>), Garbage> {
    let (mut union, mut scope) = (None, Scope::default());
    if flags & UNION != 0 {
        union = Some(input.u64()?);
        for _ in 0..input.u32()? {
            // On a topic of a kind that a later version knows, nobody is here.
            scope.targets.extend(TopicRef::of(input.name()?));
        }
    }
    if flags & EXCEPT != 0 {
        for _ in 0..input.u32()? {
            scope.except.push(SocketId {
                node: NodeId(input.u64()?),
                number: input.u64()?,
            });
        }
    }
    if flags & EXCEPT_USERS != 0 {
        for _ in 0..input.u32()? {
            scope.except_users.push(input.name()?);
        }
    }
    Ok((union, scope))
}

fn extension(mut fields: EnvelopeCursor<'_>) -> Result<(Manner, Option<u64>, Form), Garbage> {
    let (mut manner, mut sent, mut form) = (Manner::InTurn, None, Form::Any);
    while !fields.0.is_empty() {
        let (tag, length) = (fields.byte()?, fields.u16()?);
        let bytes = fields.take(length.into())?;
        match tag {
            VOLATILE => manner = Manner::Volatile,
            LATEST => manner = Manner::Latest(text(bytes)?.into()),
            SENT => sent = Some(EnvelopeCursor(bytes).u64()?),
            PLAIN => form = Form::Plain,
            _ => {}
        }
    }
    Ok((manner, sent, form))
}

fn text(bytes: &[u8]) -> Result<&str, Garbage> {
    std::str::from_utf8(bytes).map_err(|_| Garbage)
}

/// What is left to read.
struct EnvelopeCursor<'a>(&'a [u8]);

impl<'a> EnvelopeCursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Garbage> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Garbage)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Garbage> {
        self.take(N)?.try_into().map_err(|_| Garbage)
    }

    fn byte(&mut self) -> Result<u8, Garbage> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Garbage> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Garbage> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Garbage> {
        self.array().map(u64::from_be_bytes)
    }

    fn name(&mut self) -> Result<&'a str, Garbage> {
        let length = self.u16()?;
        text(self.take(length.into())?)
    }
}
