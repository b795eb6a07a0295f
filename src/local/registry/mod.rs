//! Which socket of this node is on which topic.
//!
//! Generic over what a socket is reached by, so that the rules are tested without any I/O.

mod group;
mod rooms;
mod wanted;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;
use indexmap::map::Values;
use smallvec::SmallVec;

use self::group::Group;
pub(crate) use self::rooms::Rooms;
pub(crate) use self::wanted::{EVERY, Wanted};
use crate::model::description::{Description, Descriptions};
use crate::model::id::{SocketId, UserId};
use crate::model::roster::SocketInfo;
use crate::model::topic::{Topic, TopicKind, TopicRef};

/// A socket as the rules see it.
pub(crate) trait Member: Clone {
    fn id(&self) -> SocketId;
    fn user(&self) -> &UserId;
    /// The topic of its user.
    fn topic(&self) -> &Topic;
}

/// The limits that admission respects. Reservations count, so they are exact.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    pub(crate) sockets: Option<usize>,
    pub(crate) sockets_per_user: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Node,
    User,
}

#[derive(Debug)]
pub(crate) struct Registry<M> {
    /// By their numbers: all are of this node.
    sockets: IndexMap<u64, MemberEntry<M>>,
    groups: HashMap<Topic, Group<M>>,
    /// Sockets and reservations.
    places: usize,
    users: usize,
    rooms: usize,
}

/// What rosters tell of a socket beside its rooms.
#[derive(Debug)]
pub(crate) struct About {
    pub(crate) connected_at: SystemTime,
    pub(crate) description: Option<Description>,
}

#[derive(Debug)]
struct MemberEntry<M> {
    member: M,
    rooms: Rooms,
    about: About,
}

/// What is left of a socket that was removed. Its member may be the last of it, and its end is foreign: to be
/// dropped when the registry is unlocked.
#[derive(Debug)]
#[must_use = "drop it without the lock"]
pub(crate) struct Removed<M> {
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) member: M,
}

impl<M: Member> Registry<M> {
    pub(crate) fn new() -> Self {
        Self {
            sockets: IndexMap::new(),
            groups: HashMap::new(),
            places: 0,
            users: 0,
            rooms: 0,
        }
    }

    pub(crate) fn sockets(&self) -> usize {
        self.sockets.len()
    }

    pub(crate) fn users(&self) -> usize {
        self.users
    }

    pub(crate) fn rooms(&self) -> usize {
        self.rooms
    }

    /// Takes a place for a socket of this user, until [`give_place_back`](Self::give_place_back) gives it back.
    pub(crate) fn take_place(&mut self, user: &Topic, limits: Limits) -> Result<(), Full> {
        if limits.sockets.is_some_and(|limit| self.places >= limit) {
            return Err(Full::Node);
        }
        let taken = self.groups.get(user).map_or(0, Group::places) as usize;
        if limits.sockets_per_user.is_some_and(|limit| taken >= limit) {
            return Err(Full::User);
        }
        *self.group(user).places_mut() += 1;
        self.places += 1;
        Ok(())
    }

    pub(crate) fn give_place_back(&mut self, user: &Topic) {
        let Some(group) = self.groups.get_mut(user) else {
            return;
        };
        *group.places_mut() -= 1;
        self.places -= 1;
        if group.is_unused() {
            self.remove_group(user);
        }
    }

    /// Puts a socket that has a place onto its user's topic.
    pub(crate) fn insert(&mut self, member: M, about: About) {
        self.add_to(member.topic(), member.clone());
        self.sockets.insert(
            member.id().number,
            MemberEntry {
                member,
                rooms: Rooms::default(),
                about,
            },
        );
    }

