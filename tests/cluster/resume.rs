//! Clients that come back and go on where they were (rows H6 to H11).

use std::time::Duration;

use axum_cluster::{
    Backend, ClusterBuilder, Health, History, Missed, Position, Resumed, SlowConsumer, Subscription,
};
use futures::future::join_all;
use futures::{FutureExt, StreamExt};

use crate::support::client::{Event, user_header};
use crate::support::events::EventSource;
use crate::support::node::TestNode;
use crate::support::proxy::Proxy;
use crate::support::redis::redis_cluster::{RedisCluster, part, slot_of};
use crate::support::redis::sentinels::Sentinels;
use crate::support::{Client, Lab, RedisServer, soon, until};

on_every_bus! {
    whoever_comes_back_to_another_node_has_everything_once
    a_second_return_without_news_brings_nothing
    one_that_never_heard_anything_goes_on_all_the_same
    the_old_socket_may_still_be_there_and_neither_hears_its_own
    a_position_that_is_none_of_theirs_is_foreign_and_brings_nothing
    more_than_is_kept_is_told_and_not_sent_in_part
    what_was_missed_of_a_room_comes_when_it_is_joined_again
    whom_others_put_into_a_room_goes_on_there
    whom_others_put_back_into_a_room_has_what_it_missed_there
    of_a_room_that_is_not_kept_it_is_told_that_it_is_forgotten
    a_stream_of_events_goes_on_by_the_last_event_id
    a_subscription_goes_on_where_its_reader_was
    a_join_for_which_nobody_waits_brings_what_was_missed
    plain_clients_get_what_they_always_did
    what_was_missed_of_two_rooms_at_once_comes_once
    a_union_that_came_before_a_room_is_joined_again_comes_once
}

const MARK: char = '\u{1}';

fn kept(lab: &Lab) -> ClusterBuilder {
    let history = History::default();
    lab.builder()
        .user_history(history)
        .room_history(history)
        .all_history(history)
}

async fn node(builder: ClusterBuilder) -> TestNode {
    let node = TestNode::start(builder.start()).await;
    node.until_up().await;
    node
}

async fn nodes<const N: usize>(lab: &Lab) -> [TestNode; N] {
    let nodes = join_all((0..N).map(|_| node(kept(lab)))).await;
    nodes.try_into().unwrap_or_else(|_| unreachable!())
}

/// A page that does what the guide says.
struct Page {
    client: Client,
    user: String,
    base: String,
    number: String,
    missed: Vec<String>,
}

impl Page {
    async fn open(node: &TestNode, user: &str) -> Self {
        Self::at(node, user, "").await
    }

    /// The same page at another node.
    async fn back(self, node: &TestNode) -> Self {
        let (user, since) = (self.user.clone(), self.position());
        drop(self);
        Self::at(node, &user, &since).await
    }

    async fn at(node: &TestNode, user: &str, since: &str) -> Self {
        Self::in_room(node, user, since, "").await
    }

    /// One that is in a room before its upgrade.
    async fn in_room(node: &TestNode, user: &str, since: &str, room: &str) -> Self {
        let path = match since {
            "" => "/ws".to_owned(),
            since => format!("/ws?since={since}"),
        };
        let user_header = user_header(user);
        let mut headers = vec![
            ("x-user", &*user_header),
            ("sec-websocket-protocol", "resume.v1"),
        ];
        if !room.is_empty() {
            headers.push(("x-room", room));
        }
        let client = Client::try_connect(node.addr, &path, &headers).await;
        Self {
            client: client.unwrap(),
            user: user.to_owned(),
            base: String::new(),
            number: String::new(),
            missed: Vec::new(),
        }
    }

    fn position(&self) -> String {
        match self.number.as_str() {
            "" => self.base.clone(),
            number => format!("{}~{number}", self.base),
        }
    }

    /// The next message of the app.
    async fn next(&mut self) -> String {
        let mut next = String::new();
        loop {
            let Event::Text(text) = self.client.event().await else {
                panic!("it ended")
            };
            match text.strip_prefix(MARK) {
                None => {
                    self.has(next);
                    return text;
                }
                Some(said) if said.starts_with(MARK) => {
                    self.has(next);
                    return said.to_owned();
                }
                Some(said) => match said.split_at(1) {
                    ("=", token) => self.based(token),
                    ("!", rest) => {
                        let (why, token) = rest.trim().split_once(' ').unwrap();
                        self.missed.push(why.to_owned());
                        self.based(token);
                    }
                    _ => next = said.to_owned(),
                },
            }
        }
    }

