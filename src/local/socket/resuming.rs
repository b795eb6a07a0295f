//! What a socket has whose client may come back and go on where it was: up to where it has everything, and what is held until it
//! has what it missed.
//!
//! ```text
//!  registered --> held: what is numbered waits --> released: what was missed, then what waited, then as it comes
//!                 ^                                  |
//!                 +---- a room that it was in is joined again
//! ```
//! What is numbered reaches it once: not again what it had, and not again what was read for it and comes late on this node's
//! own link. A client that is told positions (`resume.v1`, and a stream of events) gets them as texts that begin with U+0001:
//!
//! ```text
//!  = token          the position from now on
//!  number           of the message that follows in the same write: the token, `~` and it are the position
//!  ! why token      what was missed cannot be told; the position from now on
//! ```
//! A text of the app that begins so has it twice.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::mem::replace;
use std::time::Duration;

use tokio::time::Instant;

use crate::bus::wire::Formerly;
use crate::model::history::Missed;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::history::position::Position;
use crate::model::history::token::{self, Key, NameTag, Parts};
use crate::model::id::{NodeId, SocketId};
use crate::ws::frame::{Frame, MARK};

/// Whether a client is told positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// It knows what they are.
    Told,
    /// Its app keeps them.
    Untold,
}

/// What a text says that begins with U+0001, to whoever is told positions.
#[derive(Debug, PartialEq)]
pub(crate) enum PositionTold<'a> {
    Position(&'a str),
    Missed {
        why: &'a str,
        position: &'a str,
    },
    /// The app's own, which began so.
    Text(&'a str),
}

impl<'a> PositionTold<'a> {
    /// Of a text without its number.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let said = text.strip_prefix(MARK)?;
        let missed = said.strip_prefix("! ").and_then(|it| it.split_once(' '));
        Some(match (said.strip_prefix('='), missed) {
            (Some(position), _) => Self::Position(position),
            (None, Some((why, position))) => Self::Missed { why, position },
            (None, None) => Self::Text(said),
        })
    }
}

/// Boxed, since most sockets have none.
#[derive(Debug)]
pub(crate) struct Resuming {
    /// None until what was missed is read.
    key: Option<Key>,
    /// Its position.
    parts: Parts,
    is_told: bool,
    /// What its client had when it came.
    had: Marks,
    /// What was read for it, in order.
    replayed: Vec<(Clock, Number)>,
    held: Option<Vec<HeldFrame>>,
    /// One that came back, for a while.
    owed: Option<Box<OwedRooms>>,
    formerly: Option<SocketId>,
}

/// What one that came back may still get of what it missed.
#[derive(Debug)]
struct OwedRooms {
    /// In which it was, and has not joined again.
    rooms: Vec<NameTag>,
    /// So many it has, and what it missed of them is read.
    reading: usize,
    /// Until when it may join the others.
    until: Instant,
    /// Which it got since then: each is in the past of all its topics, under the number of each clock.
    unions: HashSet<(NodeId, u64)>,
}

/// Where something that is kept is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NumberedPlace<'a> {
    pub(crate) clock: Clock,
    pub(crate) number: Number,
    /// Where it was kept before, if it was lost there.
    pub(crate) formerly: &'a [Mark],
    /// Of a union whose, and its number there.
    pub(crate) union: Option<(NodeId, u64)>,
}

/// What is kept, with its number.
pub(crate) struct Numbered<'a> {
    pub(crate) place: NumberedPlace<'a>,
    pub(crate) frame: &'a Frame,
    /// With its number before it: written once for all.
    pub(crate) marked: &'a OnceCell<Frame>,
}

/// One that waits.
#[derive(Debug)]
struct HeldFrame {
    clock: Clock,
    number: Number,
    formerly: Formerly,
    union: Option<(NodeId, u64)>,
    /// None of what it gets by another clock.
    frame: Option<Frame>,
}

/// One that was missed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MissedEntry {
    pub(crate) clock: Clock,
    pub(crate) number: Number,
    /// Of a union whose, and its number there.
    pub(crate) union: Option<(NodeId, u64)>,
    pub(crate) frame: Frame,
}

