//! How the links to the bus stand, and what follows for the node: rules without I/O.
//!
//! A node is as well as the worst of its links: it hears everybody only while all of them work. A gap is one
//! link's, since each misses what came on its own channels.
//!
//! A gap begins with the last proof and not with the bad news: nobody knows what was lost between the two. It lasts
//! until the next proof, whatever else goes wrong meanwhile. Who has never heard anything misses nothing, so a start
//! makes none. And where single channels are refused the link is down, since somebody misses something, but what nodes
//! say to one another is heard: so nobody's lease ends for that.
//!
//! ```text
//!         up: a probe came back; the gap is over, and told
//!  Down ---------------------------------------------------> Up
//!  ^ | ^                                                      |
//!  | | |  down: if it is deaf, a gap since the last proof     |
//!  | | +------------------------------------------------------+
//!  | |    refused: the same, but `works` keeps since when the rest is heard
//!  | |
//!  +-+ works: the rest is still heard
//! ```

use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use self::standing::{LinkHealth, Standing};
use crate::model::health::Health;
use crate::model::partition::PartitionSet;
use crate::model::topic::{Kinds, TopicKind};

mod standing;

const MOVING: &str = "channels move to another redis";
/// So long partitions may have been on their new link before the old one learnt of it, as primaries tell one another:
/// what proved the old one meanwhile proves nothing for them.
const HEARSAY: Duration = Duration::from_secs(2);

/// One of the links to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LinkId(pub(crate) u32);

impl LinkId {
    /// The link of a bus where one carries every topic.
    pub(crate) const ONLY: Self = Self(0);
}

/// What is known of the bus.
#[derive(Debug)]
pub(crate) struct Outage {
    started: Instant,
    /// Never empty.
    links: BTreeMap<LinkId, LinkHealth>,
    on_their_way: Vec<PartitionMove>,
    /// What this node published since then may not have arrived everywhere, and the others are to be told.
    strayed: Option<Instant>,
    /// From when until when others said so of what they published.
    strays: Option<Span>,
}

/// A span of time: from when until when.
pub(crate) type Span = (Instant, Instant);

/// Messages may have been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissedSpan {
    pub(crate) span: Span,
    /// On these.
    pub(crate) partitions: PartitionSet,
    /// On topics of these kinds nothing was heard all the time, or not at the right place.
    pub(crate) kinds: Kinds,
}

/// Partitions that were on another link.
#[derive(Debug)]
struct PartitionMove {
    partitions: PartitionSet,
    to: LinkId,
    since: SystemTime,
    /// What was published there before proves nothing for them.
    at: Instant,
    /// When they were heard last, if ever.
    heard: Option<Instant>,
}

/// Whether messages may be missed while a link is down. Who never heard anything misses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deaf {
    No,
    /// From now on.
    Newly,
    Still,
}

impl Outage {
    /// Nothing is known of these links yet.
    pub(crate) fn new(
        links: impl IntoIterator<Item = (LinkId, PartitionSet)>,
        started: Instant,
        now: SystemTime,
    ) -> Self {
        let link = |(id, partitions)| (id, LinkHealth::new(partitions, now));
        Self {
            started,
            links: links.into_iter().map(link).collect(),
            on_their_way: Vec::new(),
            strayed: None,
            strays: None,
        }
    }

    /// A link works, proven by what was published then. What may have been missed, if anything was.
    pub(crate) fn up(&mut self, link: LinkId, proven: Instant) -> Option<MissedSpan> {
        let id = link;
        let link = self.links.get_mut(&id)?;
        link.proven = Some(proven);
        link.works = None;
        let refused = take(&mut link.refused);
        if let Standing::Down { .. } = link.standing {
            link.standing = Standing::Up(proven);
        }
        let gap = link.gap.take().map(|from| (from, link.partitions));
        let has_arrived = |one: &mut PartitionMove| one.to == id && one.at <= proven;
        let arrived = self.on_their_way.extract_if(.., has_arrived);
        let arrived: Vec<PartitionMove> = arrived.collect();
        if !arrived.is_empty() {
            link.standing = Standing::Up(proven);
        }
        let heard = |one: PartitionMove| Some((one.heard?, one.partitions));
        let missed = gap.into_iter().chain(arrived.into_iter().filter_map(heard));
        let all = |(from, all): (Instant, _), (other, more)| (from.min(other), all | more);
        let (from, partitions) = missed.reduce(all)?;
        // One gap tells of both.
        let strays = self.strays.take();
        let (from, until) = strays.map_or((from, proven), |(strays, heard)| {
            // What proves this link was published before all of them had left the wrong server.
            (from.min(strays), proven.max(heard))
        });
        Some(MissedSpan {
            span: (from, until),
            partitions: match strays {
                Some(_) => PartitionSet::all(),
                None => partitions,
            },
            kinds: match strays {
                Some(_) => Kinds::ALL,
                None => refused.into_iter().map(|(kind, _)| kind).collect(),
            },
        })
    }

