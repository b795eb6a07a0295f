//! What is heard on the bus: which of it counts, and for whom it is.

use std::sync::atomic::Ordering::Relaxed;

use serde::de::IgnoredAny;

use super::Uplink;
use crate::bus::inbound::{Amid, Content, Hearers, Inbound, Part, PeerWord};
use crate::bus::scope::Scope;
use crate::bus::wire::{self, Action, Envelope, ONE_COPY};
use crate::model::close::Close;
use crate::model::history::mark::Number;
use crate::model::id::NodeId;
use crate::model::partition::Partition;
use crate::model::topic::{TopicKind, TopicRef};

impl Uplink {
    /// Reads what came on a topic's channel.
    pub(crate) fn open<'a>(
        &self,
        topic: &'a str,
        number: Option<Number>,
        bytes: &'a [u8],
    ) -> Inbound<'a> {
        let read = wire::unstamped(bytes).and_then(|(era, bytes)| Ok((era, wire::decode(bytes)?)));
        let (Some(topic), Ok((era, envelope))) = (TopicRef::of(topic), read) else {
            return self.garbage();
        };
        // What is kept comes in the order of its numbers here, and what is read again may be of any era.
        if number.is_none() && self.is_late(topic, era, &envelope) {
            self.counters.bus_late.fetch_add(1, Relaxed);
            return Inbound::Nothing;
        }
        if envelope.origin == Some(self.node) {
            let came = self.comes_back(topic, number, &envelope);
            let inbound = match came.is_due {
                true => self.act_on(topic, number, envelope),
                false => echo(envelope.union, &envelope.action),
            };
            return match came.is_alone() {
                true => inbound,
                false => Inbound::Amid(Box::new(Amid {
                    before: came.before,
                    inbound,
                    after: came.after,
                })),
            };
        }
        if !self.histories.is_off() && number.is_none() {
            self.look_whether_kept(topic, &envelope);
        }
        self.act_on(topic, number, envelope)
    }

    /// What is to be done about what came.
    fn act_on<'a>(
        &self,
        topic: TopicRef<'a>,
        number: Option<Number>,
        envelope: Envelope<'a>,
    ) -> Inbound<'a> {
        let Envelope {
            origin,
            union,
            scope,
            manner,
            form,
            sent,
            action,
            ..
        } = envelope;
        let others = origin.filter(|origin| *origin != self.node);
        let sent = others.zip(sent);
        let sent = sent.and_then(|(from, at)| self.counters.measures.heard(from, at));
        // A union may travel there to sockets.
        let is_to_nodes = topic.kind() == TopicKind::Nodes && union.is_none();
        let copy_of = origin.zip(union.filter(|union| *union != ONE_COPY));
        match (origin, action) {
            (Some(from), Action::Control(json)) => self.read_word(from, topic, scope, json),
            (Some(from), Action::Answer { id, more, part }) => Inbound::Answer(Part {
                from,
                id,
                more,
                part,
            }),
            (Some(from), Action::Report(json)) => Inbound::Report(from, json),
            (Some(from), Action::Watch(json)) => Inbound::Watch(from, json),
            (_, Action::Text(_) | Action::Binary(_) | Action::Close { .. })
                if self.is_another_copy(copy_of) =>
            {
                match number {
                    Some(_) => Inbound::Copy(scope),
                    None => Inbound::Nothing,
                }
            }
            (_, Action::Text(text)) if is_to_nodes => Inbound::ToNodes(origin, Content::Text(text)),
            (_, Action::Binary(bytes)) if is_to_nodes => {
                Inbound::ToNodes(origin, Content::Binary(bytes))
            }
            (_, Action::Text(text)) => {
                let (content, scope) = (Content::Text(text), whom(topic, union, scope));
                Inbound::Message(scope, content, manner, form, sent, copy_of)
            }
            (_, Action::Binary(bytes)) => {
                let (content, scope) = (Content::Binary(bytes), whom(topic, union, scope));
                Inbound::Message(scope, content, manner, form, sent, copy_of)
            }
            (_, Action::Close { code, reason }) => {
                Inbound::Close(whom(topic, union, scope), Close::new(code, &*reason))
            }
            (
                None,
                Action::Control(_) | Action::Answer { .. } | Action::Report(_) | Action::Watch(_),
            ) => Inbound::Nothing,
            (_, Action::Probe | Action::Unknown) => Inbound::Nothing,
        }
    }

    fn read_word<'a>(
        &self,
        from: NodeId,
        topic: TopicRef<'_>,
        scope: Scope<'a>,
        json: &[u8],
    ) -> Inbound<'a> {
        let hearers = match topic == TopicRef::from(&self.own) {
            true => Hearers::ThisNode,
            false => Hearers::Others,
        };
        match serde_json::from_slice(json) {
            Ok(word) => Inbound::Peer(PeerWord {
                from,
                word,
                scope,
                hearers,
            }),
            // A word of a later version.
            Err(_) if serde_json::from_slice::<IgnoredAny>(json).is_ok() => Inbound::Nothing,
            Err(_) => self.garbage(),
        }
    }

    /// Whether it comes behind what its node published later.
    fn is_late(&self, topic: TopicRef<'_>, era: u32, envelope: &Envelope<'_>) -> bool {
        let Some(origin) = envelope.origin else {
            return false;
        };
        if era > 0 {
            self.has_moved.store(true, Relaxed);
        } else if !self.has_moved.load(Relaxed) {
            return false;
        }
        let partition = Partition::of(topic.as_str());
        self.eras.lock().is_behind(origin, partition, era)
    }

    /// Whether what is kept comes on its channel behind what its node published later: from a primary that has lost its place, and
    /// numbers all the same.
    pub(crate) fn comes_behind(&self, topic: &str, bytes: &[u8]) -> bool {
        let comes_behind = self.note_era(topic, bytes);
        self.counters
            .bus_late
            .fetch_add(u64::from(comes_behind), Relaxed);
        comes_behind
    }

    /// Of what is read again, too, it is known from then on that it came. Whether what it is behind did before.
    pub(crate) fn note_era(&self, topic: &str, bytes: &[u8]) -> bool {
        let Ok((era, bytes)) = wire::unstamped(bytes) else {
            return false;
        };
        if era == 0 && !self.has_moved.load(Relaxed) {
            return false;
        }
        let (topic, envelope) = (TopicRef::of(topic), wire::decode(bytes).ok());
        let is_late = |(topic, envelope)| self.is_late(topic, era, &envelope);
        topic.zip(envelope).is_some_and(is_late)
    }

    /// Whether a union was acted on already.
    fn is_another_copy(&self, of: Option<(NodeId, u64)>) -> bool {
        of.is_some_and(|(origin, union)| !self.unions.lock().insert(origin, union))
    }

    /// What came makes no sense.
    pub(crate) fn garbage<'a>(&self) -> Inbound<'a> {
        self.counters.bus_garbage.fetch_add(1, Relaxed);
        Inbound::Nothing
    }
}

