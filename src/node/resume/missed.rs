//! What a client that comes back missed, and what it is told: by the position that it brought, and by what is read of its
//! topics.
//!
//! ```text
//!  position --> whose is it? --> what is to be read --> what was read: of each topic that it was on, what it does not know
//!                  |                                        |
//!                  +--> foreign: read is only up to where   +--> all of it in order, or why not all
//!                       it goes on
//! ```

use std::collections::HashSet;

use bytes::Bytes;

use crate::bus::past::{Entry, Past, ReadLimits, TopicPast};
use crate::bus::uplink::{read_entry, union_of};
use crate::bus::wire;
use crate::local::socket::resuming::{Found, MissedEntry};
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::history::token::{Key, Parts};
use crate::model::history::{Histories, Missed, Resumed};
use crate::model::id::SocketId;
use crate::model::topic::Topic;

/// Most that is sent again at once; for more a client is quicker to fetch its state.
pub(super) const MOST: ReadLimits = ReadLimits {
    entries: 512,
    bytes: 1024 * 1024,
};
/// Nothing of it is wanted but the cut.
pub(super) const CUT: ReadLimits = ReadLimits { entries: 1, ..MOST };

/// What is due, in order.
type DueFrames = Vec<MissedEntry>;

/// Whose socket it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct MissedClient<'a> {
    pub(super) socket: SocketId,
    /// What its socket was before.
    pub(super) formerly: Option<SocketId>,
    pub(super) user: &'a str,
}

/// How one client goes on.
#[derive(Debug)]
pub(super) struct Resume<'a> {
    key: Key,
    /// Its user's, everybody's and those of its rooms, in this order.
    topics: Vec<Topic>,
    /// What its position says, if it has come with one.
    brought: Option<Result<Parts, Missed>>,
    histories: &'a Histories,
}

impl<'a> Resume<'a> {
    pub(super) fn new(
        key: Key,
        own: Topic,
        rooms: &[Topic],
        brought: Option<Result<Parts, Missed>>,
        histories: &'a Histories,
    ) -> Self {
        let user = key.tag(own.as_str());
        let is_another = |parts: &Parts| parts.user.is_some_and(|other| other != user);
        let brought = brought.map(|parts| match parts {
            Ok(parts) if is_another(&parts) => Err(Missed::Foreign),
            parts => parts,
        });
        let topics = [own, Topic::all()].into_iter();
        Self {
            key,
            topics: topics.chain(rooms.iter().cloned()).collect(),
            brought,
            histories,
        }
    }

    /// What is to be read: of these topics what came since, or only how far they have come.
    pub(super) fn reads(&self) -> (&[Topic], Option<&Marks>, ReadLimits) {
        match &self.brought {
            Some(Ok(parts)) => (&self.topics, Some(&parts.marks), MOST),
            Some(Err(_)) | None => (&self.topics, None, CUT),
        }
    }

    /// What comes of what was read.
    pub(super) fn find(self, socket: SocketId, user: &str, past: &Past) -> Found {
        let missed = match &self.brought {
            Some(Ok(parts)) => {
                let formerly = parts.socket;
                let client = MissedClient {
                    socket,
                    formerly,
                    user,
                };
                self.missed(client, parts, past)
            }
            Some(Err(why)) => Err(*why),
            None => Ok(Vec::new()),
        };
        let tags = self.topics.iter().map(|topic| self.key.tag(topic.as_str()));
        let tags: Vec<_> = tags.collect();
        Found {
            key: self.key,
            is_unkept: self.was_unkept(),
            brought: self.brought.and_then(Result::ok).unwrap_or_default(),
            missed,
            cuts: past.cuts(),
            user: tags[0],
            rooms: tags[ROOMS..].to_vec(),
        }
    }

    /// Whether it was in one of these rooms, and nothing is kept of rooms.
    fn was_unkept(&self) -> bool {
        let Some(Ok(parts)) = &self.brought else {
            return false;
        };
        let rooms = self.topics.iter().skip(ROOMS);
        let mut unkept = rooms.filter(|room| self.histories.of(room.kind()).is_none());
        unkept.any(|room| parts.rooms.contains(&self.key.tag(room.as_str())))
    }