    /// Takes a socket off every topic; its place stays.
    pub(crate) fn remove(&mut self, id: SocketId) -> Option<Removed<M>> {
        self.entry(id)?;
        let entry = take_out(&mut self.sockets, id.number)?;
        for topic in entry.rooms.iter().chain([entry.member.topic()]) {
            self.remove_from(topic, id);
        }
        Some(Removed {
            rooms: Arc::new(entry.rooms),
            member: entry.member,
        })
    }

    /// Whether the socket newly joined; `None` when it is not registered.
    pub(crate) fn join(&mut self, id: SocketId, room: &Topic) -> Option<bool> {
        let entry = self.entry_mut(id)?;
        if !entry.rooms.insert(room) {
            return Some(false);
        }
        let member = entry.member.clone();
        self.add_to(room, member);
        Some(true)
    }

    /// Whether the socket was in the room.
    pub(crate) fn leave(&mut self, id: SocketId, room: &Topic) -> bool {
        let Some(entry) = self.entry_mut(id) else {
            return false;
        };
        if !entry.rooms.remove(room) {
            return false;
        }
        self.remove_from(room, id);
        true
    }

    /// Who is meant: each socket once, however often it matches. Takes time for the targets and their sockets,
    /// not for the exceptions.
    pub(crate) fn select(&self, wanted: &Wanted<'_>) -> SmallVec<[M; 4]> {
        let mut selected = SmallVec::new();
        let mut seen = (wanted.targets.len() > 1).then(HashSet::new);
        for topic in wanted.targets.iter() {
            let members = self.on(*topic);
            selected.reserve(members.size_hint().0);
            members.for_each(|member| {
                if !wanted.numbers.contains(&member.id().number)
                    || wanted.except.contains(|| member.id())
                    || wanted.except_users.contains(|| member.user().as_str())
                    || seen.as_mut().is_some_and(|seen| !seen.insert(member.id()))
                {
                    return;
                }
                selected.push(member.clone());
            });
        }
        selected
    }

    /// What a roster tells of a socket, whose identity ends then; `None` when it is not registered.
    pub(crate) fn describe(
        &self,
        id: SocketId,
        expires_at: Option<SystemTime>,
    ) -> Option<SocketInfo> {
        let entry = self.entry(id)?;
        let description = entry.about.description.as_ref();
        Some(SocketInfo {
            id,
            user: entry.member.user().clone(),
            connected_at: entry.about.connected_at,
            rooms: entry.rooms.iter().filter_map(Topic::as_room).collect(),
            description: description.and_then(Description::value),
            expires_at,
        })
    }

    pub(crate) fn rooms_of(&self, id: SocketId) -> Option<&Rooms> {
        self.entry(id).map(|entry| &entry.rooms)
    }

    /// Describes a socket anew; what was said before is to be dropped without the lock.
    pub(crate) fn redescribe(
        &mut self,
        id: SocketId,
        description: Description,
    ) -> Option<Option<Description>> {
        let entry = self.entry_mut(id)?;
        Some(entry.about.description.replace(description))
    }

    /// Every user with a socket on a topic, and what they are described as.
    pub(crate) fn users_on(&self, topic: &Topic) -> HashMap<UserId, Descriptions> {
        let mut users: HashMap<UserId, Descriptions> = HashMap::new();
        for member in self.on(topic.into()) {
            let descriptions = users.entry(member.user().clone()).or_default();
            let about = self.entry(member.id()).map(|entry| &entry.about);
            if let Some(description) = about.and_then(|about| about.description.as_ref()) {
                descriptions.insert(description.clone());
            }
        }
        users
    }

    /// As what a user is described that has a socket on a topic.
    pub(crate) fn user_on(&self, user: &Topic, topic: &Topic) -> Option<Descriptions> {
        let mut found = None;
        let entries = self.on(user.into());
        let entries = entries.filter_map(|member| self.entry(member.id()));
        for entry in entries.filter(|entry| entry.is_on(topic)) {
            let descriptions: &mut Descriptions = found.get_or_insert_default();
            if let Some(description) = &entry.about.description {
                descriptions.insert(description.clone());
            }
        }
        found
    }