    fn has(&mut self, number: String) {
        if !number.is_empty() {
            self.number = number;
        }
    }

    fn based(&mut self, token: &str) {
        self.base = token.to_owned();
        self.number.clear();
    }

    /// What comes until it is answered.
    async fn all(&mut self) -> Vec<String> {
        self.client.send("ping").await;
        let mut all = Vec::new();
        loop {
            match self.next().await.as_str() {
                "ping" => return all,
                message => all.push(message.to_owned()),
            }
        }
    }
}

async fn send(node: &TestNode, user: &str, texts: impl IntoIterator<Item = u32>) {
    for n in texts {
        let sent = node.broadcaster.to_user(user).send(n.to_string()).await;
        sent.unwrap();
    }
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

async fn whoever_comes_back_to_another_node_has_everything_once(lab: Lab) {
    const PAGES: usize = 20;
    let [a, b, c] = nodes(&lab).await;
    let name = |n| format!("user-{n}");
    let mut pages = Vec::new();
    for n in 0..PAGES {
        pages.push(Page::open(&a, &name(n)).await);
    }
    for (n, page) in pages.iter_mut().enumerate() {
        assert_eq!(page.all().await, [] as [&str; 0]);
        send(&c, &name(n), 0..5).await;
        for text in numbers(0..5) {
            assert_eq!(soon("a message", page.next()).await, text);
        }
    }
    // The node is gone at once, and nobody said anything.
    let mut back = Vec::new();
    let users: Vec<(String, String)> = pages
        .iter()
        .map(|page| (page.user.clone(), page.position()))
        .collect();
    drop((pages, a));
    for (user, _) in &users {
        send(&c, user, 5..12).await;
    }
    for (user, since) in &users {
        let control = b.client(user).await;
        back.push((Page::at(&b, user, since).await, control));
    }
    for (page, control) in &mut back {
        send(&c, &page.user, 12..14).await;
        assert_eq!(control.event().await, Event::Text("12".into()), "control");
        let mut heard = Vec::new();
        while heard.len() < 9 {
            heard.push(soon("what was missed", page.next()).await);
        }
        assert_eq!(heard, numbers(5..14));
        assert_eq!(page.all().await, [] as [&str; 0]);
        assert_eq!(page.missed, [] as [&str; 0]);
    }
    let stats = b.cluster.stats();
    assert_eq!((stats.resumed, stats.resumed_missed), (PAGES as u64, 0));
}

async fn a_second_return_without_news_brings_nothing(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    let since = page.position();
    send(&b, "alice", 0..3).await;
    let mut page = Page::at(&b, "alice", &since).await;
    assert_eq!(page.all().await, numbers(0..3), "control");
    for node in [&a, &b, &a] {
        page = page.back(node).await;
        assert_eq!(page.all().await, [] as [&str; 0]);
        assert_eq!(page.missed, [] as [&str; 0]);
    }
    assert_eq!(a.cluster.stats().resumed + b.cluster.stats().resumed, 4);
}

async fn one_that_never_heard_anything_goes_on_all_the_same(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    let mut page = page.back(&b).await;
    assert_eq!(page.all().await, [] as [&str; 0]);
    send(&a, "alice", 0..2).await;
    assert_eq!(soon("a message", page.next()).await, "0");
    let mut page = page.back(&a).await;
    let heard = page.all().await;
    assert_eq!(heard, ["1"]);
    assert_eq!(page.missed, [] as [&str; 0]);
}

async fn the_old_socket_may_still_be_there_and_neither_hears_its_own(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut old = Page::open(&a, "alice").await;
    old.client.send("id").await;
    let id = old.next().await.parse().unwrap();
    let mut new = Page::at(&b, "alice", &old.position()).await;
    new.all().await;
    let roster = b.broadcaster.to_user("alice").sockets().await.unwrap();
    assert_eq!(roster.sockets().len(), 2, "control");
    let own = b.broadcaster.to_user("alice").except(id);
    own.send("own").await.unwrap();
    send(&a, "alice", 0..3).await;
    for page in [&mut old, &mut new] {
        for text in numbers(0..3) {
            assert_eq!(soon("a message", page.next()).await, text);
        }
        assert_eq!(page.all().await, [] as [&str; 0]);
    }
    // Nor when it is read again.
    let (since, mut again) = (old.base.clone(), Vec::new());
    for node in [&a, &b] {
        again.push(Page::at(node, "alice", &since).await);
    }
    for page in &mut again {
        assert_eq!(page.all().await, numbers(0..3));
    }
}

async fn a_position_that_is_none_of_theirs_is_foreign_and_brings_nothing(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    send(&b, "alice", 0..3).await;
    for _ in 0..3 {
        soon("a message", page.next()).await;
    }
    let (base, position) = (page.base.clone(), page.position());
    let other = node(kept(&lab).namespace("other")).await;
    let mut elsewhere = Page::open(&other, "alice").await;
    elsewhere.all().await;
    let mut bobs = Page::open(&a, "bob").await;
    bobs.all().await;
    let mut touched = base.clone();
    touched.replace_range(4..5, if &base[4..5] == "A" { "B" } else { "A" });
    let future = format!("{base}~{}", 9_000_000_000_000_000u64);
    let foreign = [
        "x".to_owned(),
        "%00".to_owned(),
        "x".repeat(4096),
        "x".repeat(5000),
        base[..base.len() / 2].to_owned(),
        touched,
        format!("{base}~1"),
        format!("{base}~"),
        format!("{base}~x"),
        format!("{position}~1"),
        future,
        elsewhere.position(),
        bobs.position(),
    ];
    for since in &foreign {
        let mut page = Page::at(&b, "alice", since).await;
        assert_eq!(page.all().await, [] as [&str; 0], "{since:.40}");
        assert_eq!(page.missed, ["foreign"], "{since:.40}");
        // From then on it goes on.
        let mut page = page.back(&a).await;
        assert_eq!(page.all().await, [] as [&str; 0]);
        assert_eq!(page.missed, [] as [&str; 0], "{since:.40}");
    }
    let missed = b.cluster.stats().resumed_missed;
    assert_eq!(missed, foreign.len() as u64);
    let mut control = Page::at(&b, "alice", &base).await;
    assert_eq!(control.all().await, numbers(0..3), "control");
}

async fn more_than_is_kept_is_told_and_not_sent_in_part(lab: Lab) {
    let few = History {
        messages: 8,
        ..History::default()
    };
    let a = node(lab.builder().user_history(few)).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    let since = page.position();
    drop(page);
    send(&a, "alice", 0..5).await;
    let mut page = Page::at(&a, "alice", &since).await;
    assert_eq!(page.all().await, numbers(0..5), "control");
    send(&a, "alice", 5..30).await;
    let mut page = Page::at(&a, "alice", &since).await;
    assert_eq!(page.all().await, [] as [&str; 0]);
    assert_eq!(page.missed, ["too-many"]);
    send(&a, "alice", 30..31).await;
    assert_eq!(soon("what is new", page.next()).await, "30");
}

async fn what_was_missed_of_a_room_comes_when_it_is_joined_again(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined");
    page.all().await;
    let to = b.broadcaster.to_room("tea");
    to.send("before").await.unwrap();
    assert_eq!(soon("a message", page.next()).await, "before");
    let (user, since) = (page.user.clone(), page.position());
    drop(page);
    a.until_empty_of("alice").await;
    for n in 0..3 {
        let to = b.broadcaster.to_room("tea");
        to.send(n.to_string()).await.unwrap();
    }
    b.broadcaster.to_room("coffee").send("never").await.unwrap();
    let mut page = Page::at(&b, &user, &since).await;
    assert_eq!(page.all().await, [] as [&str; 0], "it is in no room yet");
    page.client.send("join coffee").await;
    assert_eq!(page.next().await, "joined", "it was not in this one");
    page.client.send("join tea").await;
    let mut heard = Vec::new();
    for _ in 0..4 {
        heard.push(soon("what was missed", page.next()).await);
    }
    assert_eq!(heard, ["0", "1", "2", "joined"]);
    a.broadcaster.to_room("tea").send("after").await.unwrap();
    assert_eq!(soon("a message", page.next()).await, "after");
    let mut page = page.back(&a).await;
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined");
    assert_eq!(page.missed, [] as [&str; 0]);
}

/// Another node's command, in rooms of many clocks: whether something comes before it leaves, or nothing does.
async fn whom_others_put_into_a_room_goes_on_there(lab: Lab) {
    const ROOMS: usize = 8;
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    let room = |n: usize| format!("tea {n}");
    let to = |n: usize| b.broadcaster.to_room(room(n));
    for n in 0..ROOMS {
        to(n).send("before").await.unwrap();
    }
    send(&b, "alice", 0..1).await;
    assert_eq!(soon("a message", page.next()).await, "0");
    for n in 0..ROOMS {
        let joined = b.broadcaster.to_user("alice").join(room(n)).await.unwrap();
        assert_eq!((joined.nodes(), joined.unanswered()), (Some(1), 0));
        if n % 2 == 0 {
            to(n).send(format!("in {n}")).await.unwrap();
            let heard = soon("what is sent there", page.next()).await;
            assert_eq!(heard, format!("in {n}"));
        }
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    let (user, since) = (page.user.clone(), page.position());
    drop(page);
    a.until_empty_of("alice").await;
    for n in 0..ROOMS {
        to(n).send(format!("later {n}")).await.unwrap();
    }
    let mut page = Page::at(&b, &user, &since).await;
    for n in 0..ROOMS {
        page.client.send(&format!("join {}", room(n))).await;
        assert_eq!(page.next().await, format!("later {n}"));
        assert_eq!(page.next().await, "joined");
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    assert_eq!(page.missed, [] as [&str; 0]);
}

async fn whom_others_put_back_into_a_room_has_what_it_missed_there(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "alice").await;
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined");
    page.all().await;
    let (user, since) = (page.user.clone(), page.position());
    drop(page);
    a.until_empty_of("alice").await;
    let tea = a.broadcaster.to_room("tea");
    for n in 0..3 {
        tea.clone().send(n.to_string()).await.unwrap();
    }
    let mut page = Page::at(&b, &user, &since).await;
    assert_eq!(page.all().await, [] as [&str; 0], "it is in no room yet");
    let joined = a.broadcaster.to_user("alice").join("tea").await.unwrap();
    assert_eq!(joined.unanswered(), 0);
    tea.send("3").await.unwrap();
    for text in numbers(0..4) {
        assert_eq!(soon("what was missed", page.next()).await, text);
    }
    let mut page = page.back(&a).await;
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined", "once");
    assert_eq!(page.missed, [] as [&str; 0]);
}

async fn of_a_room_that_is_not_kept_it_is_told_that_it_is_forgotten(lab: Lab) {
    let plain = || node(lab.builder().user_history(History::default()));
    let [a, b] = [plain().await, plain().await];
    let mut page = Page::open(&a, "alice").await;
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined");
    page.all().await;
    let (user, since) = (page.user.clone(), page.position());
    drop(page);
    a.until_empty_of("alice").await;
    let tea = b.broadcaster.to_room("tea");
    tea.send("missed").await.unwrap();
    send(&a, "alice", 0..1).await;
    let mut page = Page::at(&b, &user, &since).await;
    assert_eq!(page.all().await, ["0"], "what is kept comes");
    assert_eq!(page.missed, [] as [&str; 0], "it may be in no room");
    page.client.send("join coffee").await;
    assert_eq!(page.next().await, "joined");
    assert_eq!(page.missed, [] as [&str; 0], "it was not in this one");
    page.client.send("join tea").await;
    assert_eq!(page.next().await, "joined");
    assert_eq!(page.missed, ["forgotten"]);
    let before = b.cluster.stats().resumed_missed;
    for (room, missed) in [("coffee", 0), ("tea", 1)] {
        let mut page = Page::in_room(&b, &user, &since, room).await;
        assert_eq!(page.all().await, ["0"], "what is kept comes");
        assert_eq!(page.missed, vec!["forgotten"; missed], "{room}");
        let told = b.cluster.stats().resumed_missed - before;
        assert_eq!(told, missed as u64, "so is the app");
    }
}

/// In a Redis Cluster each partition has a clock of its own, and each of several Redises.
#[tokio::test(flavor = "multi_thread")]
async fn positions_go_on_over_many_clocks() {
    let cluster = RedisCluster::start(3, 0);
    let redises = [RedisServer::start(), RedisServer::start()];
    let shards = Backend::shards(redises.each_ref().map(RedisServer::url));
    for backend in [Backend::redis(cluster.url()), shards] {
        let backend = backend.unwrap();
        let lab = |namespace| Lab::on(backend.clone(), namespace);
        whoever_comes_back_to_another_node_has_everything_once(lab("a")).await;
        a_second_return_without_news_brings_nothing(lab("b")).await;
        what_was_missed_of_a_room_comes_when_it_is_joined_again(lab("c")).await;
        a_stream_of_events_goes_on_by_the_last_event_id(lab("d")).await;
        whom_others_put_into_a_room_goes_on_there(lab("f")).await;
        whom_others_put_back_into_a_room_has_what_it_missed_there(lab("g")).await;
        many_rooms_are_in_one_position(lab("e")).await;
    }
}

async fn many_rooms_are_in_one_position(lab: Lab) {
    const ROOMS: usize = 60;
    let [a, b] = nodes(&lab).await;
    let mut page = Page::open(&a, "carol").await;
    for n in 0..ROOMS {
        page.client.send(&format!("join room-{n}")).await;
        assert_eq!(page.next().await, "joined");
    }
    let to = |n: usize| b.broadcaster.to_room(format!("room-{n}"));
    for n in 0..ROOMS {
        to(n).send(n.to_string()).await.unwrap();
        assert_eq!(soon("a message", page.next()).await, n.to_string());
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    let since = page.position();
    assert!((1..4096).contains(&since.len()), "{}", since.len());
    drop(page);
    for n in 0..ROOMS {
        to(n).send(format!("later {n}")).await.unwrap();
    }
    let mut page = Page::at(&b, "carol", &since).await;
    for n in 0..ROOMS {
        page.client.send(&format!("join room-{n}")).await;
        assert_eq!(page.next().await, format!("later {n}"));
        assert_eq!(page.next().await, "joined");
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    assert_eq!(page.missed, [] as [&str; 0]);
}

/// T2.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_leads_over_a_graceful_failover() {
    let sentinels = Sentinels::start(1, 3);
    let lab = Lab::on(Backend::redis(sentinels.url()).unwrap(), "cluster");
    let [a, b] = nodes(&lab).await;
    let follows = || {
        let heard = sentinels.servers[1].cli(&["PUBSUB", "NUMSUB", "cluster:nodes"]);
        heard.ends_with('2')
    };
    lead_over(&a, &b, "alice", || sentinels.fail_over(), follows).await;
}

/// T12.
#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_position_leads_over_a_graceful_failover() {
    let cluster = RedisCluster::start(3, 1);
    let lab = Lab::on(Backend::redis(cluster.url()).unwrap(), "cluster");
    let [a, b] = nodes(&lab).await;
    let slot = slot_of(part("u:alice"));
    let old = cluster.owner(slot, 0).expect("somebody owns it");
    let follows = || cluster.is_heard_at(old + 3, "u:alice");
    lead_over(&a, &b, "alice", || cluster.fail_over(old + 3), follows).await;
}

async fn lead_over(
    a: &TestNode,
    b: &TestNode,
    user: &str,
    fails_over: impl FnOnce(),
    follows: impl Fn() -> bool,
) {
    let mut page = Page::open(a, user).await;
    page.all().await;
    send(b, user, 0..3).await;
    for text in numbers(0..3) {
        assert_eq!(soon("a message", page.next()).await, text);
    }
    let since = page.position();
    let _other = a.client(user).await;
    drop(page);
    send(b, user, 3..5).await;
    fails_over();
    until("control: both are at the new primary", async || follows()).await;
    for node in [a, b] {
        node.until_up().await;
    }
    for n in 5..8 {
        until("it is sent", async || {
            let sent = b.broadcaster.to_user(user).send(n.to_string()).await;
            sent.is_ok()
        })
        .await;
    }
    let mut page = Page::at(b, user, &since).await;
    for text in numbers(3..8) {
        assert_eq!(soon("what was missed", page.next()).await, text);
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    assert_eq!(page.missed, [] as [&str; 0]);
}

/// Longer than anything is kept: a client that hears nothing is told where it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_hears_nothing_for_long_goes_on_all_the_same() {
    let lab = Lab::redis();
    let short = History {
        keep: Duration::from_secs(10),
        ..History::default()
    };
    let a = node(lab.builder().user_history(short)).await;
    let mut page = Page::open(&a, "alice").await;
    page.all().await;
    let first = page.position();
    let begun = std::time::Instant::now();
    while begun.elapsed() < short.keep * 5 / 4 {
        tokio::time::sleep(short.keep / 8).await;
        page.all().await;
    }
    assert_ne!(page.position(), first);
    let mut page = page.back(&a).await;
    send(&a, "alice", 0..1).await;
    assert_eq!(soon("what is new", page.next()).await, "0");
    assert_eq!(page.missed, [] as [&str; 0]);
    let mut late = Page::at(&a, "alice", &first).await;
    late.all().await;
    assert_eq!(late.missed, ["late"], "control");
}

async fn a_stream_of_events_goes_on_by_the_last_event_id(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let user = user_header("alice");
    let open = async |node: &TestNode, last: &str| {
        let headers = [("x-user", user.as_str()), ("last-event-id", last)];
        let headers = &headers[..if last.is_empty() { 1 } else { 2 }];
        EventSource::connect(node.addr, "/events", headers).await
    };
    let mut page = open(&a, "").await;
    send(&b, "alice", 0..1).await;
    assert_eq!(page.message().await, "0");
    let last = page.id.clone();
    drop(page);
    send(&b, "alice", 1..4).await;
    let mut page = open(&b, &last).await;
    for text in numbers(1..4) {
        assert_eq!(page.message().await, text);
    }
    send(&a, "alice", 4..5).await;
    assert_eq!(page.message().await, "4", "each once");
    let mut page = open(&a, &page.id).await;
    send(&a, "alice", 5..6).await;
    assert_eq!(page.message().await, "5");

    let mut page = open(&a, "forged").await;
    let missed = page.next().await.unwrap();
    assert_eq!((&*missed.kind, &*missed.data), ("missed", "foreign"));
    send(&a, "alice", 6..7).await;
    assert_eq!(page.message().await, "6");
}

async fn next_text(subscription: &mut Subscription) -> String {
    let message = soon("a message", subscription.next()).await;
    message.expect("it lives").into_text().unwrap().into()
}

/// Whatever waited in it comes again.
async fn a_subscription_goes_on_where_its_reader_was(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let since = async |node: &TestNode, user: &str, since: Option<Position>| {
        let subscribed = node.broadcaster.subscribe_since(user, since).await;
        subscribed.unwrap()
    };
    let mut bot = since(&a, "bot", None).await;
    assert_eq!(bot.resumed(), Resumed::New);
    let start = bot.position();
    bot.join("tea").await.unwrap();
    let odd = format!("{MARK}=odd");
    let to = b.broadcaster.to_user("bot");
    to.clone().send(odd.as_str()).await.unwrap();
    send(&b, "bot", 0..5).await;
    until("all of it waits", async || a.cluster.stats().delivered == 6).await;
    assert_eq!(next_text(&mut bot).await, odd);
    for text in numbers(0..3) {
        assert_eq!(next_text(&mut bot).await, text);
    }
    let stored = bot.position().to_string();
    drop(bot);
    send(&b, "bot", 5..7).await;
    let tea = a.broadcaster.to_room("tea");
    tea.send("tea").await.unwrap();

    let mut bot = since(&b, "bot", Some(stored.parse().unwrap())).await;
    assert_eq!(bot.resumed(), Resumed::Complete { replayed: 4 });
    for text in numbers(3..7) {
        assert_eq!(next_text(&mut bot).await, text);
    }
    assert_eq!(bot.next().now_or_never(), None, "it is in no room yet");
    bot.join("tea").await.unwrap();
    assert_eq!(next_text(&mut bot).await, "tea");
    let mut again = since(&a, "bot", Some(start)).await;
    assert_eq!(again.resumed(), Resumed::Complete { replayed: 8 });
    assert_eq!(next_text(&mut again).await, odd);
    send(&b, "bot", 7..8).await;
    for text in numbers(0..8) {
        assert_eq!(next_text(&mut again).await, text);
    }
    assert_eq!(next_text(&mut bot).await, "7");
    let mut alice = since(&a, "alice", Some(bot.position())).await;
    assert_eq!(alice.resumed(), Resumed::Missed(Missed::Foreign));
    let since_then = alice.position();
    send(&b, "alice", 0..1).await;
    assert_eq!(next_text(&mut alice).await, "0");
    let alice = since(&b, "alice", Some(since_then)).await;
    assert_eq!(alice.resumed(), Resumed::Complete { replayed: 1 });
}

async fn a_join_for_which_nobody_waits_brings_what_was_missed(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let bot = a.broadcaster.subscribe_since("bot", None).await;
    let mut bot = bot.unwrap();
    bot.join("tea").await.unwrap();
    send(&b, "bot", 0..1).await;
    assert_eq!(next_text(&mut bot).await, "0");
    let stored = bot.position();
    drop(bot);
    let to = a.broadcaster.to_room("tea");
    to.clone().send("missed").await.unwrap();
    let bot = b.broadcaster.subscribe_since("bot", stored).await;
    let mut bot = bot.unwrap();
    let joined = bot.join("tea").now_or_never();
    let is_memory = lab.redis.is_none();
    assert!(
        joined.is_none() || is_memory,
        "control: it would have waited"
    );
    assert_eq!(next_text(&mut bot).await, "missed");
    to.send("later").await.unwrap();
    assert_eq!(next_text(&mut bot).await, "later");
}

/// A union is in the past of each of its rooms, however many they are.
async fn what_was_missed_of_two_rooms_at_once_comes_once(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    for others in [0, 200] {
        let mut bot = a.broadcaster.subscribe_since("bot", None).await.unwrap();
        for room in ["tea", "coffee"] {
            bot.join(room).await.unwrap();
        }
        send(&b, "bot", 0..1).await;
        assert_eq!(next_text(&mut bot).await, "0");
        let stored = bot.position();
        drop(bot);
        let rooms = (0..others).map(|n| n.to_string());
        let to = b
            .broadcaster
            .to_rooms(rooms)
            .to_room("tea")
            .to_room("coffee");
        to.send("missed").await.unwrap();
        let mut bot = b
            .broadcaster
            .subscribe_since("bot", Some(stored))
            .await
            .unwrap();
        bot.join("tea").await.unwrap();
        assert_eq!(next_text(&mut bot).await, "missed");
        bot.join("coffee").await.unwrap();
        send(&a, "bot", 1..2).await;
        assert_eq!(next_text(&mut bot).await, "1", "{others}");
    }
}

/// What it got before it was in the room again is in the room's past as well.
async fn a_union_that_came_before_a_room_is_joined_again_comes_once(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut bot = a.broadcaster.subscribe_since("bot", None).await.unwrap();
    bot.join("tea").await.unwrap();
    send(&b, "bot", 0..1).await;
    assert_eq!(next_text(&mut bot).await, "0");
    let stored = bot.position();
    drop(bot);
    b.broadcaster.to_room("tea").send("missed").await.unwrap();
    let mut bot = b.broadcaster.subscribe_since("bot", stored).await.unwrap();
    let to = a.broadcaster.to_user("bot").to_room("tea");
    to.send("union").await.unwrap();
    assert_eq!(next_text(&mut bot).await, "union");
    bot.join("tea").await.unwrap();
    assert_eq!(next_text(&mut bot).await, "missed", "control");
    send(&a, "bot", 1..2).await;
    assert_eq!(next_text(&mut bot).await, "1");
}

/// It has a number of each clock, of which a client is told one.
async fn a_union_over_several_clocks_comes_once_however_one_comes_back(backend: Backend) {
    let lab = Lab::on(backend, "cluster");
    let [a, b] = nodes(&lab).await;
    let rooms = || (0..6).map(|n| format!("tea {n}"));
    let mut fences = a.broadcaster.subscribe("fences").await.unwrap();
    let others: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for room in &others {
        fences.join(room).await.unwrap();
    }
    let mut bot = a.broadcaster.subscribe_since("bot", None).await.unwrap();
    for room in rooms() {
        bot.join(room).await.unwrap();
    }
    let to = || b.broadcaster.to_rooms(rooms()).to_user("bot");
    to().send("before").await.unwrap();
    assert_eq!(next_text(&mut bot).await, "before");
    // Behind every copy, on whichever clock.
    for room in &others {
        b.broadcaster.to_room(room).send("fence").await.unwrap();
    }
    for _ in &others {
        assert_eq!(next_text(&mut fences).await, "fence");
    }
    let more = bot.next().now_or_never();
    assert!(more.is_none(), "but its position: {more:?}");
    let stored = bot.position();
    drop(bot);
    to().send("missed").await.unwrap();
    let mut bot = b.broadcaster.subscribe_since("bot", stored).await.unwrap();
    assert_eq!(next_text(&mut bot).await, "missed");
    for room in rooms() {
        bot.join(room).await.unwrap();
    }
    send(&a, "bot", 1..2).await;
    assert_eq!(next_text(&mut bot).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_several_redises_a_union_comes_once_however_one_comes_back() {
    let redises = [(); 3].map(|()| RedisServer::start());
    let shards = Backend::shards(redises.each_ref().map(RedisServer::url));
    a_union_over_several_clocks_comes_once_however_one_comes_back(shards.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_a_union_comes_once_however_one_comes_back() {
    let cluster = RedisCluster::start(3, 0);
    let backend = Backend::redis(cluster.url()).unwrap();
    a_union_over_several_clocks_comes_once_however_one_comes_back(backend).await;
}

async fn plain_clients_get_what_they_always_did(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let (mut plain, mut page) = (a.client("alice").await, Page::open(&a, "alice").await);
    let odd = format!("{MARK}=forged");
    for text in ["hello", &odd] {
        b.broadcaster.to_user("alice").send(text).await.unwrap();
        assert_eq!(plain.event().await, Event::Text(text.to_owned()));
        assert_eq!(soon("a message", page.next()).await, text);
    }
    page.client.send(&odd).await;
    assert_eq!(soon("the echo", page.next()).await, odd);
}

/// Redis is gone when it comes back: it is admitted, and has what it missed as soon as anybody knows.
#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_it_is_admitted_and_has_the_rest_when_that_is_over() {
    let lab = Lab::redis();
    let link = Proxy::to(lab.redis.as_ref().unwrap().port()).await;
    let quick = kept(&lab).publish_timeout(Duration::from_millis(200));
    let a = node(kept(&lab)).await;
    let b = node(quick.redis(link.url())).await;
    let mut page = Page::open(&b, "alice").await;
    page.all().await;
    let since = page.position();
    drop(page);
    b.until_empty().await;
    link.cut();
    until("the outage is noticed", async || {
        b.cluster.health() != Health::Up
    })
    .await;
    send(&a, "alice", 0..3).await;
    let mut page = Page::at(&b, "alice", &since).await;
    assert_eq!(page.all().await, [] as [&str; 0], "nobody knows yet");
    let own = b.broadcaster.to_user("alice").local();
    own.send("own").await.unwrap();
    assert_eq!(soon("its own node's", page.next()).await, "own");
    link.heal();
    b.until_up().await;
    send(&a, "alice", 3..5).await;
    for text in numbers(0..5) {
        assert_eq!(
            soon("what was missed, then what is new", page.next()).await,
            text
        );
    }
    assert_eq!(page.all().await, [] as [&str; 0]);
    assert_eq!(page.missed, [] as [&str; 0]);
}

/// A client that may come back loses nothing to `DropOldest`.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_is_closed_and_has_everything_when_it_is_back() {
    let lab = Lab::memory();
    let builder = kept(&lab)
        .outbox_messages(16)
        .slow_consumer(SlowConsumer::DropOldest);
    let a = node(builder).await;
    let user = [("x-user", "lags")];
    let mut page = EventSource::connect_narrow(a.addr, "/events", &user)
        .await
        .opened()
        .await;
    let mut sent = 0;
    while a.cluster.stats().slow_closed == 0 {
        let text = format!("{sent:010000}");
        a.broadcaster.to_user("lags").send(text).await.unwrap();
        sent += 1;
        assert!(sent < 10_000, "control: it does not read");
    }
    assert!(a.cluster.stats().dropped_full > 0, "control");
    let mut heard = 0;
    let mut hear = |data: &str| {
        assert_eq!(data.parse::<u32>().unwrap(), heard);
        heard += 1;
    };
    loop {
        let event = soon("an event", page.next()).await.expect("it says why");
        match event.kind.as_str() {
            "" => hear(&event.data),
            _ => break assert!(event.data.contains("1013"), "{}", event.data),
        }
    }
    let headers = [user[0], ("last-event-id", page.id.as_str())];
    let mut page = EventSource::connect(a.addr, "/events", &headers).await;
    a.broadcaster
        .to_user("lags")
        .send(sent.to_string())
        .await
        .unwrap();
    loop {
        let data = page.message().await;
        hear(&data);
        if data.parse() == Ok(sent) {
            break;
        }
    }
    assert_eq!(heard, sent + 1);
}

/// H13, H14: what it got from the process before and from the one after.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_leads_over_a_restart_of_redis() {
    let mut lab = Lab::redis();
    let here = node(kept(&lab)).await;
    let send = async |text: &str| {
        until("a send", async || {
            let sent = here.broadcaster.to_user("alice").send(text).await;
            sent.is_ok()
        })
        .await;
    };
    let mut page = Page::open(&here, "alice").await;
    send("before").await;
    assert_eq!(page.next().await, "before");
    assert_eq!(lab.server().cli(&["SAVE"]), "OK");
    lab.server().kill();
    lab.server().restart();
    here.until_up().await;
    send("after").await;
    assert_eq!(page.next().await, "after");
    let mut page = page.back(&here).await;
    send("later").await;
    assert_eq!(page.next().await, "later", "it had the rest");
    assert!(page.missed.is_empty());
}