    /// Partitions are on another link since `at`. One that has none left is no link any more.
    pub(crate) fn moved(
        &mut self,
        partitions: PartitionSet,
        (from, to): (LinkId, LinkId),
        at: Instant,
        now: SystemTime,
    ) {
        let mut heard = None;
        if let Some(link) = self.links.get_mut(&from) {
            let surely = |at: Instant| at.checked_sub(HEARSAY).unwrap_or(at);
            heard = link.gap.or(link.proven).map(surely);
            link.partitions = link.partitions - partitions;
            if link.partitions.is_empty() {
                self.links.remove(&from);
            }
        }
        let mut since = now;
        // They may not have arrived there either.
        for one in &mut self.on_their_way {
            if one.to == from && !(one.partitions & partitions).is_empty() {
                one.partitions = one.partitions - partitions;
                heard = [heard, one.heard].into_iter().flatten().min();
                since = since.min(one.since);
            }
        }
        self.on_their_way.retain(|one| !one.partitions.is_empty());
        let link = self.links.entry(to);
        let link = link.or_insert_with(|| LinkHealth::new(PartitionSet::default(), now));
        link.partitions = link.partitions | partitions;
        self.on_their_way.push(PartitionMove {
            partitions,
            to,
            since,
            at,
            heard,
        });
    }

    /// The links, and those of them that are up.
    pub(crate) fn count(&self) -> (usize, usize) {
        let is_up = |link: &&LinkHealth| matches!(link.standing, Standing::Up(_));
        (self.links.len(), self.links.values().filter(is_up).count())
    }

    /// A link does not work. `deaf`: what comes on it may be missed.
    pub(crate) fn down(
        &mut self,
        link: LinkId,
        reason: Arc<str>,
        deaf: bool,
        now: SystemTime,
    ) -> Deaf {
        let Some(link) = self.links.get_mut(&link) else {
            return Deaf::No;
        };
        let since = match link.standing {
            Standing::Up(_) => now,
            Standing::Down { since, .. } => since,
        };
        link.works = None;
        link.standing = Standing::Down { since, reason };
        match link.gap {
            Some(_) => Deaf::Still,
            None if deaf && link.proven.is_some() => {
                link.gap = link.proven;
                Deaf::Newly
            }
            None => Deaf::No,
        }
    }

    /// A topic on a link is refused: what comes on it may be missed, and the rest goes on. That more of a kind are
    /// refused for the same reason is no news.
    pub(crate) fn refused(
        &mut self,
        link: LinkId,
        kind: TopicKind,
        reason: Arc<str>,
        now: SystemTime,
    ) -> Deaf {
        let Some(refused) = self.links.get_mut(&link) else {
            return Deaf::No;
        };
        let works = refused.refuse(kind, reason);
        let reason = refused.refusal();
        let deaf = self.down(link, reason, true, now);
        if let Some(link) = self.links.get_mut(&link) {
            link.works = works;
        }
        deaf
    }

    /// The kinds of what is refused, on any link; not that of all nodes, for which a node is not there.
    pub(crate) fn refused_kinds(&self) -> Vec<TopicKind> {
        let refused = self.links.values().flat_map(|link| &link.refused);
        let kinds = refused.map(|(kind, _)| *kind);
        kinds.filter(|kind| *kind != TopicKind::Nodes).collect()
    }

    /// A link works but for what is refused, proven by what was published then.
    pub(crate) fn works(&mut self, link: LinkId, proven: Instant) {
        if let Some(link) = self.links.get_mut(&link)
            && let Standing::Down { .. } = link.standing
        {
            let since = link.works.map_or(proven, |(since, _)| since);
            link.works = Some((since, proven));
        }
    }