    /// Every socket.
    pub(crate) fn members(&self) -> impl Iterator<Item = &M> {
        self.sockets.values().map(|entry| &entry.member)
    }

    /// Every topic on which there is a socket.
    pub(crate) fn topics(&self) -> Vec<Topic> {
        let used = self.groups.iter().filter(|(_, group)| !group.is_empty());
        used.map(|(topic, _)| topic.clone()).collect()
    }

    /// Whether a user or a room has a socket here.
    pub(crate) fn has_member(&self, topic: &Topic) -> bool {
        let group = self.groups.get(topic);
        group.is_some_and(|group| !group.is_empty())
    }

    /// Whether one is on a topic.
    pub(crate) fn has_on(&self, topic: TopicRef<'_>) -> bool {
        self.on(topic).next().is_some()
    }

    /// The sockets on a topic. Says at least how many, so that whoever gathers them makes room once.
    fn on(&self, topic: TopicRef<'_>) -> impl Iterator<Item = &M> {
        let (mut one, mut many, mut all) = (None, Values::default(), Values::default());
        match topic.kind() {
            TopicKind::All => all = self.sockets.values(),
            TopicKind::Socket => {
                let entry = topic.as_socket().and_then(|id| self.entry(id));
                one = entry.map(|entry| &entry.member);
            }
            TopicKind::User | TopicKind::Room => {
                if let Some(group) = self.groups.get(topic.as_str()) {
                    (one, many) = group.members();
                }
            }
            // No socket is on those.
            TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => {}
        }
        let all = all.map(|entry: &MemberEntry<M>| &entry.member);
        one.into_iter().chain(many).chain(all)
    }

    fn entry(&self, id: SocketId) -> Option<&MemberEntry<M>> {
        let entry = self.sockets.get(&id.number);
        entry.filter(|entry| entry.member.id() == id)
    }

    fn entry_mut(&mut self, id: SocketId) -> Option<&mut MemberEntry<M>> {
        let entry = self.sockets.get_mut(&id.number);
        entry.filter(|entry| entry.member.id() == id)
    }

    fn group(&mut self, topic: &Topic) -> &mut Group<M> {
        self.groups.entry(topic.clone()).or_default()
    }

    fn remove_group(&mut self, topic: &Topic) {
        self.groups.remove(topic);
        if is_roomy(self.groups.len(), self.groups.capacity()) {
            self.groups.shrink_to(2 * self.groups.len());
        }
    }

    fn add_to(&mut self, topic: &Topic, member: M) {
        if self.group(topic).add(member)
            && let Some(count) = self.count(topic)
        {
            *count += 1;
        }
    }

    fn remove_from(&mut self, topic: &Topic, id: SocketId) {
        let Some(group) = self.groups.get_mut(topic) else {
            return;
        };
        let emptied = group.remove(id.number);
        if group.is_unused() {
            self.remove_group(topic);
        }
        if emptied && let Some(count) = self.count(topic) {
            *count -= 1;
        }
    }

    /// The counter of topics of this kind that have a member, if those are groups.
    fn count(&mut self, topic: &Topic) -> Option<&mut usize> {
        match topic.kind() {
            TopicKind::User => Some(&mut self.users),
            TopicKind::Room => Some(&mut self.rooms),
            TopicKind::All
            | TopicKind::Socket
            | TopicKind::Node
            | TopicKind::Nodes
            | TopicKind::Presence => None,
        }
    }
}

impl<M: Member> MemberEntry<M> {
    fn is_on(&self, topic: &Topic) -> bool {
        match topic.kind() {
            TopicKind::All => true,
            TopicKind::User => self.member.topic() == topic,
            TopicKind::Room => self.rooms.contains(topic),
            TopicKind::Socket => topic.as_socket() == Some(self.member.id()),
            TopicKind::Node | TopicKind::Nodes | TopicKind::Presence => false,
        }
    }
}