/// Of what this node said itself: its own copy of a question proves that it hears the answers.
fn echo<'a>(number: Option<u64>, action: &Action<'_>) -> Inbound<'a> {
    match (action, number) {
        (Action::Control(_), Some(id)) => Inbound::Echo(id),
        _ => Inbound::Nothing,
    }
}

/// Where no union is named, whoever is on the topic.
pub(super) fn whom<'a>(topic: TopicRef<'a>, union: Option<u64>, mut scope: Scope<'a>) -> Scope<'a> {
    if union.is_none() {
        scope.targets.push(topic);
    }
    scope
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::bus::control::Control;
    use crate::bus::{Backend, BusSettings};
    use crate::model::form::Form;
    use crate::model::history::Histories;
    use crate::model::manner::Manner;
    use crate::model::topic::Topic;

    const US: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn uplink() -> Uplink {
        let settings = BusSettings::plain(Duration::from_secs(5));
        let bus = Backend::memory().open(US, settings);
        Uplink::new(
            US,
            bus.into(),
            Arc::default(),
            Histories::default(),
            Duration::from_secs(2),
        )
    }

    fn garbage(uplink: &Uplink) -> u64 {
        uplink.counters.bus_garbage.load(Relaxed)
    }

    fn scope<'a>(targets: &[&'a str]) -> Scope<'a> {
        Scope {
            targets: targets
                .iter()
                .filter_map(|name| TopicRef::of(name))
                .collect(),
            ..Scope::default()
        }
    }

    fn text(union: Option<u64>, named: &[&str]) -> Bytes {
        wire::encode(
            OTHER,
            union,
            &scope(named),
            &Manner::InTurn,
            &Action::Text("hi".into()),
        )
    }

    #[test]
    fn what_comes_on_a_topic_is_for_whoever_is_on_it() {
        let uplink = uplink();
        let hi = || Content::Text("hi".into());
        let (plain, foreign) = (text(None, &[]), r#"{"text":"hi"}"#);
        for bytes in [&plain, foreign.as_bytes()] {
            let opened = uplink.open("r:x", None, bytes);
            assert_eq!(
                opened,
                Inbound::Message(scope(&["r:x"]), hi(), Manner::InTurn, Form::Any, None, None)
            );
            let again = uplink.open("r:x", None, bytes);
            assert_eq!(again, opened, "it has no number");
        }
        let close = uplink.open("u:a", None, br#"{"close":{"code":4000}}"#);
        assert_eq!(close, Inbound::Close(scope(&["u:a"]), Close::new(4000, "")));
    }

    #[test]
    fn of_a_union_the_first_copy_counts() {
        let uplink = uplink();
        let union = text(Some(7), &["r:x", "u:a"]);
        let message = Inbound::Message(
            scope(&["r:x", "u:a"]),
            Content::Text("hi".into()),
            Manner::InTurn,
            Form::Any,
            None,
            Some((OTHER, 7)),
        );
        assert_eq!(uplink.open("r:x", None, &union), message);
        assert_eq!(uplink.open("u:a", None, &union), Inbound::Nothing);
        let numbered = uplink.open("u:a", Some(Number(8)), &union);
        assert_eq!(numbered, Inbound::Copy(scope(&["r:x", "u:a"])));
        uplink.forget(OTHER);
        assert_eq!(uplink.open("u:a", None, &union), message);
        let single = text(Some(ONE_COPY), &["s:x"]);
        for _ in 0..2 {
            assert_ne!(uplink.open("n:1", None, &single), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 0);
    }

    #[test]
    fn of_its_own_words_a_node_hears_that_a_question_came_back() {
        let uplink = uplink();
        let own = |union, action| wire::encode(US, union, &scope(&[]), &Manner::InTurn, &action);
        let ask = own(Some(5), Action::Control(br#"{"ping":{"id":5}}"#));
        assert_eq!(uplink.open("nodes", None, &ask), Inbound::Echo(5));
        for action in [
            Action::Text("hi".into()),
            Action::Probe,
            Action::Report(b"{}"),
            Action::Watch(b"{}"),
        ] {
            assert_eq!(
                uplink.open("all", None, &own(None, action)),
                Inbound::Nothing
            );
        }
        assert_eq!(garbage(&uplink), 0);
    }

    #[test]
    fn a_word_says_whether_others_hear_it() {
        let uplink = uplink();
        let bye = wire::encode(
            OTHER,
            Some(0),
            &scope(&[]),
            &Manner::InTurn,
            &Action::Control(br#""bye""#),
        );
        let own = Topic::node(US);
        for (topic, expected) in [
            (own.as_str(), Hearers::ThisNode),
            ("nodes", Hearers::Others),
            ("n:2", Hearers::Others),
        ] {
            let Inbound::Peer(said) = uplink.open(topic, None, &bye) else {
                panic!("{topic}");
            };
            assert_eq!(said.word, Control::Bye);
            assert_eq!((said.from, said.hearers), (OTHER, expected));
        }
    }

    #[test]
    fn what_comes_behind_what_was_published_later_is_dropped_and_counted() {
        let uplink = uplink();
        let plain = text(None, &[]);
        let era = |n| NonZeroU32::new(n).unwrap();
        let stamped = |n| [&wire::stamp(era(n))[..], &plain].concat();
        let is_heard = |bytes: &[u8], topic: &str| {
            let before = uplink.counters.bus_late.load(Relaxed);
            let is_heard = uplink.open(topic, None, bytes) != Inbound::Nothing;
            let late = uplink.counters.bus_late.load(Relaxed) - before;
            assert_eq!(late, u64::from(!is_heard));
            is_heard
        };
        assert!(is_heard(&plain, "r:x"));
        assert!(is_heard(&stamped(2), "r:x"));
        assert!(is_heard(&stamped(2), "r:x"));
        assert!(!is_heard(&stamped(1), "r:x"));
        assert!(!is_heard(&plain, "r:x"));
        assert!(is_heard(br#"{"text":"hi"}"#, "r:x"), "of no node");
        let is_late = |bytes: &[u8]| uplink.comes_behind("r:x", bytes);
        assert_eq!((is_late(&stamped(1)), is_late(&plain)), (true, true));
        assert!(!is_late(&stamped(2)));
        let number = Some(Number(7));
        assert_ne!(
            uplink.open("r:x", number, &stamped(1)),
            Inbound::Nothing,
            "read again, it has its place by its number"
        );
        assert_ne!(Partition::of("r:x"), Partition::of("r:y"), "control");
        assert!(is_heard(&plain, "r:y"), "it has not moved");
        assert_eq!(
            uplink.open("r:x", None, &wire::stamp(era(3))),
            Inbound::Nothing
        );
        assert_eq!(garbage(&uplink), 1);
    }

    #[test]
    fn garbage_is_counted_and_what_a_later_version_says_is_not() {
        let uplink = uplink();
        let control = |json: &'static [u8]| {
            wire::encode(
                OTHER,
                Some(1),
                &scope(&[]),
                &Manner::InTurn,
                &Action::Control(json),
            )
        };
        let mut later = text(None, &[]).to_vec();
        later[1] = 200;
        for bytes in [&control(br#"{"dance":{}}"#)[..], &later] {
            assert_eq!(uplink.open("nodes", None, bytes), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 0);
        for bytes in [&control(b"{")[..], b"", b"{}"] {
            assert_eq!(uplink.open("nodes", None, bytes), Inbound::Nothing);
        }
        assert_eq!(garbage(&uplink), 3);
    }
}
