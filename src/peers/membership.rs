//! This node among the others: when it says hello, and what another's hello asks of it. Rules without I/O.
//!
//! ```text
//!                         the nodes hear each other                   said
//!  bus down, or new ------------------------------> hello, reply! ------------> hello, a third of a lease later, ...
//!         ^                                               ^  |                              |
//!         |                                               +--+ not said                     |
//!         +---------------------------------------------------------------------------------+  they do not
//! ```
//! Whoever returns asks all others for a reply, and tells presence, since both sides may have missed something. A node
//! is new to us as well when only it has missed us: so who says hello without being known is asked for its own.
//!
//! What tells an outage from a pause is since when all is heard, and not that somebody noticed it: a link may be down
//! and up again between two looks. So the one thing that is kept is the time for which the others know of us, and a
//! hello that could not be said changes nothing, so that the next look finds the same once more.

use tokio::time::Instant;

use crate::bus::inbound::Hearers;
use crate::bus::outage::Span;

#[derive(Debug, Default)]
pub(super) struct Membership {
    /// The others know of us since all was heard from then on.
    known_since: Option<Instant>,
}

/// What is to be done at a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Duty {
    /// Nothing is heard, and so nothing is said.
    Nothing,
    /// Only says hello: whoever asks must know what is refused here, and does not wait until it is proven that we hear
    /// the others.
    Hello,
    /// Gives up who was silent for a lease of what was heard, and says hello.
    Attend {
        hearing: Span,
        /// We may have missed the others, and they us: presence is told, and the hello asks for replies.
        returned: bool,
    },
}

/// What another node's hello asks of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Welcome {
    /// Presence tells it anew what it wants to be told.
    pub(super) joined: bool,
    pub(super) greeting: Option<Greeting>,
}

/// A hello for one node alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// What it asked for.
    Reply,
    /// Asks for its own, since it takes us for a node that knows it, and would not tell us again what it wants to be
    /// told.
    Request,
}

impl Membership {
    pub(super) fn next(&self, hearing: Option<Span>, is_refused: bool) -> Duty {
        match hearing {
            Some(hearing) => Duty::Attend {
                hearing,
                returned: self.known_since != Some(hearing.0),
            },
            None if is_refused => Duty::Hello,
            None => Duty::Nothing,
        }
    }

    /// The hello of this duty was said.
    pub(super) fn said(&mut self, duty: Duty) {
        if let Duty::Attend { hearing, .. } = duty {
            self.known_since = Some(hearing.0);
        }
    }
}

impl Welcome {
    /// To a node that said hello, and may want a reply; to this node alone, or to everybody.
    pub(super) fn to(is_new: bool, wants_reply: bool, hearers: Hearers) -> Self {
        Self {
            joined: is_new || wants_reply,
            greeting: match (wants_reply, is_new, hearers) {
                (true, ..) => Some(Greeting::Reply),
                (false, true, Hearers::Others) => Some(Greeting::Request),
                // What was said to us alone is a reply.
                (false, true, Hearers::ThisNode) | (false, false, _) => None,
            },
        }
    }
}

impl Greeting {
    pub(super) fn wants_reply(self) -> bool {
        self == Self::Request
    }

