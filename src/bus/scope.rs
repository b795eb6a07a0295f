//! Who a message is for, and on which channels it has to travel.

use std::collections::HashSet;

use smallvec::{SmallVec, smallvec};

use crate::model::id::{SocketId, UserId};
use crate::model::topic::{Topic, TopicKind, TopicRef};

/// A union of topics and its exceptions, as the sender named them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Selection {
    targets: SmallVec<[Topic; 1]>,
    pub(crate) except: SmallVec<[SocketId; 1]>,
    pub(crate) except_users: SmallVec<[UserId; 1]>,
}

/// A [`Selection`], borrowed: what the registry and the envelope work with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scope<'a> {
    pub(crate) targets: SmallVec<[TopicRef<'a>; 1]>,
    pub(crate) except: SmallVec<[SocketId; 1]>,
    pub(crate) except_users: SmallVec<[&'a str; 1]>,
}

/// Which topics carry a selection over the bus.
#[derive(Debug, PartialEq)]
pub(crate) enum Route {
    /// Each copy concerns its own topic alone; no socket is on two of them.
    Separate(SmallVec<[Topic; 1]>),
    /// Each copy names the whole union, and every node acts on the first it hears.
    Union(SmallVec<[Topic; 1]>),
}

/// How far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the sockets of this node alone, without a word to the bus.
    Here,
    Everywhere,
}

/// How much an audience names. Whatever goes to one audience is of one size, and so keeps its order; what goes to
/// a large one may come behind what goes to small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

/// An audience of more topics is large.
const SMALL: usize = 64;

/// A union of more topics travels once to every node instead of once per topic: copies that name
/// all the others would grow with the square.
pub(crate) const MAX_UNION_COPIES: usize = 16;

impl Scope<'_> {
    /// What is left of it without these topics.
    pub(crate) fn without(&self, came: &[Topic]) -> Self {
        let mut rest = self.clone();
        rest.targets
            .retain(|target| !came.iter().any(|topic| TopicRef::from(topic) == *target));
        rest
    }
}

impl Selection {
    pub(crate) fn of(topic: Topic) -> Self {
        Self {
            targets: smallvec![topic],
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, topic: Topic) {
        self.targets.push(topic);
    }

    /// The topic, where it names one and no more.
    pub(crate) fn only(&self) -> Option<&Topic> {
        match self.targets.as_slice() {
            [topic] => Some(topic),
            _ => None,
        }
    }

    /// Those topics of the selection that are meant.
    pub(crate) fn filter(&self, is_meant: impl Fn(&Topic) -> bool) -> SmallVec<[Topic; 1]> {
        let meant = self.targets.iter().filter(|topic| is_meant(topic));
        meant.cloned().collect()
    }

    /// How many topics it names.
    pub(crate) fn topics(&self) -> usize {
        self.targets.len()
    }

    pub(crate) fn size(&self) -> Size {
        match self.targets.len() {
            0..=SMALL => Size::Small,
            _ => Size::Large,
        }
    }

    /// Removes what is named twice, so that nobody is addressed twice.
    pub(crate) fn normalize(&mut self) {
        if self.targets.len() < 2 {
            return;
        }
        if self.targets.iter().any(absorbs_all) {
            self.targets = smallvec![Topic::all()];
            return;
        }
        let mut seen = HashSet::with_capacity(self.targets.len());
        self.targets.retain(|topic| seen.insert(topic.clone()));
    }

    pub(crate) fn scope(&self) -> Scope<'_> {
        Scope {
            targets: self.targets.iter().map(TopicRef::from).collect(),
            except: self.except.clone(),
            except_users: self.except_users.iter().map(UserId::as_str).collect(),
        }
    }

    /// The one topic on which a question about a normalized selection travels, so that the bus can tell
    /// how many nodes took it. `None` when there is nobody to ask.
    pub(crate) fn question_carrier(&self) -> Option<Topic> {
        match self.targets.as_slice() {
            [] => None,
            [topic] => Some(topic.carrier()),
            _ => Some(Topic::nodes()),
        }
    }