/// What was found for a socket.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) key: Key,
    /// What its client brought; nothing, of one that came anew.
    pub(crate) brought: Parts,
    /// What it missed, in order; or why that cannot be told.
    pub(crate) missed: Result<Vec<MissedEntry>, Missed>,
    /// It was in a room of which nothing is kept.
    pub(crate) is_unkept: bool,
    /// Whoever has that has everything up to here.
    pub(crate) cuts: Marks,
    /// Its user, and the rooms in which it is.
    pub(crate) user: NameTag,
    pub(crate) rooms: Vec<NameTag>,
}

/// What becomes of one that is numbered.
pub(crate) enum NumberedFate {
    /// It is there already.
    Known,
    Held,
    /// To be queued, in this order.
    Now(Vec<Frame>),
}

impl Resuming {
    pub(crate) fn new(socket: SocketId, telling: Telling) -> Self {
        let parts = Parts {
            socket: Some(socket),
            ..Parts::default()
        };
        Self {
            key: None,
            parts,
            is_told: telling == Telling::Told,
            had: Marks::default(),
            replayed: Vec::new(),
            held: Some(Vec::new()),
            owed: None,
            formerly: None,
        }
    }

    pub(crate) fn formerly(&self) -> Option<SocketId> {
        self.formerly
    }

    /// Where somebody goes on who has what it was sent.
    pub(crate) fn position(&self) -> Option<Position> {
        Some(token::write(&self.parts, self.key.as_ref()?))
    }

    /// How many wait.
    pub(crate) fn held(&self) -> usize {
        self.held.as_ref().map_or(0, Vec::len)
    }

    /// One came that is kept.
    pub(crate) fn came(&mut self, numbered: &Numbered<'_>) -> NumberedFate {
        let NumberedPlace { clock, number, .. } = numbered.place;
        if self.has(&numbered.place) {
            return NumberedFate::Known;
        }
        let got = self.got(numbered.place.union);
        match &mut self.held {
            Some(held) => {
                held.push(HeldFrame {
                    clock,
                    number,
                    formerly: numbered.place.formerly.into(),
                    union: numbered.place.union,
                    frame: Some(numbered.frame.clone()),
                });
                NumberedFate::Held
            }
            None if got => match self.has_by(clock, number) {
                Some(position) => NumberedFate::Now(vec![position]),
                None => NumberedFate::Known,
            },
            None => NumberedFate::Now(self.written(numbered)),
        }
    }

    /// It has by another clock what this one numbers so, and so all up to there. Its position, if that changes it.
    pub(crate) fn has_by(&mut self, clock: Clock, number: Number) -> Option<Frame> {
        if let Some(held) = &mut self.held {
            held.push(HeldFrame {
                clock,
                number,
                formerly: Formerly::new(),
                union: None,
                frame: None,
            });
            return None;
        }
        let before = self.parts.marks.of(clock)?;
        if number <= before.number {
            return None;
        }
        self.parts.marks.set(clock, Mark { number, ..before });
        self.told()
    }

    /// Whether it got a union since it came back.
    fn got(&self, union: Option<(NodeId, u64)>) -> bool {
        let owed = self.owed.as_ref().zip(union);
        owed.is_some_and(|(owed, union)| owed.unions.contains(&union))
    }

    fn has(&mut self, place: &NumberedPlace<'_>) -> bool {
        let NumberedPlace { clock, number, .. } = *place;
        let had = self.had.of(clock);
        if had.is_some_and(|had| number <= had.number || had.covers(place.formerly)) {
            return true;
        }
        let is_replayed = self.replayed.binary_search(&(clock, number)).is_ok();
        let of_clock = |(one, _): &&(Clock, Number)| *one == clock;
        let last = self.replayed.iter().rev().find(of_clock);
        if last.is_some_and(|(_, last)| number > *last) {
            // Numbers only rise: none of those comes any more.
            self.replayed.retain(|(one, _)| *one != clock);
        }
        is_replayed
    }