    /// Unsaid, whether the node is to be unknown again, so that its next hello finds it new.
    pub(super) fn must_be_said(self) -> bool {
        self == Self::Request
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::model::id::NodeId;
    use crate::model::roster::NodeInfo;
    use crate::peers::nodes::Nodes;

    const LEASE: Duration = Duration::from_secs(15);

    fn attend(since: Instant, returned: bool) -> Duty {
        Duty::Attend {
            hearing: (since, since + LEASE),
            returned,
        }
    }

    #[test]
    fn who_returns_asks_for_replies_until_it_was_said() {
        let (mut membership, start) = (Membership::default(), Instant::now());
        let look =
            |membership: &Membership, since| membership.next(Some((since, since + LEASE)), false);
        for _ in 0..2 {
            assert_eq!(look(&membership, start), attend(start, true));
        }
        membership.said(attend(start, true));
        assert_eq!(look(&membership, start), attend(start, false));
        assert_eq!(membership.next(None, false), Duty::Nothing);
        assert_eq!(
            look(&membership, start),
            attend(start, false),
            "nothing was missed"
        );
        let back = start + LEASE;
        assert_eq!(look(&membership, back), attend(back, true));
        membership.said(attend(start, false));
        assert_eq!(
            look(&membership, back),
            attend(back, true),
            "of what was before"
        );
    }

    #[test]
    fn who_is_refused_says_so_before_it_hears() {
        let mut membership = Membership::default();
        assert_eq!(membership.next(None, true), Duty::Hello);
        membership.said(Duty::Hello);
        let now = Instant::now();
        let duty = membership.next(Some((now, now + LEASE)), true);
        assert_eq!(duty, attend(now, true), "nobody has told us of itself yet");
    }

    #[test]
    fn a_stranger_is_greeted_and_a_reply_is_not_replied_to() {
        use Hearers::{Others, ThisNode};
        let cases = [
            (true, true, Others, true, Some(Greeting::Reply)),
            (false, true, Others, true, Some(Greeting::Reply)),
            (true, true, ThisNode, true, Some(Greeting::Reply)),
            (true, false, Others, true, Some(Greeting::Request)),
            (true, false, ThisNode, true, None),
            (false, false, Others, false, None),
            (false, false, ThisNode, false, None),
        ];
        for (is_new, wants_reply, hearers, joined, greeting) in cases {
            let welcome = Welcome::to(is_new, wants_reply, hearers);
            assert_eq!(welcome, Welcome { joined, greeting });
        }
        assert!(Greeting::Request.must_be_said() && !Greeting::Reply.must_be_said());
    }

    /// One of two nodes, and what it last did about the other.
    #[derive(Default)]
    struct One {
        membership: Membership,
        nodes: Nodes,
        /// Since when it has heard everything.
        up: Option<Instant>,
        /// What it publishes fails.
        mute: bool,
        /// When presence told the other last what it wants to be told, and when it forgot what the other wanted.
        asked: u64,
        forgot: u64,
    }

    /// Two nodes over a bus that is down for one of them, or does not take what it says.
    struct World {
        nodes: [One; 2],
        now: Instant,
        /// Of what happened.
        number: u64,
    }

    #[derive(Debug, Clone)]
    enum Event {
        Up(usize),
        Down(usize),
        Mute(usize, bool),
        Look(usize),
        Pass(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let one = || 0..2usize;
        prop_oneof![
            one().prop_map(Event::Up),
            one().prop_map(Event::Down),
            (one(), any::<bool>()).prop_map(|(at, mute)| Event::Mute(at, mute)),
            one().prop_map(Event::Look),
            one().prop_map(Event::Look),
            (1..20u64).prop_map(Event::Pass),
        ]
    }

    impl World {
        fn new() -> Self {
            let nodes = [One::default(), One::default()];
            let (now, number) = (Instant::now(), 0);
            Self { nodes, now, number }
        }

        fn happens(&mut self, event: &Event) {
            self.number += 1;
            match *event {
                Event::Up(at) => {
                    self.nodes[at].up.get_or_insert(self.now);
                }
                Event::Down(at) => self.nodes[at].up = None,
                Event::Mute(at, mute) => self.nodes[at].mute = mute,
                Event::Look(at) => self.look(at),
                Event::Pass(seconds) => self.now += Duration::from_secs(seconds),
            }
        }

        fn look(&mut self, at: usize) {
            let hearing = self.nodes[at].up.map(|since| (since, self.now));
            let duty = self.nodes[at].membership.next(hearing, false);
            let Duty::Attend { hearing, returned } = duty else {
                return;
            };
            if returned {
                self.nodes[at].asked = self.number;
            }
            if !self.nodes[at].nodes.expire(hearing).is_empty() {
                self.nodes[at].forgot = self.number;
            }
            if self.say(at, returned, Hearers::Others) {
                self.nodes[at].membership.said(duty);
            }
        }

        /// Whether it was said; the other hears it if it hears anything.
        fn say(&mut self, at: usize, reply: bool, hearers: Hearers) -> bool {
            if self.nodes[at].mute || self.nodes[at].up.is_none() {
                return false;
            }
            let other = 1 - at;
            if self.nodes[other].up.is_some() {
                self.heard(other, reply, hearers);
            }
            true
        }

        fn heard(&mut self, at: usize, reply: bool, hearers: Hearers) {
            let other = NodeId(1 - at as u64);
            let info = NodeInfo {
                id: other,
                name: String::new(),
                started_at: SystemTime::UNIX_EPOCH,
                sockets: 0,
                users: 0,
                version: String::new(),
            };
            let is_new = self.nodes[at].nodes.heard(info, LEASE, false, self.now);
            let Welcome { joined, greeting } = Welcome::to(is_new, reply, hearers);
            if joined {
                self.nodes[at].asked = self.number;
            }
            let Some(greeting) = greeting else { return };
            let said = self.say(at, greeting.wants_reply(), Hearers::ThisNode);
            if greeting.must_be_said() && !said {
                self.nodes[at].nodes.left(other);
            }
        }
    }

    proptest! {
        /// Whatever was missed: in the end both know each other, and whoever forgot what the other wanted was told anew.
        #[test]
        fn in_the_end_both_know_each_other(events in proptest::collection::vec(event(), 0..60)) {
            let mut world = World::new();
            for event in &events {
                world.happens(event);
            }
            for at in 0..2 {
                world.happens(&Event::Mute(at, false));
                world.happens(&Event::Up(at));
            }
            for _ in 0..2 {
                for at in 0..2 {
                    world.happens(&Event::Look(at));
                }
            }
            for at in 0..2 {
                let (one, other) = (&world.nodes[at], &world.nodes[1 - at]);
                prop_assert!(one.nodes.contains(NodeId(1 - at as u64)));
                prop_assert!(one.asked >= other.forgot, "{at} has not asked since it was forgotten");
            }
        }
    }
}
