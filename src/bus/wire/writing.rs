//! How an envelope is written.

use bytes::Bytes;

use super::{
    ANSWER, Action, BINARY, CLOSE, CONTROL, EPHEMERAL, EXCEPT, EXCEPT_USERS, EXTENSION, LATEST,
    Lasting, NUMBER, PLAIN, PROBE, REPORT, SENT, TEXT, UNION, VERSION, VOLATILE, WATCH,
};
use crate::bus::scope::Scope;
use crate::model::form::Form;
use crate::model::id::NodeId;
use crate::model::manner::Manner;

/// Writes an envelope of what is not kept; the action must be one that nodes say.
#[cfg(any(test, feature = "redis", fuzzing, axum_cluster_internals))]
pub(crate) fn encode(
    origin: NodeId,
    union: Option<u64>,
    scope: &Scope<'_>,
    manner: &Manner,
    action: &Action<'_>,
) -> Bytes {
    let how = (Lasting::Unsaid, None, Form::Any);
    encode_as(how, origin, union, scope, manner, action)
}

/// Encodes also what is to be kept, or is said not to be, or says when it was sent, or is not to be compressed.
pub(crate) fn encode_as(
    (lasting, sent, form): (Lasting, Option<u64>, Form),
    origin: NodeId,
    union: Option<u64>,
    scope: &Scope<'_>,
    manner: &Manner,
    action: &Action<'_>,
) -> Bytes {
    let (kind, payload): (u8, &[u8]) = match action {
        Action::Probe | Action::Unknown => (PROBE, &[]),
        Action::Close { reason, .. } => (CLOSE, reason.as_bytes()),
        Action::Text(text) => (TEXT, text.as_bytes()),
        Action::Binary(bytes) => (BINARY, bytes),
        Action::Control(json) => (CONTROL, json),
        Action::Answer { part, .. } => (ANSWER, part),
        Action::Report(json) => (REPORT, json),
        Action::Watch(json) => (WATCH, json),
    };
    let flag = |present: bool, flag: u8| if present { flag } else { 0 };
    let flags = flag(union.is_some(), UNION)
        | flag(!scope.except.is_empty(), EXCEPT)
        | flag(!scope.except_users.is_empty(), EXCEPT_USERS)
        | flag(
            *manner != Manner::InTurn || sent.is_some() || form == Form::Plain,
            EXTENSION,
        )
        | flag(lasting == Lasting::Ephemeral, EPHEMERAL)
        | flag(matches!(lasting, Lasting::Kept(_)), NUMBER);

    // Exact for nearly all: with room to spare, turning it into `Bytes` would allocate once more.
    let head = match action {
        Action::Answer { .. } => 9,
        Action::Close { .. } => 2,
        _ => 0,
    };
    let number = match lasting {
        Lasting::Kept(number) => Some(number.to_be_bytes()),
        Lasting::Unsaid | Lasting::Ephemeral => None,
    };
    let kept = number.map_or(0, |number| number.len());
    let stated = sent.map_or(0, |_| 13);
    let mut out = Vec::with_capacity(11 + kept + stated + head + payload.len());
    out.extend([VERSION, kind, flags]);
    out.extend(origin.0.to_be_bytes());
    out.extend(number.into_iter().flatten());
    put_scope(&mut out, union, scope);
    put_extension(&mut out, manner, sent, form);
    match action {
        Action::Answer { id, more, .. } => {
            out.extend(id.to_be_bytes());
            out.push((*more).into());
        }
        Action::Close { code, .. } => out.extend(code.to_be_bytes()),
        _ => {}
    }
    out.extend(payload);
    out.into()
}

fn put_scope(out: &mut Vec<u8>, union: Option<u64>, scope: &Scope<'_>) {
    if let Some(id) = union {
        out.extend(id.to_be_bytes());
        put_names(out, scope.targets.iter().map(|topic| topic.as_str()));
    }
    if !scope.except.is_empty() {
        out.extend((scope.except.len() as u32).to_be_bytes());
        for socket in &scope.except {
            out.extend(socket.node.0.to_be_bytes());
            out.extend(socket.number.to_be_bytes());
        }
    }
    if !scope.except_users.is_empty() {
        put_names(out, scope.except_users.iter().copied());
    }
}

/// Names are checked to be at most 256 bytes (768 encoded) before they get here.
fn put_names<'a>(out: &mut Vec<u8>, names: impl ExactSizeIterator<Item = &'a str>) {
    out.extend((names.len() as u32).to_be_bytes());
    for name in names {
        out.extend((name.len() as u16).to_be_bytes());
        out.extend(name.as_bytes());
    }
}

/// Of fields whose bytes are checked to be few.
fn put_extension(out: &mut Vec<u8>, manner: &Manner, sent: Option<u64>, form: Form) {
    let manner: Option<(u8, &[u8])> = match manner {
        Manner::InTurn => None,
        Manner::Volatile => Some((VOLATILE, &[])),
        Manner::Latest(key) => Some((LATEST, key.as_bytes())),
    };
    let sent = sent.map(u64::to_be_bytes);
    let sent = sent.as_ref().map(|at| (SENT, at.as_slice()));
    let plain: Option<(u8, &[u8])> = match form {
        Form::Any => None,
        Form::Plain => Some((PLAIN, &[])),
    };
    let fields = [manner, sent, plain].into_iter().flatten();
    let length: usize = fields.clone().map(|(_, bytes)| bytes.len() + 3).sum();
    if length > 0 {
        out.extend((length as u16).to_be_bytes());
    }
    for (tag, bytes) in fields {
        out.push(tag);
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
    }
}