    /// As its client gets it.
    fn written(&mut self, numbered: &Numbered<'_>) -> Vec<Frame> {
        let NumberedPlace {
            clock,
            number,
            union,
            ..
        } = numbered.place;
        if let (Some(owed), Some(union)) = (&mut self.owed, union)
            && owed.unions.len() < MOST_UNIONS
        {
            owed.unions.insert(union);
        }
        let mut frames = Vec::with_capacity(1);
        let before = self.parts.marks.of(clock);
        match before {
            // Of a clock that it has not heard yet nothing is known but this.
            Some(mark) if number > mark.number => {
                if self.is_told && clock != self.parts.clock {
                    self.parts.clock = clock;
                    frames.extend(self.told());
                }
                self.parts.marks.set(clock, Mark { number, ..mark });
                frames.push(match self.is_told {
                    true => {
                        let marked = || self.worded(numbered.frame).marked(number);
                        numbered.marked.get_or_init(marked).clone()
                    }
                    false => numbered.frame.clone(),
                });
            }
            _ => frames.push(self.worded(numbered.frame)),
        }
        frames
    }

    /// A text of the app that its client would take for one of ours has its beginning twice.
    pub(crate) fn worded(&self, frame: &Frame) -> Frame {
        let told_apart = self.is_told.then(|| frame.told_apart()).flatten();
        told_apart.unwrap_or_else(|| frame.clone())
    }

    /// Its position, for its client.
    fn told(&self) -> Option<Frame> {
        let position = self.position().filter(|_| self.is_told)?;
        Some(Frame::text(&format!("{MARK}={position}")))
    }

    /// What it missed is known. What is to be queued, in this order.
    pub(crate) fn release(&mut self, found: Found, now: Instant) -> Vec<Frame> {
        let Found {
            key,
            brought,
            missed,
            is_unkept,
            cuts,
            user,
            rooms,
        } = found;
        self.key = Some(key);
        self.formerly = brought.socket;
        let mut owed = brought.rooms;
        owed.retain(|room| !rooms.contains(room));
        self.owed = (!brought.marks.is_empty()).then(|| {
            Box::new(OwedRooms {
                rooms: owed,
                reading: 0,
                until: now + OWED,
                unions: HashSet::new(),
            })
        });
        self.parts.user = Some(user);
        self.parts.rooms = rooms;
        self.parts.has_more_rooms = self.is_owed();
        self.parts.clock = cuts
            .iter()
            .next()
            .map(|(clock, _)| clock)
            .unwrap_or_default();
        let mut frames = Vec::new();
        match missed {
            Ok(entries) => {
                self.had = brought.marks.clone();
                self.parts.marks = brought.marks;
                if !entries.is_empty() {
                    frames.extend(self.told());
                    frames.extend(self.replay(entries));
                }
                self.go_on_from(cuts);
                frames.extend(match is_unkept {
                    true => self.told_missed(Missed::Forgotten),
                    false => self.told(),
                });
            }
            Err(why) => {
                // What is older and comes late is of what it was told that it missed.
                self.had = cuts.clone();
                self.go_on_from(cuts);
                frames.extend(self.told_missed(why));
            }
        }
        frames.extend(self.let_go());
        frames
    }

    /// What it missed of a room that it was in. What is to be queued, in this order.
    pub(crate) fn release_room(&mut self, missed: Result<Vec<MissedEntry>, Missed>) -> Vec<Frame> {
        let (mut frames, mut is_whole) = (Vec::new(), true);
        if let Some(owed) = &mut self.owed {
            owed.reading = owed.reading.saturating_sub(1);
            is_whole = owed.unions.len() < MOST_UNIONS;
        }
        match missed {
            Ok(mut entries) if is_whole => {
                // A union is in the past of each of its rooms.
                let is_there = |one: (Clock, Number)| self.replayed.binary_search(&one).is_ok();
                entries.retain(|entry| {
                    !is_there((entry.clock, entry.number)) && !self.got(entry.union)
                });
                frames.extend(self.replay(entries));
            }
            Ok(_) => frames.extend(self.told_missed(Missed::TooMany)),
            Err(why) => frames.extend(self.told_missed(why)),
        }
        if self.owed.as_ref().is_none_or(|owed| owed.reading == 0) {
            frames.extend(self.opened());
            frames.extend(self.let_go());
        }
        frames
    }

    /// Its position, if that said there was more, and there is not.
    fn opened(&mut self) -> Option<Frame> {
        let is_owed = self.is_owed();
        let said = replace(&mut self.parts.has_more_rooms, is_owed);
        (said != is_owed).then(|| self.told()).flatten()
    }