    /// How a normalized selection travels.
    pub(crate) fn route(&self) -> Route {
        match self.targets.as_slice() {
            [topic] if has_channel(topic) => Route::Separate(smallvec![topic.clone()]),
            topics if topics.iter().all(shares_no_socket) => Route::Separate(self.targets.clone()),
            targets if targets.len() > MAX_UNION_COPIES => Route::Union(smallvec![Topic::all()]),
            _ => Route::Union(self.carriers()),
        }
    }

    /// Each topic's own, once.
    pub(crate) fn carriers(&self) -> SmallVec<[Topic; 1]> {
        let mut seen = HashSet::with_capacity(self.targets.len());
        let carriers = self.targets.iter().map(Topic::carrier);
        carriers
            .filter(|carrier| seen.insert(carrier.clone()))
            .collect()
    }
}

/// Whether every socket is on it.
fn absorbs_all(topic: &Topic) -> bool {
    match topic.kind() {
        TopicKind::All => true,
        TopicKind::User | TopicKind::Room | TopicKind::Socket => false,
        TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => false,
    }
}

/// Whether what is for it travels on a channel of its own.
fn has_channel(topic: &Topic) -> bool {
    match topic.kind() {
        TopicKind::Socket => false,
        TopicKind::All | TopicKind::User | TopicKind::Room => true,
        TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => true,
    }
}

/// Whether no socket is on two topics of its kind, each of which has a channel.
fn shares_no_socket(topic: &Topic) -> bool {
    match topic.kind() {
        TopicKind::User => true,
        TopicKind::All | TopicKind::Room | TopicKind::Socket => false,
        TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::NodeId;

    fn user(id: &str) -> Topic {
        Topic::user(&UserId::from(id)).unwrap()
    }

    fn selection(topics: impl IntoIterator<Item = Topic>) -> Selection {
        let mut selection = Selection {
            targets: topics.into_iter().collect(),
            ..Selection::default()
        };
        selection.normalize();
        selection
    }

    #[test]
    fn one_topic_and_many_users_travel_separately() {
        let room = Topic::room("r").unwrap();
        assert_eq!(
            selection([room.clone()]).route(),
            Route::Separate(smallvec![room])
        );
        assert_eq!(
            selection([user("a"), user("b"), user("a")]).route(),
            Route::Separate(smallvec![user("a"), user("b")])
        );
        assert_eq!(selection([]).route(), Route::Separate(smallvec![]));
    }

    #[test]
    fn overlapping_topics_travel_as_a_union() {
        let room = Topic::room("r").unwrap();
        assert_eq!(
            selection([user("a"), room.clone()]).route(),
            Route::Union(smallvec![user("a"), room])
        );
        let many = (0..MAX_UNION_COPIES + 1).map(|n| Topic::room(&n.to_string()).unwrap());
        assert_eq!(
            selection(many).route(),
            Route::Union(smallvec![Topic::all()])
        );
    }

    #[test]
    fn sockets_of_one_node_share_a_carrier() {
        let node = NodeId(7);
        let socket = |number| Topic::socket(SocketId { node, number });
        assert_eq!(
            selection([socket(1), socket(2)]).route(),
            Route::Union(smallvec![Topic::node(node)])
        );
        assert_eq!(
            selection([socket(1)]).route(),
            Route::Union(smallvec![Topic::node(node)])
        );
    }

    #[test]
    fn a_question_travels_once() {
        let node = NodeId(7);
        let socket = Topic::socket(SocketId { node, number: 1 });
        assert_eq!(selection([]).question_carrier(), None);
        for (targets, carrier) in [
            (vec![user("a")], user("a")),
            (vec![socket], Topic::node(node)),
            (vec![user("a"), user("b")], Topic::nodes()),
            (vec![user("a"), Topic::all()], Topic::all()),
        ] {
            assert_eq!(selection(targets).question_carrier(), Some(carrier));
        }
    }

    #[test]
    fn all_absorbs_the_rest() {
        assert_eq!(
            selection([user("a"), Topic::all(), user("b")]).route(),
            Route::Separate(smallvec![Topic::all()])
        );
    }
}