    /// What came to its topics since, in order and once; of a room only if it was in it.
    fn missed(
        &self,
        client: MissedClient<'_>,
        parts: &Parts,
        past: &Past,
    ) -> Result<DueFrames, Missed> {
        if parts.has_more_rooms {
            return Err(Missed::TooMany);
        }
        let mut missed = Vec::new();
        for (n, (topic, past)) in self.topics.iter().zip(&past.topics).enumerate() {
            let was_on = n < ROOMS || parts.rooms.contains(&self.key.tag(topic.as_str()));
            if !was_on || self.histories.of(topic.kind()).is_none() {
                continue;
            }
            let since = parts.marks.of(past.clock);
            if is_ahead(since, past.cut) {
                return Err(Missed::Foreign);
            }
            missed.extend(unknown(past, since)?);
        }
        in_order(client, missed)
    }
}

/// What of a room that it was in came since: when it joins that again.
pub(super) fn missed_in(
    client: MissedClient<'_>,
    past: &Past,
    since: &Marks,
) -> Result<DueFrames, Missed> {
    match past.topics.first() {
        Some(past) => in_order(client, unknown(past, since.of(past.clock))?.collect()),
        None => Ok(Vec::new()),
    }
}

/// What the app is told of a client for which this was found.
pub(super) fn told(came_back: bool, found: &Found) -> Resumed {
    match (came_back, &found.missed) {
        (false, _) => Resumed::New,
        (true, Ok(_)) if found.is_unkept => Resumed::Missed(Missed::Forgotten),
        (true, Ok(entries)) => Resumed::Complete {
            replayed: entries.len(),
        },
        (true, Err(why)) => Resumed::Missed(*why),
    }
}

/// What the app is told while nobody knows.
pub(super) fn told_meanwhile(came_back: bool) -> Resumed {
    match came_back {
        true => Resumed::Later,
        false => Resumed::New,
    }
}

/// Without what is kept again and came before it was lost.
fn unknown(
    past: &TopicPast,
    since: Option<Mark>,
) -> Result<impl Iterator<Item = (Clock, Number, &Bytes)>, Missed> {
    let is_known = move |entry: &&Entry| {
        let formerly = wire::formerly(&entry.envelope);
        since.is_some_and(|since| formerly.is_ok_and(|(marks, _)| since.covers(&marks)))
    };
    let entries = past.entries.as_ref().map_err(|why| *why)?;
    let unknown = entries.iter().filter(move |entry| !is_known(entry));
    Ok(unknown.map(|entry| (past.clock, entry.number, &entry.envelope)))
}

/// A number that was not given yet.
fn is_ahead(since: Option<Mark>, cut: Option<Mark>) -> bool {
    since
        .zip(cut)
        .is_some_and(|(since, cut)| since.run == cut.run && since.number > cut.number)
}

/// As the socket gets it: each once, by the numbers, without that from which it is excepted.
fn in_order(
    client: MissedClient<'_>,
    mut entries: Vec<(Clock, Number, &Bytes)>,
) -> Result<DueFrames, Missed> {
    entries.sort_by_key(|(clock, number, _)| (*number, *clock));
    let (mut seen, mut unions) = (HashSet::new(), HashSet::new());
    entries.retain(|(clock, number, envelope)| {
        // Over several clocks it has a number of each.
        let is_first = union_of(envelope).is_none_or(|union| unions.insert(union));
        seen.insert((*clock, *number)) && is_first
    });
    let bytes: usize = entries.iter().map(|(.., envelope)| envelope.len()).sum();
    if entries.len() > MOST.entries || bytes > MOST.bytes {
        return Err(Missed::TooMany);
    }
    let meant = entries.into_iter().filter_map(|(clock, number, envelope)| {
        let (scope, content) = read_entry(envelope)?;
        let mut sockets = [Some(client.socket), client.formerly].into_iter().flatten();
        let is_excepted = sockets.any(|id| scope.except.contains(&id))
            || scope.except_users.contains(&client.user);
        (!is_excepted).then(|| MissedEntry {
            clock,
            number,
            union: union_of(envelope),
            frame: content.frame(),
        })
    });
    Ok(meant.collect())
}