/// Takes one out of a table, which then may give back what it had for others.
pub(super) fn take_out<T>(table: &mut IndexMap<u64, T>, number: u64) -> Option<T> {
    let taken = table.swap_remove(&number);
    if is_roomy(table.len(), table.capacity()) {
        table.shrink_to(2 * table.len());
    }
    taken
}

/// Whether a table gives back what it had for a crowd that is gone: at a quarter, so that it costs each who left little.
fn is_roomy(len: usize, capacity: usize) -> bool {
    capacity > 1024 && len < capacity / 4
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Arc, Weak};
    use std::time::{Duration, Instant};

    use parking_lot::RwLock;
    use proptest::prelude::*;
    use serde_json::json;
    use smallvec::smallvec;

    use super::*;
    use crate::bus::scope::Scope;
    use crate::model::id::NodeId;

    #[derive(Clone, Debug, PartialEq)]
    struct Fake(SocketId, UserId, Topic);

    impl Member for Fake {
        fn id(&self) -> SocketId {
            self.0
        }
        fn user(&self) -> &UserId {
            &self.1
        }
        fn topic(&self) -> &Topic {
            &self.2
        }
    }

    fn id(number: u64) -> SocketId {
        SocketId {
            node: NodeId(1),
            number,
        }
    }

    fn user(name: &str) -> Topic {
        Topic::user(&UserId::from(name)).unwrap()
    }

    fn room(name: &str) -> Topic {
        Topic::room(name).unwrap()
    }

    fn connect(registry: &mut Registry<Fake>, number: u64, name: &str) {
        registry.take_place(&user(name), Limits::default()).unwrap();
        registry.insert(fake(number, name), about());
    }

    fn fake(number: u64, name: &str) -> Fake {
        Fake(id(number), name.into(), user(name))
    }

    fn about() -> About {
        About {
            connected_at: SystemTime::UNIX_EPOCH,
            description: Some(Description::of(&json!({"device": "phone"})).unwrap()),
        }
    }

    fn numbers(registry: &Registry<Fake>, scope: &Scope<'_>) -> Vec<u64> {
        let selected = registry.select(&Wanted::of(scope));
        let mut numbers: Vec<_> = selected.iter().map(|m| m.0.number).collect();
        numbers.sort_unstable();
        numbers
    }

    fn targets<'a>(targets: impl IntoIterator<Item = &'a str>) -> Scope<'a> {
        Scope {
            targets: targets.into_iter().filter_map(TopicRef::of).collect(),
            ..Scope::default()
        }
    }

    #[test]
    fn a_socket_matched_several_ways_is_selected_once() {
        let mut registry = Registry::new();
        connect(&mut registry, 1, "alice");
        connect(&mut registry, 2, "alice");
        connect(&mut registry, 3, "bob");
        registry.join(id(1), &room("x"));
        registry.join(id(3), &room("x"));
        let socket = Topic::socket(id(1));
        assert_eq!(
            numbers(&registry, &targets(["u:alice", "r:x", socket.as_str()])),
            [1, 2, 3]
        );
        assert_eq!(
            numbers(&registry, &targets(["u:alic", "u:alicee", "u:Alice"])),
            [0; 0]
        );
        assert_eq!(numbers(&registry, &targets(["all"])), [1, 2, 3]);
        let scope = Scope {
            except: smallvec![id(2)],
            except_users: smallvec!["bob"],
            ..targets(["all"])
        };
        assert_eq!(numbers(&registry, &scope), [1]);
    }

    #[test]
    fn limits_count_reservations() {
        let mut registry = Registry::<Fake>::new();
        let limits = Limits {
            sockets: Some(3),
            sockets_per_user: Some(2),
        };
        registry.take_place(&user("a"), limits).unwrap();
        registry.take_place(&user("a"), limits).unwrap();
        assert_eq!(registry.take_place(&user("a"), limits), Err(Full::User));
        registry.take_place(&user("b"), limits).unwrap();
        assert_eq!(registry.take_place(&user("c"), limits), Err(Full::Node));
        registry.give_place_back(&user("a"));
        registry.insert(fake(1, "a"), about());
        registry.take_place(&user("a"), limits).unwrap();
        assert_eq!(registry.take_place(&user("a"), limits), Err(Full::Node));
    }

    #[test]
    fn a_socket_is_described_with_its_rooms() {
        let mut registry = Registry::new();
        connect(&mut registry, 1, "alice");
        registry.join(id(1), &room("a b"));
        let info = registry.describe(id(1), None).unwrap();
        assert_eq!((info.id, info.user.as_str()), (id(1), "alice"));
        assert_eq!(info.rooms, ["a b"]);
        assert_eq!(info.description.unwrap()["device"], "phone");
        assert_eq!(registry.describe(id(2), None), None);
    }

    #[test]
    fn what_a_crowd_had_is_given_back() {
        let mut registry = Registry::new();
        for number in 0..10_000 {
            connect(&mut registry, number, &number.to_string());
            registry.join(id(number), &room("x"));
        }
        let sizes = |registry: &Registry<Fake>| {
            let Some(Group::Many { members, .. }) = registry.groups.get(&room("x")) else {
                panic!("they are many");
            };
            let tables = (registry.sockets.capacity(), registry.groups.capacity());
            [tables.0, tables.1, members.capacity()]
        };
        let crowded = sizes(&registry);
        assert!(crowded.iter().all(|size| *size >= 10_000), "{crowded:?}");
        for number in 10..10_000 {
            drop(registry.remove(id(number)));
            registry.give_place_back(&user(&number.to_string()));
        }
        let left = sizes(&registry);
        assert!(left.iter().all(|size| *size < 2_000), "{left:?}");
        assert_eq!(numbers(&registry, &targets(["r:x"])), Vec::from_iter(0..10));
    }

    /// Notes at its end whether the registry is free, as that of a socket would close a stream.
    struct Last {
        fake: Fake,
        registry: Weak<RwLock<Registry<Arc<Last>>>>,
        free: Arc<AtomicBool>,
    }

    impl Member for Arc<Last> {
        fn id(&self) -> SocketId {
            self.fake.0
        }
        fn user(&self) -> &UserId {
            &self.fake.1
        }
        fn topic(&self) -> &Topic {
            &self.fake.2
        }
    }

    impl Drop for Last {
        fn drop(&mut self) {
            let registry = self.registry.upgrade();
            let free = registry.is_some_and(|registry| registry.try_write().is_some());
            self.free.store(free, SeqCst);
        }
    }

    #[test]
    fn the_last_of_a_socket_is_dropped_without_the_lock() {
        let registry = Arc::new(RwLock::new(Registry::new()));
        let free = Arc::new(AtomicBool::new(false));
        for number in 0..3 {
            let last = Arc::new(Last {
                fake: fake(number, "alice"),
                registry: Arc::downgrade(&registry),
                free: free.clone(),
            });
            registry.write().insert(last, about());
            registry.write().join(id(number), &room("x"));
        }
        for number in 0..3 {
            let removed = registry.write().remove(id(number));
            assert!(!free.swap(false, SeqCst), "it is not over yet");
            drop(removed);
            assert!(free.swap(false, SeqCst));
        }
    }

    /// The quickest of a few, so that a busy machine does not matter.
    fn quickest(mut step: impl FnMut()) -> Duration {
        let times = (0..5).map(|_| {
            let start = Instant::now();
            step();
            start.elapsed()
        });
        times.min().unwrap()
    }

    /// Sixteen times as much of everything takes sixteen times as long, or a few times that where it no longer fits
    /// into a cache, and not 256 times. Tried again, since others may take the machine away for a while; so sixteen times
    /// as much is to be over sooner than they do.
    fn no_product(mut step: impl FnMut(usize) -> Duration) {
        let tries = (0..5).map(|_| (step(1), step(16)));
        let tries: Vec<_> = tries.collect();
        assert!(
            tries.iter().any(|(once, sixteen)| *sixteen < 96 * *once),
            "{tries:?}"
        );
    }

    #[test]
    fn exceptions_and_repeated_targets_cost_no_product() {
        let registry = |times: usize| {
            let mut registry = Registry::new();
            for n in 0..31 * times {
                connect(&mut registry, n as u64, &format!("user {n}"));
            }
            registry
        };
        no_product(|times| {
            let registry = registry(times);
            let names: Vec<_> = (0..312 * times).map(|n| format!("nobody {n}")).collect();
            let scope = Scope {
                except_users: names.iter().map(String::as_str).collect(),
                ..targets(["all"])
            };
            quickest(|| assert_eq!(registry.select(&Wanted::of(&scope)).len(), 31 * times))
        });
        no_product(|times| {
            let registry = registry(times);
            let scope = targets(std::iter::repeat_n("all", 312 * times));
            quickest(|| assert_eq!(registry.select(&Wanted::of(&scope)).len(), 31 * times))
        });
    }

    #[test]
    fn exceptions_are_sorted_in_before_the_lock() {
        let names: Vec<_> = (0..200_000).map(|n| format!("nobody {n}")).collect();
        let mut registry = Registry::new();
        connect(&mut registry, 1, "alice");
        let excepting = Scope {
            except_users: names.iter().map(String::as_str).collect(),
            ..targets(["all"])
        };
        let wanted = Wanted::of(&excepting);
        let tries = (0..5).map(|_| {
            let preparing = quickest(|| drop(Wanted::of(&excepting)));
            let locked = quickest(|| assert_eq!(registry.select(&wanted).len(), 1));
            (locked, preparing)
        });
        let tries: Vec<_> = tries.collect();
        assert!(
            tries
                .iter()
                .any(|(locked, preparing)| 20 * *locked < *preparing),
            "{tries:?}"
        );
    }

    #[test]
    fn thousands_of_rooms_cost_a_socket_no_square() {
        no_product(|times| {
            let rooms: Vec<_> = (0..1_000 * times).map(|n| room(&n.to_string())).collect();
            let mut registry = Registry::new();
            connect(&mut registry, 1, "alice");
            quickest(|| {
                for room in &rooms {
                    assert_eq!(registry.join(id(1), room), Some(true));
                }
                for room in rooms.iter().rev() {
                    assert!(registry.user_on(&user("alice"), room).is_some());
                }
                for room in &rooms {
                    assert!(registry.leave(id(1), room));
                }
            })
        });
    }

    #[derive(Clone, Debug)]
    enum Op {
        Connect(u8),
        Remove(u8),
        Join(u8, u8),
        Leave(u8, u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..3).prop_map(Op::Connect),
            any::<u8>().prop_map(Op::Remove),
            (any::<u8>(), 0u8..3).prop_map(|(s, r)| Op::Join(s, r)),
            (any::<u8>(), 0u8..3).prop_map(|(s, r)| Op::Leave(s, r)),
        ]
    }

    proptest! {
        #[test]
        fn whoever_is_selected_is_named_and_not_excepted(
            users in proptest::collection::vec(0u64..30, 0..40),
            named in proptest::collection::vec(0u64..30, 0..40),
            except in proptest::collection::vec(0u64..40, 0..20),
            except_users in proptest::collection::vec(0u64..30, 0..20),
        ) {
            let mut registry = Registry::new();
            for (number, name) in (0..).zip(&users) {
                connect(&mut registry, number, &name.to_string());
            }
            let named_topics: Vec<_> = named.iter().map(|n| user(&n.to_string())).collect();
            let excepted: Vec<_> = except_users.iter().map(u64::to_string).collect();
            let scope = Scope {
                except: except.iter().copied().map(id).collect(),
                except_users: excepted.iter().map(String::as_str).collect(),
                ..targets(named_topics.iter().map(Topic::as_str))
            };
            let meant: Vec<u64> = (0..).zip(&users)
                .filter(|(n, u)| named.contains(u) && !except.contains(n) && !except_users.contains(u))
                .map(|(n, _)| n)
                .collect();
            prop_assert_eq!(numbers(&registry, &scope), meant);
        }

        /// Against the plainest possible model: a list of sockets with their user and rooms.
        #[test]
        fn every_history_agrees_with_a_list(ops in proptest::collection::vec(op(), 0..80)) {
            let mut registry = Registry::new();
            let mut model: Vec<(u64, u8, HashSet<u8>)> = Vec::new();
            let mut next = 0;
            for op in ops {
                let pick = |s: u8, model: &Vec<_>| (!model.is_empty()).then(|| s as usize % model.len());
                match op {
                    Op::Connect(u) => {
                        connect(&mut registry, next, &u.to_string());
                        model.push((next, u, HashSet::new()));
                        next += 1;
                    }
                    Op::Remove(s) => if let Some(at) = pick(s, &model) {
                        let (number, user_number, rooms) = model.remove(at);
                        prop_assert_eq!(registry.remove(id(number)).map(|left| left.rooms.iter().count()), Some(rooms.len()));
                        prop_assert!(registry.remove(id(number)).is_none());
                        registry.give_place_back(&user(&user_number.to_string()));
                    },
                    Op::Join(s, r) => if let Some(at) = pick(s, &model) {
                        let new = model[at].2.insert(r);
                        prop_assert_eq!(registry.join(id(model[at].0), &room(&r.to_string())), Some(new));
                    },
                    Op::Leave(s, r) => if let Some(at) = pick(s, &model) {
                        let was = model[at].2.remove(&r);
                        prop_assert_eq!(registry.leave(id(model[at].0), &room(&r.to_string())), was);
                    },
                }
            }
            for n in 0u8..3 {
                let of_user: Vec<u64> = model.iter().filter(|m| m.1 == n).map(|m| m.0).collect();
                let in_room: Vec<u64> = model.iter().filter(|m| m.2.contains(&n)).map(|m| m.0).collect();
                prop_assert_eq!(numbers(&registry, &targets([user(&n.to_string()).as_str()])), of_user);
                prop_assert_eq!(numbers(&registry, &targets([room(&n.to_string()).as_str()])), in_room);
                let users_in: HashSet<UserId> = model.iter().filter(|m| m.2.contains(&n)).map(|m| UserId::from(m.1.to_string())).collect();
                for u in 0u8..3 {
                    let (name, of_user) = (UserId::from(u.to_string()), user(&u.to_string()));
                    prop_assert_eq!(registry.user_on(&of_user, &room(&n.to_string())).is_some(), users_in.contains(&name));
                    prop_assert_eq!(registry.user_on(&of_user, &Topic::all()).is_some(), model.iter().any(|m| m.1 == u));
                }
                prop_assert_eq!(registry.users_on(&room(&n.to_string())).into_keys().collect::<HashSet<_>>(), users_in);
            }
            let users: HashSet<u8> = model.iter().map(|m| m.1).collect();
            let rooms: HashSet<u8> = model.iter().flat_map(|m| m.2.clone()).collect();
            prop_assert_eq!((registry.sockets(), registry.users(), registry.rooms()), (model.len(), users.len(), rooms.len()));
            for (number, user_number, _) in model {
                drop(registry.remove(id(number)));
                registry.give_place_back(&user(&user_number.to_string()));
            }
            prop_assert!(registry.groups.is_empty() && registry.sockets.is_empty());
            prop_assert_eq!((registry.places, registry.users, registry.rooms), (0, 0, 0));
        }
    }
}
