//! What is asked for, and what is answered: so many lists at a time that Redis serves others within milliseconds.

use std::collections::VecDeque;

use bytes::Bytes;
use redis::{Cmd, Value};

use super::super::command;
use super::READ;
use super::unnumbered;
use crate::bus::past::{Entry, ReadLimits, TopicPast};
use crate::model::history::Missed;
use crate::model::history::mark::{Clock, Mark, Number, Run};

/// Most lists of one call, …
const MOST: usize = 500;
/// … and most bytes of what it answers: then it is asked again for the rest.
const MOST_BYTES: usize = 1024 * 1024;
/// Most calls in one round trip.
const CALLS: usize = 16;

/// A list that is asked for, and for how long it keeps, in milliseconds.
#[derive(Debug, Clone)]
pub(in crate::bus::redis) struct Wanted {
    /// Its place among all that is asked for.
    pub(in crate::bus::redis) place: usize,
    pub(in crate::bus::redis) key: String,
    pub(in crate::bus::redis) keep: u64,
}

/// Some of one clock.
#[derive(Debug)]
pub(in crate::bus::redis) struct ReadCall {
    pub(in crate::bus::redis) clock: Clock,
    pub(in crate::bus::redis) clock_key: String,
    /// None, for whatever is kept.
    pub(in crate::bus::redis) since: Option<Mark>,
    /// Nobody knows since when.
    pub(in crate::bus::redis) is_lost: bool,
    pub(in crate::bus::redis) wanted: Vec<Wanted>,
}

/// All that is asked of one primary, and what it answered.
#[derive(Debug)]
pub(in crate::bus::redis) struct Readings {
    limits: ReadLimits,
    left: usize,
    calls: VecDeque<ReadCall>,
    pub(in crate::bus::redis) answers: Vec<(usize, TopicPast)>,
}

/// What no reply of the script looks like.
#[derive(Debug)]
pub(in crate::bus::redis) struct Unread;

impl Readings {
    pub(in crate::bus::redis) fn new(
        calls: impl IntoIterator<Item = ReadCall>,
        limits: ReadLimits,
    ) -> Self {
        let calls = calls.into_iter().flat_map(ReadCall::cut);
        Self {
            limits,
            left: limits.bytes,
            calls: calls.collect(),
            answers: Vec::new(),
        }
    }

    /// Some of what is to be asked yet; none, when all is answered.
    pub(in crate::bus::redis) fn next(&mut self) -> Vec<ReadCall> {
        let most = self.calls.len().min(CALLS);
        self.calls.drain(..most).collect()
    }

    /// What was asked is to be asked again.
    pub(in crate::bus::redis) fn again(&mut self, calls: Vec<ReadCall>) {
        calls
            .into_iter()
            .rev()
            .for_each(|call| self.calls.push_front(call));
    }

    pub(in crate::bus::redis) fn command(&self, call: &ReadCall, run: Run, evicts: bool) -> Cmd {
        let mut command = command::evalsha(&READ.digest);
        command.arg(call.wanted.len() + 1).arg(&call.clock_key);
        for wanted in &call.wanted {
            command.arg(&wanted.key);
        }
        let since = call.since.map(|since| since.number).unwrap_or_default();
        command
            .arg(run.as_str())
            .arg(match (&call.since, call.is_lost) {
                (_, true) => NOBODY,
                (Some(since), false) => since.run.as_str(),
                (None, false) => "",
            });
        command.arg(since.to_string()).arg(u8::from(evicts));
        command.arg(self.left.min(MOST_BYTES));
        for wanted in &call.wanted {
            command.arg(wanted.keep).arg(self.limits.entries);
        }
        command
    }

    /// The answer to a call, of which a part may be left.
    pub(in crate::bus::redis) fn answer(
        &mut self,
        mut call: ReadCall,
        run: Run,
        value: &Value,
    ) -> Result<(), Unread> {
        let Value::Array(values) = value else {
            return Err(Unread);
        };
        let [cut, Value::Int(answered), Value::Int(is_lost), told @ ..] = values.as_slice() else {
            return Err(Unread);
        };
        let number = text(cut).and_then(Number::read).ok_or(Unread)?;
        let answered = usize::try_from(*answered).map_err(|_| Unread)?;
        let rest = call.wanted.split_off(answered.min(call.wanted.len()));
        let news = match is_lost {
            0 => Ok(Vec::new()),
            _ => Err(Missed::Forgotten),
        };
        let first = self.answers.len();
        self.answers.extend(call.wanted.iter().map(|wanted| {
            let past = TopicPast {
                clock: call.clock,
                cut: Some(Mark { run, number }),
                entries: news.clone(),
            };
            (wanted.place, past)
        }));
        for one in told {
            let (place, entries) = self.read(one)?;
            let answer = self.answers[first..].get_mut(place).ok_or(Unread)?;
            answer.1.entries = entries;
        }
        if !rest.is_empty() {
            let wanted = rest;
            self.calls.push_front(ReadCall { wanted, ..call });
        }
        Ok(())
    }

    fn read(&mut self, one: &Value) -> Result<(usize, Result<Vec<Entry>, Missed>), Unread> {
        let Value::Array(fields) = one else {
            return Err(Unread);
        };
        let [Value::Int(place), Value::Int(proven), Value::Array(list)] = fields.as_slice() else {
            return Err(Unread);
        };
        let place = usize::try_from(*place - 1).map_err(|_| Unread)?;
        let missed = match proven {
            1 => {
                let bytes = list.iter().filter_map(text).map(<[u8]>::len).sum();
                match self.left.checked_sub(bytes) {
                    Some(left) => {
                        self.left = left;
                        return Ok((place, Ok(list.iter().filter_map(entry).collect())));
                    }
                    None => Missed::TooMany,
                }
            }
            2 => Missed::TooMany,
            3 => Missed::Late,
            _ => Missed::Forgotten,
        };
        Ok((place, Err(missed)))
    }
}

impl ReadCall {
    fn cut(mut self) -> Vec<Self> {
        let mut calls = Vec::new();
        while self.wanted.len() > MOST {
            let rest = self.wanted.split_off(MOST);
            let wanted = std::mem::replace(&mut self.wanted, rest);
            calls.push(Self {
                clock_key: self.clock_key.clone(),
                wanted,
                ..self
            });
        }
        calls.push(self);
        calls
    }
}

/// What another program put into the list is none.
fn entry(value: &Value) -> Option<Entry> {
    let (number, envelope) = unnumbered(text(value)?);
    Some(Entry {
        number: number?,
        envelope: Bytes::copy_from_slice(envelope),
    })
}

fn text(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(text) => Some(text),
        _ => None,
    }
}

/// No run is called so.
const NOBODY: &str = "------------";
