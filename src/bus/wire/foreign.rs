//! What another program published.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Action, Envelope, Garbage, Lasting};
use crate::bus::scope::Scope;
use crate::model::form::Form;
use crate::model::manner::Manner;

/// Exactly one of the first four keys; further ones are ignored.
#[derive(Deserialize)]
struct Foreign<'a> {
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    json: Option<&'a RawValue>,
    #[serde(borrow)]
    base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    close: Option<ForeignClose<'a>>,
    #[serde(default)]
    uncompressed: bool,
}

#[derive(Deserialize)]
struct ForeignClose<'a> {
    code: u16,
    #[serde(borrow, default)]
    reason: Cow<'a, str>,
}

/// Reads what begins with `{`.
pub(super) fn decode(bytes: &[u8]) -> Result<Envelope<'_>, Garbage> {
    let Foreign {
        text,
        json,
        base64,
        close,
        uncompressed,
    } = serde_json::from_slice(bytes).map_err(|_| Garbage)?;
    let action = match (text, json, base64, close) {
        (Some(text), None, None, None) => Action::Text(text),
        (None, Some(json), None, None) => Action::Text(Cow::Borrowed(json.get())),
        (None, None, Some(base64), None) => {
            let bytes = BASE64_STANDARD.decode(&*base64);
            Action::Binary(bytes.map_err(|_| Garbage)?.into())
        }
        (None, None, None, Some(close)) => Action::Close {
            code: close.code,
            reason: close.reason,
        },
        _ => return Err(Garbage),
    };
    Ok(Envelope {
        origin: None,
        union: None,
        scope: Scope::default(),
        manner: Manner::InTurn,
        form: match uncompressed {
            true => Form::Plain,
            false => Form::Any,
        },
        lasting: Lasting::Unsaid,
        sent: None,
        action,
    })
}