    /// Whether something that it missed is still to come.
    fn is_owed(&self) -> bool {
        let owed = self.owed.as_ref();
        owed.is_some_and(|owed| owed.reading > 0 || !owed.rooms.is_empty())
    }

    fn replay(&mut self, entries: Vec<MissedEntry>) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(entries.len());
        for entry in entries {
            let (clock, number) = (entry.clock, entry.number);
            let numbered = Numbered {
                place: NumberedPlace {
                    clock,
                    number,
                    formerly: &[],
                    union: entry.union,
                },
                frame: &entry.frame,
                marked: &OnceCell::new(),
            };
            frames.extend(self.written(&numbered));
            if let Err(place) = self.replayed.binary_search(&(clock, number)) {
                self.replayed.insert(place, (clock, number));
            }
        }
        frames
    }

    fn go_on_from(&mut self, cuts: Marks) {
        for (clock, cut) in cuts.iter() {
            self.parts.marks.set(clock, cut);
        }
    }

    /// These clocks go on in another run, and it has everything up to here: its position, if that changes it. In the run that is over it
    /// would be taken for behind all that came since.
    pub(crate) fn goes_on(&mut self, clocks: &[(Clock, Mark)]) -> Option<Frame> {
        let mut is_changed = false;
        for (clock, until) in clocks {
            let mark = self.parts.marks.of(*clock);
            if let Some(mark) = mark.filter(|mark| mark.run != until.run) {
                let number = mark.number.max(until.number);
                self.parts.marks.set(*clock, Mark { number, ..*until });
                is_changed = true;
            }
        }
        is_changed.then(|| self.told()).flatten()
    }

    fn told_missed(&self, why: Missed) -> Option<Frame> {
        let position = self.position().filter(|_| self.is_told)?;
        Some(Frame::text(&format!("{MARK}! {} {position}", why.word())))
    }

    /// What waited, without what it has by now.
    fn let_go(&mut self) -> Vec<Frame> {
        let held = self.held.take().unwrap_or_default();
        let mut frames = Vec::with_capacity(held.len());
        for held in held {
            let HeldFrame { clock, number, .. } = held;
            let place = NumberedPlace {
                clock,
                number,
                formerly: &held.formerly,
                union: held.union,
            };
            if self.has(&place) {
                continue;
            }
            match &held.frame {
                Some(frame) if !self.got(held.union) => {
                    let marked = &OnceCell::new();
                    frames.extend(self.written(&Numbered {
                        place,
                        frame,
                        marked,
                    }));
                }
                _ => frames.extend(self.has_by(clock, number)),
            }
        }
        frames
    }

    /// Everything of these clocks up to here has come to it, as far as it was for it. Its position, if that was so far behind, in
    /// microseconds, that what comes next might be kept no longer: whoever hears nothing goes on all the same.
    pub(crate) fn renew(&mut self, heard: &Marks, most: u64) -> Option<Frame> {
        if self.held.is_some() {
            return None;
        }
        let is_later = |(clock, mark): &(Clock, Mark)| {
            let before = self.parts.marks.of(*clock);
            before.is_some_and(|it| it.run != mark.run || it.number < mark.number)
        };
        let later: Vec<_> = heard.iter().filter(is_later).collect();
        let is_old = |(clock, mark): &(Clock, Mark)| {
            let before = self.parts.marks.of(*clock);
            before.is_some_and(|it| it.number.0.saturating_add(most) <= mark.number.0)
        };
        if !later.iter().any(is_old) {
            return None;
        }
        self.go_on_from(later.into_iter().collect());
        self.told()
    }

    /// Whether nothing is known of a clock, so that nobody could go on from there.
    pub(crate) fn lacks(&self, clock: Clock) -> bool {
        self.key.is_some() && self.parts.marks.of(clock).is_none()
    }

    /// A room is joined of whose clocks it lacks some: it goes on from here. Its position, if that changes it.
    pub(crate) fn begin(&mut self, cuts: &Marks) -> Option<Frame> {
        let mut is_changed = false;
        for (clock, cut) in cuts.iter() {
            if self.lacks(clock) {
                self.parts.marks.set(clock, cut);
                is_changed = true;
            }
        }
        is_changed.then(|| self.told()).flatten()
    }

    /// A room is to be joined. If it was in it, what comes waits, and this is what it has of it.
    pub(crate) fn owes(&mut self, topic: &str) -> Option<Marks> {
        let tag = self.key?.tag(topic);
        let owed = self.owed.as_mut()?;
        let place = owed.rooms.iter().position(|room| *room == tag)?;
        owed.rooms.swap_remove(place);
        owed.reading += 1;
        self.held.get_or_insert_default();
        Some(self.had.clone())
    }

    /// Rooms that were not joined again in time are no longer its; its position, if that changes it.
    pub(crate) fn forget_rooms(&mut self, now: Instant) -> Option<Frame> {
        let is_over = |owed: &mut Box<OwedRooms>| owed.until <= now && owed.reading == 0;
        self.owed.take_if(is_over)?;
        self.opened()
    }

    /// It is in this room from now on, or no longer.
    pub(crate) fn moved(&mut self, topic: &str, is_in: bool) -> Option<Frame> {
        let tag = self.key?.tag(topic);
        let rooms = &mut self.parts.rooms;
        let before = rooms.len();
        match is_in {
            true if !rooms.contains(&tag) => rooms.push(tag),
            true => {}
            false => rooms.retain(|room| *room != tag),
        }
        let is_changed = rooms.len() != before;
        is_changed.then(|| self.told()).flatten()
    }
}