/// From here on they are rooms.
const ROOMS: usize = 2;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::bus::scope::Scope;
    use crate::bus::wire::{Action, Lasting};
    use crate::model::form::Form;
    use crate::model::history::History;
    use crate::model::history::mark::Run;
    use crate::model::id::NodeId;
    use crate::model::manner::Manner;

    const OLD: SocketId = socket(1);
    const NEW: SocketId = socket(2);
    const EVERYTHING: Histories = {
        let some = Some(History {
            messages: 100,
            keep: std::time::Duration::from_secs(60),
        });
        Histories {
            user: some,
            room: some,
            all: some,
        }
    };

    const fn socket(number: u64) -> SocketId {
        let node = NodeId(1);
        SocketId { node, number }
    }

    fn key() -> Key {
        Key::of([7; Key::BYTES])
    }

    fn alice() -> Topic {
        Topic::user(&"alice".into()).unwrap()
    }

    fn room(name: &str) -> Topic {
        Topic::room(name).unwrap()
    }

    fn mark(number: u64) -> Mark {
        let run = Run::of("aaaaaaaaaaaa").unwrap();
        let number = Number(number);
        Mark { run, number }
    }

    fn written(text: &str, scope: &Scope<'_>) -> Bytes {
        let how = (Lasting::Kept(1), None, Form::Any);
        let action = Action::Text(text.into());
        wire::encode_as(how, NodeId(9), None, scope, &Manner::InTurn, &action)
    }

    fn entry(number: u64, envelope: Bytes) -> Entry {
        let number = Number(number);
        Entry { number, envelope }
    }

    fn plain(number: u64) -> Entry {
        entry(number, written(&number.to_string(), &Scope::default()))
    }

    /// What came to a topic of this clock up to here.
    fn came(clock: u16, cut: u64, entries: Vec<Entry>) -> TopicPast {
        TopicPast {
            clock: Clock(clock),
            cut: Some(mark(cut)),
            entries: Ok(entries),
        }
    }

    /// What a client brings that has heard so far, on the first clock.
    fn heard(number: u64, rooms: &[&str]) -> Parts {
        Parts {
            marks: [(Clock(0), mark(number))].into_iter().collect(),
            socket: Some(OLD),
            user: Some(key().tag(alice().as_str())),
            rooms: rooms
                .iter()
                .map(|name| key().tag(room(name).as_str()))
                .collect(),
            ..Parts::default()
        }
    }

    fn resume<'a>(
        rooms: &[Topic],
        brought: Option<Result<Parts, Missed>>,
        histories: &'a Histories,
    ) -> Resume<'a> {
        Resume::new(key(), alice(), rooms, brought, histories)
    }

    fn found(rooms: &[Topic], parts: Parts, topics: Vec<TopicPast>) -> Found {
        resume(rooms, Some(Ok(parts)), &EVERYTHING).find(NEW, "alice", &Past { topics })
    }

    fn numbers(missed: &Result<DueFrames, Missed>) -> Vec<u64> {
        let missed = missed.as_ref().expect("it is told");
        missed.iter().map(|entry| entry.number.0).collect()
    }

    fn nothing() -> TopicPast {
        came(0, 9, Vec::new())
    }

    #[test]
    fn who_comes_anew_misses_nothing_and_goes_on_from_the_cut() {
        let new = resume(&[room("tea")], None, &EVERYTHING);
        let (topics, since, limits) = new.reads();
        assert_eq!(topics, [alice(), Topic::all(), room("tea")]);
        assert_eq!((since, limits), (None, CUT));
        let topics = vec![came(0, 9, vec![plain(8)]), nothing(), nothing()];
        let found = new.find(NEW, "alice", &Past { topics });
        assert_eq!(numbers(&found.missed), [0; 0]);
        assert_eq!(found.cuts.of(Clock(0)), Some(mark(9)));
        assert_eq!(found.brought, Parts::default());
        assert_eq!(found.rooms, [key().tag(room("tea").as_str())]);
        assert_eq!(told(false, &found), Resumed::New);
        assert_eq!(told_meanwhile(false), Resumed::New);
        assert_eq!(told_meanwhile(true), Resumed::Later);
    }

    #[test]
    fn a_position_of_another_user_is_foreign_and_nothing_but_the_cut_is_read() {
        let mut parts = heard(5, &[]);
        let own = resume(&[], Some(Ok(parts.clone())), &EVERYTHING);
        assert_eq!(own.reads().1, Some(&parts.marks), "control");
        assert_eq!(own.reads().2, MOST);
        parts.user = Some(key().tag("u:bob"));
        for brought in [Ok(parts), Err(Missed::Foreign)] {
            let resume = resume(&[], Some(brought), &EVERYTHING);
            assert_eq!(resume.reads().1, None);
            let topics = vec![came(0, 9, vec![plain(8)]), nothing()];
            let found = resume.find(NEW, "alice", &Past { topics });
            assert_eq!(told(true, &found), Resumed::Missed(Missed::Foreign));
            assert_eq!(found.brought, Parts::default(), "nothing of it counts");
        }
    }

    #[test]
    fn a_position_that_is_ahead_of_its_run_is_foreign() {
        let topics = || vec![came(0, 9, vec![plain(7)]), nothing()];
        let missed = |parts| {
            found(&[], parts, topics())
                .missed
                .map(|missed| missed.len())
        };
        assert_eq!(missed(heard(9, &[])), Ok(1), "control");
        assert_eq!(missed(heard(10, &[])), Err(Missed::Foreign));
        let mut former = heard(10, &[]);
        let run = Run::of("bbbbbbbbbbbb").unwrap();
        former.marks.set(Clock(0), Mark { run, ..mark(10) });
        assert_eq!(missed(former), Ok(1), "of another run nobody knows that");
    }

    #[test]
    fn more_rooms_than_a_position_names_are_too_many() {
        let mut parts = heard(5, &[]);
        parts.has_more_rooms = true;
        let found = found(&[], parts, vec![nothing(), nothing()]);
        assert_eq!(told(true, &found), Resumed::Missed(Missed::TooMany));
    }

    #[test]
    fn of_a_room_it_gets_what_came_only_if_it_was_in_it() {
        let topics = || vec![nothing(), nothing(), came(0, 9, vec![plain(6)])];
        let missed = |rooms| found(&[room("tea")], heard(5, rooms), topics()).missed;
        assert_eq!(numbers(&missed(&["tea"])), [6], "control");
        assert_eq!(numbers(&missed(&["coffee"])), [0; 0]);
    }

    /// What it missed there nobody can tell, and the rest comes all the same.
    #[test]
    fn of_a_room_of_which_nothing_is_kept_it_is_told_so() {
        let histories = Histories {
            room: None,
            ..EVERYTHING
        };
        let forgotten = TopicPast::of_nothing(Clock(0));
        for (was_in, resumed) in [
            ("tea", Resumed::Missed(Missed::Forgotten)),
            ("coffee", Resumed::Complete { replayed: 1 }),
        ] {
            let (rooms, parts) = ([room("tea")], heard(5, &[was_in]));
            let resume = resume(&rooms, Some(Ok(parts)), &histories);
            let topics = vec![came(0, 9, vec![plain(6)]), nothing(), forgotten.clone()];
            let found = resume.find(NEW, "alice", &Past { topics });
            assert_eq!(told(true, &found), resumed);
            assert_eq!(numbers(&found.missed), [6]);
        }
    }

    #[test]
    fn of_what_is_not_kept_nothing_is_looked_for() {
        let forgotten = TopicPast::of_nothing(Clock(0));
        let past = Past {
            topics: vec![came(0, 9, vec![plain(6)]), forgotten],
        };
        for (histories, missed) in [
            (EVERYTHING, Err(Missed::Forgotten)),
            (
                Histories {
                    all: None,
                    ..EVERYTHING
                },
                Ok(1),
            ),
        ] {
            let resume = resume(&[], Some(Ok(heard(5, &[]))), &histories);
            let found = resume.find(NEW, "alice", &past);
            assert_eq!(found.missed.map(|missed| missed.len()), missed);
        }
    }

    #[test]
    fn what_it_knows_by_a_former_number_does_not_come_again() {
        let again = |formerly| {
            let mut envelope = wire::write_formerly(&[mark(formerly)]).into_bytes();
            envelope.extend_from_slice(&written("again", &Scope::default()));
            entry(8, envelope.into())
        };
        for (formerly, missed) in [(5, vec![]), (6, vec![8])] {
            let past = vec![came(0, 9, vec![again(formerly)]), nothing()];
            assert_eq!(numbers(&found(&[], heard(5, &[]), past).missed), missed);
            let past = Past {
                topics: vec![came(0, 9, vec![again(formerly)])],
            };
            let client = MissedClient {
                socket: NEW,
                formerly: Some(OLD),
                user: "alice",
            };
            let since = heard(5, &[]).marks;
            assert_eq!(numbers(&missed_in(client, &past, &since)), missed);
        }
    }

    #[test]
    fn what_it_was_excepted_from_does_not_come_by_whichever_name() {
        let but = |except: &[SocketId], users: &[&'static str]| {
            let scope = Scope {
                except: except.iter().copied().collect(),
                except_users: users.iter().copied().collect(),
                ..Scope::default()
            };
            written("x", &scope)
        };
        let envelopes = [
            but(&[NEW], &[]),
            but(&[OLD], &[]),
            but(&[], &["alice"]),
            but(&[socket(3)], &["bob"]),
            Bytes::from_static(b"\x00garbage"),
        ];
        let entries = (6..).zip(envelopes).map(|(n, envelope)| entry(n, envelope));
        let past = vec![came(0, 20, entries.collect()), nothing()];
        assert_eq!(numbers(&found(&[], heard(5, &[]), past).missed), [9]);
    }

    #[test]
    fn more_than_is_sent_at_once_is_too_many() {
        let many = |count| (1..=count).map(plain).collect();
        let missed = |entries| {
            let topics = vec![came(0, 9_999, entries), nothing()];
            found(&[], heard(0, &[]), topics).missed.map(|it| it.len())
        };
        assert_eq!(missed(many(512)), Ok(512), "control");
        assert_eq!(missed(many(513)), Err(Missed::TooMany));
        let large = |bytes| vec![entry(1, written(&"x".repeat(bytes), &Scope::default()))];
        assert_eq!(missed(large(MOST.bytes - 100)), Ok(1), "control");
        assert_eq!(missed(large(MOST.bytes)), Err(Missed::TooMany));
    }

    proptest! {
        /// Whatever came to whichever of its topics, on whichever clocks: all of it, each once, by the numbers. A union has one number
        /// on several topics of a clock.
        #[test]
        fn everything_comes_once_and_in_order(
            topics in vec((0u16..3, vec(6u64..40, 0..12)), 2..6),
            was_in in vec(any::<bool>(), 4),
        ) {
            let names = ["a", "b", "c", "d"];
            let rooms: Vec<Topic> = names.iter().take(topics.len() - ROOMS).map(|name| room(name)).collect();
            let was_in = names.into_iter().zip(was_in).filter(|(_, was_in)| *was_in);
            let was_in: Vec<&str> = was_in.map(|(name, _)| name).collect();
            let mut expected = BTreeSet::new();
            for (n, (clock, came)) in topics.iter().enumerate() {
                if n < ROOMS || was_in.contains(&names[n - ROOMS]) {
                    expected.extend(came.iter().map(|number| (Number(*number), Clock(*clock))));
                }
            }
            let past = topics.into_iter().map(|(clock, mut numbers)| {
                numbers.sort();
                came(clock, 50, numbers.into_iter().map(plain).collect())
            });
            let found = found(&rooms, heard(5, &was_in), past.collect());
            let missed = found.missed.unwrap();
            let order = missed.iter().map(|entry| (entry.number, entry.clock));
            prop_assert!(order.eq(expected));
        }
    }
}
