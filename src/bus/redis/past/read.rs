//! What is asked for, and what is answered: so many lists at a time that Redis serves others within milliseconds.
//!
//! A large union is in no topic's list, but in one of its clock, which is read with each of them.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use redis::{Cmd, Value};

use super::super::command;
use super::READ;
use super::unnumbered;
use crate::bus::past::{Entry, ReadLimits, TopicPast};
use crate::bus::redis::past::KeptList;
use crate::bus::wire;
use crate::model::history::Missed;
use crate::model::history::mark::{Clock, Mark, Number, Run};
use crate::model::topic::Topic;

/// Most lists of one call, …
const MOST: usize = 500;
/// … and most bytes of what it answers: then it is asked again for the rest.
const MOST_BYTES: usize = 1024 * 1024;
/// Most bytes of large unions that are looked at for one call, whomever they concern: Redis serves nobody else meanwhile.
const MOST_OF_UNIONS: usize = 4 * 1024 * 1024;
/// Most calls in one round trip.
const CALLS: usize = 16;

/// A list that is asked for, and for how long it keeps, in milliseconds.
#[derive(Debug, Clone)]
pub(in crate::bus::redis) struct WantedList {
    /// Its place among all that is asked for.
    pub(in crate::bus::redis) place: usize,
    pub(in crate::bus::redis) topic: Topic,
    pub(in crate::bus::redis) key: String,
    pub(in crate::bus::redis) keep: u64,
}

/// The list of the large unions of a clock: how many it keeps, for how long, how long it lives, and how many may be in it.
#[derive(Debug, Clone)]
pub(in crate::bus::redis) struct Unions {
    pub(in crate::bus::redis) key: String,
    pub(in crate::bus::redis) messages: usize,
    pub(in crate::bus::redis) keep: u64,
    pub(in crate::bus::redis) lifetime: u64,
    pub(in crate::bus::redis) most: usize,
}

impl Unions {
    pub(in crate::bus::redis) fn list(self) -> KeptList {
        KeptList {
            key: self.key,
            messages: self.messages,
            lifetime: self.lifetime,
        }
    }
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
    /// Where large unions are kept; none, where nothing is wanted but a cut.
    pub(in crate::bus::redis) unions: Option<Unions>,
    pub(in crate::bus::redis) wanted: Vec<WantedList>,
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
        let lists = call.wanted.len() + usize::from(call.unions.is_some());
        command.arg(lists + 1).arg(&call.clock_key);
        if let Some(unions) = &call.unions {
            command.arg(&unions.key);
        }
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
        command
            .arg(self.left.min(MOST_BYTES))
            .arg(self.left)
            .arg(MOST_OF_UNIONS);
        if let Some(unions) = &call.unions {
            command.arg(unions.keep).arg(unions.most);
        }
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
        let before = usize::from(call.unions.is_some());
        let answered = answered.checked_sub(before).ok_or(Unread)?;
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
        let mut unions = Ok(Vec::new());
        for one in told {
            let (place, proven, list) = read(one)?;
            let Some(place) = place.checked_sub(before) else {
                unions = proven.map(|()| list.iter().filter_map(entry).collect());
                continue;
            };
            let entries = proven.and_then(|()| self.take(list));
            let answer = self.answers[first..].get_mut(place).ok_or(Unread)?;
            answer.1.entries = entries;
        }
        self.add_unions(first, &call.wanted, unions);
        if !rest.is_empty() {
            let wanted = rest;
            self.calls.push_front(ReadCall { wanted, ..call });
        }
        Ok(())
    }

    /// What is in a list, if there is room for it.
    fn take(&mut self, list: &[Value]) -> Result<Vec<Entry>, Missed> {
        let bytes = list.iter().filter_map(text).map(<[u8]>::len).sum();
        self.left = self.left.checked_sub(bytes).ok_or(Missed::TooMany)?;
        Ok(list.iter().filter_map(entry).collect())
    }

    /// What these topics, answered from there on, have of large unions.
    fn add_unions(
        &mut self,
        first: usize,
        wanted: &[WantedList],
        unions: Result<Vec<Entry>, Missed>,
    ) {
        let unions = match unions {
            Ok(unions) => unions,
            Err(why) => {
                let told = self.answers[first..].iter_mut().map(|(_, past)| past);
                let whole = told.filter(|past| past.entries.is_ok());
                return whole.for_each(|past| past.entries = Err(why));
            }
        };
        for (names, union) in unions.iter().filter_map(named) {
            let room = self.left.checked_sub(union.envelope.len());
            let answers = self.answers[first..].iter_mut().zip(wanted);
            let meant = answers.filter(|(_, wanted)| names.contains(wanted.topic.as_str()));
            for ((_, past), _) in meant {
                let Ok(entries) = &mut past.entries else {
                    continue;
                };
                let Some(room) = room else {
                    past.entries = Err(Missed::TooMany);
                    continue;
                };
                let place = entries.partition_point(|it| it.number < union.number);
                entries.insert(place, union.clone());
                self.left = room;
            }
        }
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
                unions: self.unions.clone(),
                wanted,
                ..self
            });
        }
        calls.push(self);
        calls
    }
}

/// What is said of one list: its place, whether what is there is proven, and that.
type Listed<'a> = (usize, Result<(), Missed>, &'a [Value]);

fn read(one: &Value) -> Result<Listed<'_>, Unread> {
    let Value::Array(fields) = one else {
        return Err(Unread);
    };
    let [Value::Int(place), Value::Int(proven), Value::Array(list)] = fields.as_slice() else {
        return Err(Unread);
    };
    let place = usize::try_from(*place - 1).map_err(|_| Unread)?;
    let proven = match proven {
        1 => Ok(()),
        2 => Err(Missed::TooMany),
        3 => Err(Missed::Late),
        _ => Err(Missed::Forgotten),
    };
    Ok((place, proven, list))
}

/// The topics that a union names.
fn named(union: &Entry) -> Option<(HashSet<&str>, &Entry)> {
    let (_, stamped) = wire::formerly(&union.envelope).ok()?;
    let (_, envelope) = wire::unstamped(stamped).ok()?;
    let targets = wire::decode(envelope).ok()?.scope.targets;
    Some((
        targets.iter().map(|target| target.as_str()).collect(),
        union,
    ))
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