/// Most unions of which it is known that it got them: beyond it nothing is told of a room that is joined then.
const MOST_UNIONS: usize = 1024;
/// So long a handler has to join the rooms again in which its client was.
const OWED: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::model::history::mark::Run;
    use crate::model::id::NodeId;
    use crate::model::message::Message;

    const ID: SocketId = SocketId {
        node: NodeId(1),
        number: 7,
    };

    fn key() -> Key {
        Key::of([1; Key::BYTES])
    }

    fn marks(number: u64) -> Marks {
        let run = Run::of("0123456789ab").unwrap();
        let mark = Mark {
            run,
            number: Number(number),
        };
        [(Clock(0), mark)].into_iter().collect()
    }

    fn entry(number: u64) -> MissedEntry {
        MissedEntry {
            clock: Clock(0),
            number: Number(number),
            union: None,
            frame: Frame::text(&number.to_string()),
        }
    }

    fn found(since: Option<u64>, missed: Result<Vec<u64>, Missed>, cut: u64) -> Found {
        Found {
            key: key(),
            brought: Parts {
                marks: since.map(marks).unwrap_or_default(),
                ..Parts::default()
            },
            missed: missed.map(|numbers| numbers.into_iter().map(entry).collect()),
            is_unkept: false,
            cuts: marks(cut),
            user: key().tag("u:alice"),
            rooms: Vec::new(),
        }
    }

    fn came(resuming: &mut Resuming, number: u64) -> Vec<Frame> {
        came_as(resuming, &entry(number))
    }

    fn came_as(resuming: &mut Resuming, entry: &MissedEntry) -> Vec<Frame> {
        let due = resuming.came(&Numbered {
            place: NumberedPlace {
                clock: entry.clock,
                number: entry.number,
                formerly: &[],
                union: entry.union,
            },
            frame: &entry.frame,
            marked: &OnceCell::new(),
        });
        match due {
            NumberedFate::Now(frames) => frames,
            NumberedFate::Known | NumberedFate::Held => Vec::new(),
        }
    }

    /// A client as the guide has it.
    #[derive(Default)]
    struct Page {
        base: String,
        number: Option<u64>,
        heard: Vec<u64>,
        missed: usize,
    }

    impl Page {
        fn take(&mut self, frames: Vec<Frame>) {
            for frame in frames {
                let (number, frame) = frame.unmarked();
                let Some(Message::Text(text)) = frame.into_message() else {
                    panic!("texts only")
                };
                match text.strip_prefix(MARK) {
                    None => {
                        self.heard.push(text.parse().unwrap());
                        self.number = number.map(|it| it.0).or(self.number);
                    }
                    Some(said) => {
                        self.missed += usize::from(said.starts_with('!'));
                        self.base = said.rsplit(['=', ' ']).next().unwrap().to_owned();
                        self.number = None;
                    }
                }
            }
        }

        /// Up to where it has everything.
        fn position(&self) -> u64 {
            let number = self.number.map(|number| format!("~{number}"));
            let text = format!("{}{}", self.base, number.unwrap_or_default());
            let parts = token::read(&text.parse().unwrap(), &key()).unwrap();
            assert_eq!(parts.socket, Some(ID));
            parts.marks.of(Clock(0)).unwrap().number.0
        }
    }

    #[test]
    fn what_cannot_be_told_is_said_before_anything_newer() {
        let mut resuming = Resuming::new(ID, Telling::Told);
        let mut page = Page::default();
        for number in [9, 12] {
            page.take(came(&mut resuming, number));
        }
        page.take(resuming.release(found(Some(3), Err(Missed::Late), 10), Instant::now()));
        page.take(came(&mut resuming, 10));
        assert_eq!((page.missed, &page.heard[..]), (1, &[12][..]));
        assert_eq!(page.position(), 12);
        page.take(came(&mut resuming, 13));
        assert_eq!((page.position(), page.heard.len()), (13, 2));
    }

    #[test]
    fn one_whose_app_keeps_the_position_hears_nothing_but_messages() {
        let mut resuming = Resuming::new(ID, Telling::Untold);
        assert!(resuming.position().is_none());
        let frames = resuming.release(found(Some(3), Ok(vec![4, 5]), 5), Instant::now());
        assert_eq!(frames, [Frame::text("4"), Frame::text("5")]);
        assert_eq!(came(&mut resuming, 6), [Frame::text("6")]);
        let position = resuming.position().unwrap();
        let parts = token::read(&position, &key()).unwrap();
        assert_eq!(parts.marks, marks(6));
    }

    #[test]
    fn whoever_hears_nothing_is_told_now_and_then_that_it_goes_on() {
        let mut resuming = Resuming::new(ID, Telling::Told);
        let mut page = Page::default();
        assert_eq!(resuming.renew(&marks(100), 50), None, "it is not known yet");
        page.take(resuming.release(found(None, Ok(Vec::new()), 10), Instant::now()));
        assert_eq!(resuming.renew(&marks(59), 50), None);
        page.take(resuming.renew(&marks(60), 50).into_iter().collect());
        assert_eq!(page.position(), 60);
        page.take(came(&mut resuming, 61));
        assert_eq!((page.position(), &page.heard[..]), (61, &[61][..]));
        assert_eq!(
            resuming.renew(&marks(100), 50),
            None,
            "it has heard something"
        );
        assert_eq!(resuming.renew(&marks(20), 50), None, "never back");
        let other = [(Clock(1), marks(500).of(Clock(0)).unwrap())];
        assert_eq!(resuming.renew(&other.into_iter().collect(), 50), None);
    }

    #[test]
    fn the_rooms_in_which_it_is_are_named_and_owed_until_it_is_in_them_again() {
        let mut resuming = Resuming::new(ID, Telling::Told);
        let mut brought = found(Some(3), Ok(Vec::new()), 5);
        brought.brought.rooms = vec![key().tag("r:tea")];
        let _ = resuming.release(brought, Instant::now());
        assert!(resuming.parts.has_more_rooms, "not to be told for good");
        assert_eq!(resuming.owes("r:coffee"), None);
        assert_eq!(resuming.owes("r:tea"), Some(marks(3)));
        assert_eq!(resuming.owes("r:tea"), None);
        assert!(resuming.moved("r:tea", true).is_some());
        assert_eq!(came(&mut resuming, 6), [], "it waits");
        let frames = resuming.release_room(Ok(vec![entry(4), entry(6)]));
        assert_eq!(frames.len(), 3, "each once, and that there is no more");
        assert_eq!(resuming.parts.rooms, [key().tag("r:tea")]);
        assert!(!resuming.parts.has_more_rooms);
        assert!(resuming.moved("r:tea", true).is_none());
        assert!(resuming.moved("r:tea", false).is_some());
    }

    /// One that came back, and was in these rooms.
    fn back(rooms: &[&str]) -> Resuming {
        let mut resuming = Resuming::new(ID, Telling::Told);
        let mut brought = found(Some(3), Ok(Vec::new()), 5);
        let rooms = rooms.iter().map(|room| key().tag(room));
        brought.brought.rooms = rooms.collect();
        let _ = resuming.release(brought, Instant::now());
        resuming
    }

    fn of_union(clock: u16, number: u64) -> MissedEntry {
        MissedEntry {
            clock: Clock(clock),
            union: Some((NodeId(9), 1)),
            ..entry(number)
        }
    }

    /// Whichever way it came, by whichever clock: read, live, or held.
    #[test]
    fn a_union_that_came_does_not_come_again_with_a_room() {
        for clock in [0, 1] {
            let mut resuming = back(&["r:tea", "r:coffee"]);
            assert_eq!(came_as(&mut resuming, &of_union(0, 6)).len(), 1, "control");
            resuming.owes("r:tea").expect("it was in it");
            assert_eq!(resuming.release_room(Ok(vec![of_union(clock, 6)])), []);
            let mut resuming = back(&["r:tea", "r:coffee"]);
            resuming.owes("r:tea").expect("it was in it");
            let frames = resuming.release_room(Ok(vec![of_union(clock, 6)]));
            assert_eq!(frames.len(), 1, "control");
            resuming.owes("r:coffee").expect("it was in it");
            assert_eq!(came_as(&mut resuming, &of_union(0, 6)), []);
            let frames = resuming.release_room(Ok(vec![of_union(0, 6)]));
            let page = frames.into_iter().filter(|frame| {
                let (_, frame) = frame.clone().unmarked();
                frame == Frame::text("6")
            });
            assert_eq!(page.count(), 0);
        }
    }

    #[test]
    fn of_more_unions_than_are_remembered_a_room_is_told_that_nobody_knows() {
        for (unions, missed) in [(MOST_UNIONS - 1, 0), (MOST_UNIONS, 1)] {
            let (mut resuming, mut page) = (back(&["r:tea"]), Page::default());
            for n in 0..unions {
                let union = Some((NodeId(9), n as u64));
                let number = 6 + n as u64;
                let came = MissedEntry {
                    union,
                    ..entry(number)
                };
                assert_eq!(came_as(&mut resuming, &came).len(), 1);
            }
            resuming.owes("r:tea").expect("it was in it");
            page.take(resuming.release_room(Ok(vec![entry(4)])));
            assert_eq!((page.missed, page.heard.len()), (missed, 1 - missed));
        }
    }

    /// It has all up to there: what is older of that clock would have come before.
    #[test]
    fn by_another_copy_its_position_goes_on() {
        let mut resuming = Resuming::new(ID, Telling::Told);
        assert!(resuming.has_by(Clock(0), Number(12)).is_none(), "it waits");
        let frames = resuming.release(found(None, Ok(Vec::new()), 10), Instant::now());
        let of = |resuming: &Resuming| resuming.parts.marks.of(Clock(0)).unwrap().number.0;
        assert_eq!((frames.len(), of(&resuming)), (2, 12));
        assert!(resuming.has_by(Clock(0), Number(13)).is_some());
        assert!(
            resuming.has_by(Clock(0), Number(11)).is_none(),
            "never back"
        );
        assert!(resuming.has_by(Clock(1), Number(20)).is_none());
        assert_eq!(of(&resuming), 13);
    }

    /// What comes meanwhile would be ahead of what was missed, and the position with it.
    #[test]
    fn of_two_rooms_at_once_all_waits_until_both_are_read() {
        let mut resuming = back(&["r:tea", "r:coffee"]);
        for room in ["r:tea", "r:coffee"] {
            assert_eq!(resuming.owes(room), Some(marks(3)));
            resuming.moved(room, true);
        }
        assert_eq!(came(&mut resuming, 6), []);
        assert_eq!(resuming.release_room(Ok(vec![entry(4)])).len(), 1);
        assert_eq!(came(&mut resuming, 7), []);
        assert!(resuming.parts.has_more_rooms, "something is still to come");
        let mut page = Page::default();
        page.take(resuming.release_room(Ok(vec![entry(5)])));
        assert_eq!((page.position(), &page.heard[..]), (7, &[5, 6, 7][..]));
        assert!(!resuming.parts.has_more_rooms);
    }

    #[test]
    fn a_room_that_is_not_joined_again_is_forgotten() {
        let (mut resuming, now) = (Resuming::new(ID, Telling::Told), Instant::now());
        let mut brought = found(Some(3), Ok(Vec::new()), 5);
        brought.brought.rooms = vec![key().tag("r:tea")];
        let _ = resuming.release(brought, now);
        assert_eq!(resuming.forget_rooms(now + OWED / 2), None);
        assert!(resuming.parts.has_more_rooms, "control");
        assert!(resuming.forget_rooms(now + OWED).is_some(), "it is told");
        assert!(!resuming.parts.has_more_rooms && resuming.owes("r:tea").is_none());
        assert_eq!(resuming.forget_rooms(now + OWED * 2), None);
    }

    /// What is told in a run that is over would be read as behind all that came since.
    #[test]
    fn a_position_goes_on_in_the_run_that_goes_on() {
        let mut resuming = Resuming::new(ID, Telling::Told);
        let now = Instant::now();
        resuming.release(found(None, Ok(Vec::new()), 10), now);
        came(&mut resuming, 12);
        let until = Mark {
            run: Run::of("abcdefabcdef").unwrap(),
            number: Number(20),
        };
        assert!(resuming.goes_on(&[(Clock(1), until)]).is_none());
        assert!(resuming.goes_on(&[(Clock(0), until)]).is_some(), "told");
        assert!(resuming.goes_on(&[(Clock(0), until)]).is_none(), "once");
        let parts = token::read(&resuming.position().unwrap(), &key()).unwrap();
        assert_eq!(parts.marks.of(Clock(0)), Some(until));
        came(&mut resuming, 21);
        let parts = token::read(&resuming.position().unwrap(), &key()).unwrap();
        assert_eq!(parts.marks.of(Clock(0)).unwrap().number, Number(21));
    }

    /// Whoever has it from the run that lost it.
    #[test]
    fn what_is_kept_again_comes_to_those_alone_who_have_it_not() {
        let (mark, now) = (marks(100).of(Clock(0)).unwrap(), Instant::now());
        for (since, is_known) in [(99, false), (100, true)] {
            for is_held in [false, true] {
                let mut resuming = Resuming::new(ID, Telling::Untold);
                let release = || found(Some(since), Ok(Vec::new()), 200);
                let mut heard = Vec::new();
                let frame = Frame::text("again");
                let numbered = Numbered {
                    place: NumberedPlace {
                        clock: Clock(0),
                        number: Number(300),
                        formerly: &[mark],
                        union: None,
                    },
                    frame: &frame,
                    marked: &OnceCell::new(),
                };
                if !is_held {
                    heard.extend(resuming.release(release(), now));
                }
                if let NumberedFate::Now(frames) = resuming.came(&numbered) {
                    heard.extend(frames);
                }
                if is_held {
                    heard.extend(resuming.release(release(), now));
                }
                assert_eq!(heard.is_empty(), is_known, "{since} {is_held}");
            }
        }
    }

    proptest! {
        /// A link that may lag behind what is read, and a client that leaves and comes back whenever.
        #[test]
        fn everything_comes_once_and_in_order_however_often_it_comes_back(
            turns in vec((0u64..9, 0u64..9, any::<prop::sample::Index>()), 1..9),
        ) {
            let (mut page, mut last) = (Page::default(), 0);
            for (away, here, released) in turns {
                let since = (!page.base.is_empty()).then(|| page.position());
                let mut resuming = Resuming::new(ID, Telling::Told);
                let cut = last + away;
                let missed = since.map_or(Vec::new(), |since| (since + 1..=cut).collect());
                if since.is_none() {
                    page.heard.extend(1..=cut);
                    last = cut;
                }
                // What was published meanwhile is heard here late, as far as it was.
                let link: Vec<u64> = (last + 1..=cut + here).collect();
                let (before, after) = link.split_at(released.index(link.len() + 1));
                for number in before {
                    page.take(came(&mut resuming, *number));
                }
                page.take(resuming.release(found(since, Ok(missed), cut), Instant::now()));
                for number in after {
                    page.take(came(&mut resuming, *number));
                }
                last = cut + here;
                prop_assert_eq!(page.position(), last);
                prop_assert_eq!(&page.heard, &(1..=last).collect::<Vec<_>>());
            }
        }
    }
}