    /// The worst link, with its reason: one on which messages may be missed, and of those the one that is down for
    /// longest.
    pub(crate) fn health(&self) -> Health {
        let down = self.links.values().filter_map(|link| match &link.standing {
            Standing::Up(_) => None,
            Standing::Down { since, reason } => Some((link.gap.is_none(), *since, reason)),
        });
        let worst = down.min_by_key(|(hears, since, _)| (*hears, *since));
        let moves = self.on_their_way.iter().map(|one| one.since).min();
        match (worst, moves) {
            (Some((_, since, reason)), _) => Health::Degraded {
                since,
                reason: reason.clone(),
            },
            (None, Some(since)) => Health::Degraded {
                since,
                reason: MOVING.into(),
            },
            (None, None) => Health::Up,
        }
    }

    /// Since when all links have worked, and until when they are known to; none while one does not.
    pub(crate) fn hearing(&self) -> Option<Span> {
        self.hearing_of(PartitionSet::all())
    }

    /// Since when the links that carry these have worked, and until when they are known to.
    pub(crate) fn hearing_of(&self, partitions: PartitionSet) -> Option<Span> {
        self.all(partitions, |link| match link.standing {
            Standing::Up(since) => Some((since, link.proven?)),
            Standing::Down { .. } => None,
        })
    }

    /// Since when, and until when, all links carried what nodes say to each other, which goes on while the channels of others
    /// are refused.
    pub(crate) fn hearing_nodes(&self) -> Option<Span> {
        self.all(PartitionSet::all(), |link| match link.standing {
            Standing::Up(since) => Some((since, link.proven?)),
            Standing::Down { .. } => link.works,
        })
    }

    fn all(
        &self,
        partitions: PartitionSet,
        span: impl Fn(&LinkHealth) -> Option<Span>,
    ) -> Option<Span> {
        let is_meant = |carried: PartitionSet| !(carried & partitions).is_empty();
        let mut moves = self.on_their_way.iter();
        if moves.any(|one| is_meant(one.partitions)) {
            return None;
        }
        let links = self.links.values();
        links
            .filter(|link| is_meant(link.partitions))
            .map(span)
            .reduce(|all, link| {
                let ((since, until), (from, proven)) = (all?, link?);
                Some((since.max(from), until.min(proven)))
            })
            .flatten()
    }

    /// When all links were last known to work, or the node started.
    pub(crate) fn proven_at(&self) -> Instant {
        let proven = |link: &LinkHealth| link.proven.unwrap_or(self.started);
        let proven = self.links.values().map(proven).min();
        proven.unwrap_or(self.started)
    }

    /// What was published since a link was last proven may have reached only a part of the others. What proved it
    /// after `since` proved nothing.
    pub(crate) fn strayed(&mut self, link: LinkId, since: Option<Instant>) {
        let Some(link) = self.links.get_mut(&link) else {
            return;
        };
        if let Some(since) = since {
            let sooner = |at: Instant| at.min(since);
            (link.proven, link.gap) = (link.proven.map(sooner), link.gap.map(sooner));
        }
        let proven = link.proven;
        self.has_strayed(proven);
    }

    /// Since when what we published may not have arrived; to be said to the others.
    pub(crate) fn take_strayed(&mut self) -> Option<Instant> {
        self.strayed.take()
    }

    /// What strayed since then could not be said, or is known only now.
    pub(crate) fn has_strayed(&mut self, since: Option<Instant>) {
        self.strayed = self.strayed.into_iter().chain(since).min();
    }

    /// Others stood on the wrong server in the meantime; it is told with the next [`take_strays`](Self::take_strays),
    /// since after a failover many say so, and each wherever it can. Whether nobody had.
    pub(crate) fn others_strayed(&mut self, (from, until): Span) -> bool {
        let (first, last) = self.strays.unwrap_or((from, until));
        let before = self.strays.replace((first.min(from), last.max(until)));
        before.is_none()
    }

    pub(crate) fn take_strays(&mut self) -> Option<Span> {
        self.strays.take()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::model::partition::Partition;

    const A: LinkId = LinkId(0);
    const B: LinkId = LinkId(1);
    const S: Duration = Duration::from_secs(1);

    /// Each carries a part.
    fn carrying(links: impl IntoIterator<Item = LinkId>) -> Vec<(LinkId, PartitionSet)> {
        let part =
            |id: LinkId| Partition::all().filter(move |one| one.index() % 3 == id.0 as usize);
        let links = links.into_iter();
        links.map(|id| (id, part(id).collect())).collect()
    }

    fn span(missed: Option<MissedSpan>) -> Option<Span> {
        missed.map(|missed| missed.span)
    }

    /// So many seconds of either clock.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: u32) -> Instant {
            self.0 + seconds * S
        }
    }

    fn wall(seconds: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + seconds * S
    }

    fn two() -> (Outage, Clock) {
        let clock = Clock(Instant::now());
        (Outage::new(carrying([A, B]), clock.at(0), wall(0)), clock)
    }

    fn degraded(since: u32, reason: &str) -> Health {
        Health::Degraded {
            since: wall(since),
            reason: reason.into(),
        }
    }

    #[test]
    fn who_is_refused_something_hears_the_other_nodes() {
        let clock = Clock(Instant::now());
        let mut outage = Outage::new(carrying([A]), clock.at(0), wall(0));
        outage.up(A, clock.at(1));
        outage.up(A, clock.at(2));
        let deaf = outage.refused(A, TopicKind::Room, "no".into(), wall(3));
        assert_eq!((deaf, outage.hearing()), (Deaf::Newly, None));
        let heard = |from, until| Some((clock.at(from), clock.at(until)));
        assert_eq!(outage.hearing_nodes(), heard(1, 2), "without a break");
        outage.works(A, clock.at(4));
        outage.refused(A, TopicKind::Room, "no".into(), wall(4));
        assert_eq!(outage.hearing_nodes(), heard(1, 4));
        assert_eq!(outage.refused_kinds(), [TopicKind::Room]);
        outage.down(A, "cut".into(), true, wall(5));
        outage.refused(A, TopicKind::Room, "no".into(), wall(6));
        assert_eq!(outage.hearing_nodes(), None, "nothing is proven yet");
        outage.works(A, clock.at(7));
        assert_eq!(outage.hearing_nodes(), heard(7, 7));
        assert_eq!(span(outage.up(A, clock.at(8))), heard(2, 8), "one gap");
        assert_eq!(outage.hearing_nodes(), outage.hearing());
        assert_eq!(outage.refused_kinds(), []);
    }

    #[test]
    fn a_refusal_is_told_once_with_what_is_refused_and_why() {
        let clock = Clock(Instant::now());
        let mut outage = Outage::new(carrying([A]), clock.at(0), wall(0));
        outage.up(A, clock.at(1));
        for (kind, reason, deaf, told) in [
            (
                TopicKind::User,
                "no",
                Deaf::Newly,
                "the channels of users are refused: no",
            ),
            (
                TopicKind::Room,
                "no",
                Deaf::Still,
                "the channels of users, rooms are refused: no",
            ),
            (
                TopicKind::User,
                "no",
                Deaf::Still,
                "the channels of users, rooms are refused: no",
            ),
            (
                TopicKind::User,
                "never",
                Deaf::Still,
                "the channels of users are refused: never; the channels of rooms are refused: no",
            ),
        ] {
            assert_eq!(outage.refused(A, kind, reason.into(), wall(2)), deaf);
            assert_eq!(outage.health(), degraded(2, told));
        }
        assert!(outage.hearing_nodes().is_some());
        outage.refused(A, TopicKind::Nodes, "no".into(), wall(3));
        assert_eq!(outage.hearing_nodes(), None, "it is not there for them");
        let kinds = [TopicKind::User, TopicKind::Room];
        assert_eq!(outage.refused_kinds(), kinds);
        assert_eq!(
            span(outage.up(A, clock.at(4))),
            Some((clock.at(1), clock.at(4)))
        );
        outage.refused(A, TopicKind::Room, "no".into(), wall(5));
        assert_eq!(
            outage.health(),
            degraded(5, "the channels of rooms are refused: no")
        );
    }

    #[test]
    fn a_node_is_up_when_all_its_links_are() {
        let (mut outage, clock) = two();
        assert_eq!(outage.health(), degraded(0, "connecting to the bus"));
        assert_eq!(span(outage.up(A, clock.at(1))), None);
        assert_eq!(outage.health(), degraded(0, "connecting to the bus"));
        assert_eq!(outage.hearing(), None);
        assert_eq!(span(outage.up(B, clock.at(2))), None);
        assert_eq!(outage.health(), Health::Up);
        assert_eq!(outage.hearing(), Some((clock.at(2), clock.at(1))));
        outage.up(A, clock.at(3));
        assert_eq!(outage.hearing(), Some((clock.at(2), clock.at(2))));
        assert_eq!(outage.proven_at(), clock.at(2));
    }

    #[test]
    fn the_worst_link_is_the_health() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(1));
        outage.up(B, clock.at(1));
        outage.down(A, "slow".into(), false, wall(2));
        assert_eq!(outage.health(), degraded(2, "slow"));
        outage.down(B, "gone".into(), true, wall(3));
        assert_eq!(outage.health(), degraded(3, "gone"), "it is deaf");
        outage.down(A, "gone too".into(), true, wall(4));
        assert_eq!(outage.health(), degraded(2, "gone too"), "for longest");
        outage.up(A, clock.at(5));
        assert_eq!(outage.health(), degraded(3, "gone"));
        outage.up(B, clock.at(6));
        assert_eq!(outage.health(), Health::Up);
    }

    #[test]
    fn each_link_has_a_gap_of_its_own() {
        let (mut outage, clock) = two();
        let deaf = outage.down(A, "not there yet".into(), true, wall(0));
        assert_eq!(deaf, Deaf::No, "nothing was heard before");
        outage.up(A, clock.at(1));
        outage.up(B, clock.at(2));
        for (link, deaf, expected) in [
            (A, false, Deaf::No),
            (A, true, Deaf::Newly),
            (A, true, Deaf::Still),
            (A, false, Deaf::Still),
            (B, false, Deaf::No),
        ] {
            let deaf = outage.down(link, "down".into(), deaf, wall(3));
            assert_eq!(deaf, expected);
        }
        assert_eq!(span(outage.up(B, clock.at(5))), None);
        assert_eq!(
            span(outage.up(A, clock.at(6))),
            Some((clock.at(1), clock.at(6)))
        );
        assert_eq!(span(outage.up(A, clock.at(7))), None);
    }

    #[test]
    fn what_others_sent_astray_is_told_with_the_gap() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(2));
        outage.down(A, "gone".into(), true, wall(3));
        outage.others_strayed((clock.at(1), clock.at(3)));
        outage.others_strayed((clock.at(2), clock.at(4)));
        assert_eq!(
            span(outage.up(A, clock.at(5))),
            Some((clock.at(1), clock.at(5)))
        );
        assert_eq!(outage.take_strays(), None);
        outage.others_strayed((clock.at(6), clock.at(7)));
        assert_eq!(span(outage.up(A, clock.at(8))), None);
        assert_eq!(outage.take_strays(), Some((clock.at(6), clock.at(7))));
        // They left the wrong server after what proves this link was published.
        outage.down(A, "gone".into(), true, wall(9));
        outage.others_strayed((clock.at(8), clock.at(11)));
        assert_eq!(
            span(outage.up(A, clock.at(10))),
            Some((clock.at(8), clock.at(11)))
        );
    }

    #[test]
    fn a_link_strayed_since_it_was_last_proven() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(1));
        outage.up(B, clock.at(2));
        outage.strayed(B, None);
        assert_eq!(outage.take_strayed(), Some(clock.at(2)));
        outage.strayed(B, None);
        outage.strayed(A, None);
        assert_eq!(outage.take_strayed(), Some(clock.at(1)));
        assert_eq!(outage.take_strayed(), None);
    }

    #[test]
    fn what_was_proven_on_a_server_that_was_no_primary_is_not() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(4));
        outage.down(A, "gone".into(), true, wall(5));
        outage.strayed(A, Some(clock.at(2)));
        assert_eq!(outage.take_strayed(), Some(clock.at(2)));
        assert_eq!(
            span(outage.up(A, clock.at(6))),
            Some((clock.at(2), clock.at(6)))
        );
        // Longer ago than it was proven.
        outage.strayed(A, Some(clock.at(7)));
        assert_eq!(outage.take_strayed(), Some(clock.at(6)));
    }

    fn parts(of: &[usize]) -> PartitionSet {
        let all: Vec<Partition> = Partition::all().collect();
        of.iter().map(|n| all[*n]).collect()
    }

    #[test]
    fn what_moves_is_heard_when_its_new_link_is_proven_and_the_gap_is_its_own() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(1));
        outage.up(B, clock.at(2));
        outage.moved(parts(&[0, 3]), (A, B), clock.at(3), wall(3));
        assert_eq!(outage.hearing(), None);
        assert_eq!(outage.health(), degraded(3, MOVING));
        outage.up(A, clock.at(4));
        assert_eq!(outage.hearing(), None, "proven where they were");
        assert_eq!(outage.up(B, clock.at(2)), None, "told late");
        assert_eq!(outage.hearing(), None, "proven before they came");
        let missed = outage.up(B, clock.at(5)).unwrap();
        assert_eq!(missed.span, (clock.at(1) - HEARSAY, clock.at(5)));
        assert_eq!(missed.partitions, parts(&[0, 3]), "of nobody else");
        assert_eq!((outage.health(), outage.count()), (Health::Up, (2, 2)));
        let (since, _) = outage.hearing().unwrap();
        assert_eq!(since, clock.at(5));
        assert_eq!(outage.up(B, clock.at(6)), None);
    }

    #[test]
    fn what_moves_on_was_heard_last_where_it_came_from() {
        let (mut outage, clock) = two();
        outage.up(A, clock.at(1));
        outage.up(B, clock.at(2));
        outage.moved(parts(&[0]), (A, B), clock.at(3), wall(3));
        outage.moved(parts(&[0]), (B, A), clock.at(4), wall(4));
        assert_eq!(outage.up(B, clock.at(5)), None, "it is not there");
        let missed = outage.up(A, clock.at(6)).unwrap();
        assert_eq!(missed.span.0, clock.at(1) - HEARSAY);
        assert_eq!(missed.partitions, parts(&[0]));
    }

    #[test]
    fn a_link_without_partitions_is_no_link() {
        let clock = Clock(Instant::now());
        let (nowhere, new) = (LinkId(7), LinkId(8));
        let all = PartitionSet::all();
        let mut outage = Outage::new([(nowhere, all)], clock.at(0), wall(0));
        outage.moved(all, (nowhere, new), clock.at(1), wall(1));
        assert_eq!(outage.count(), (1, 0));
        outage.down(nowhere, "nowhere".into(), true, wall(2));
        assert_eq!(
            outage.up(new, clock.at(3)),
            None,
            "who never heard misses nothing"
        );
        assert_eq!(outage.health(), Health::Up);
        // The whole of a primary, by a failover.
        outage.down(new, "cut".into(), true, wall(4));
        outage.moved(all, (new, nowhere), clock.at(5), wall(5));
        let missed = outage.up(nowhere, clock.at(6)).unwrap();
        assert_eq!(
            (missed.span, missed.partitions),
            ((clock.at(3) - HEARSAY, clock.at(6)), all)
        );
        assert_eq!(outage.count(), (1, 1));
    }

    proptest! {
        /// Each step is a link's word: up, down, or deaf.
        #[test]
        fn all_is_heard_exactly_while_every_link_works(steps in prop::collection::vec((0u32..3, 0u8..3), 0..40)) {
            let clock = Clock(Instant::now());
            let mut outage = Outage::new(carrying((0..3).map(LinkId)), clock.at(0), wall(0));
            let (mut since, mut proven) = ([None; 3], [None; 3]);
            for (now, (link, word)) in (1..).zip(steps) {
                let (at, id) = (link as usize, LinkId(link));
                if word == 0 {
                    outage.up(id, clock.at(now));
                    since[at].get_or_insert(clock.at(now));
                    proven[at] = Some(clock.at(now));
                } else {
                    outage.down(id, "down".into(), word == 2, wall(now));
                    since[at] = None;
                }
                let works = since.iter().all(Option::is_some);
                prop_assert_eq!(outage.health() == Health::Up, works);
                let (last, first) = (since.iter().flatten().max(), proven.iter().flatten().min());
                let whole = works.then(|| (*last.unwrap(), *first.unwrap()));
                prop_assert_eq!(outage.hearing(), whole);
                for (id, carried) in carrying((0..3).map(LinkId)) {
                    let at = id.0 as usize;
                    let one = since[at].and_then(|since| Some((since, proven[at]?)));
                    prop_assert_eq!(outage.hearing_of(carried), one);
                }
            }
        }
    }
}
