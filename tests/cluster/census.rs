//! Questions where several Redises share the topics, and somebody hears only some of them (rows T26 and T27).

use std::collections::HashSet;
use std::time::Duration;

use axum_cluster::{Backend, ClusterBuilder, Health, Redis};

use crate::support::node::NEVER;
use crate::support::proxy::Proxy;
use crate::support::redis::redis_cluster::{RedisCluster, part, prefix_of, slot_of};
use crate::support::{Client, Lab, RedisServer, TestNode, until};

/// Longer than anybody here has to be unaware. One that could not be published is repeated after a fifth of it.
const RARELY: Duration = Duration::from_secs(30);

/// Two nodes at their Redises, and one that reaches each by a way of its own. None finds anything out by a probe in time.
struct Trio<'a> {
    servers: &'a [RedisServer],
    is_heard: &'a dyn Fn(usize, &str) -> bool,
    asker: TestNode,
    bystander: TestNode,
    other: TestNode,
    ways: Vec<Proxy>,
    /// Who listens at each Redis beside the other node.
    listeners: Vec<HashSet<String>>,
}

impl<'a> Trio<'a> {
    async fn start(
        servers: &'a [RedisServer],
        is_heard: &'a dyn Fn(usize, &str) -> bool,
        backend: impl Fn(&dyn Fn(&str) -> Redis) -> Backend,
    ) -> Self {
        let mut ways = Vec::new();
        for server in servers {
            ways.push(Proxy::to(server.port()).await);
        }
        let ports = servers.iter().map(RedisServer::port);
        let detours = ports.zip(ways.iter().map(|way| way.addr.port()));
        let detours: Vec<(u16, u16)> = detours.collect();
        let direct = |url: &str| Redis::at(url).unwrap();
        let detour = move |url: &str| {
            let detours = detours.clone();
            direct(url).addresses(move |name, port| {
                let way = detours.iter().find(|(to, _)| *to == port);
                (name.to_owned(), way.map_or(port, |(_, way)| *way))
            })
        };
        let builder = || Lab::memory().builder().probe_interval(NEVER);
        let start = async |builder: ClusterBuilder| {
            let node = TestNode::start(builder.start()).await;
            node.until_up().await;
            node
        };
        let asker = start(builder().backend(backend(&direct))).await;
        let bystander = start(builder().backend(backend(&direct))).await;
        let listeners = servers.iter().map(listeners).collect();
        let other = builder().probe_interval(RARELY);
        let other = start(other.backend(backend(&detour))).await;
        until_they_know_one_another(&[&asker, &bystander, &other]).await;
        Self {
            servers,
            is_heard,
            asker,
            bystander,
            other,
            ways,
            listeners,
        }
    }

    /// Somebody at the other node for each Redis, and whoever came with them: nobody leaves, so that nothing is owed to that
    /// node when it becomes deaf.
    async fn users(&self) -> (Vec<String>, Vec<Client>) {
        let (mut users, mut clients) = (vec![None; self.servers.len()], Vec::new());
        for n in 0.. {
            let user = format!("user-{n}");
            clients.push(self.other.client(&user).await);
            let topic = format!("u:{user}");
            let at = (0..self.servers.len()).find(|at| (self.is_heard)(*at, &topic));
            users[at.expect("it is heard somewhere")].get_or_insert(user);
            if users.iter().all(Option::is_some) {
                break;
            }
        }
        (users.into_iter().flatten().collect(), clients)
    }

    /// Whether the other node told of this user. If not, it is named.
    async fn is_told(&self, user: &str) -> bool {
        let audience = self.asker.broadcaster.to_user(user);
        let (count, roster) = tokio::join!(audience.clone().count(), audience.sockets());
        let (count, roster) = (count.unwrap(), roster.unwrap());
        let (other, mut told) = (self.other.id(), true);
        for (sockets, missing, is_complete) in [
            (count.sockets(), count.missing(), count.is_complete()),
            (
                roster.sockets().len(),
                roster.missing(),
                roster.is_complete(),
            ),
        ] {
            match sockets {
                1 => assert_eq!((missing, is_complete), (&[][..], true), "{user}"),
                _ => assert_eq!((sockets, missing), (0, &[other][..]), "{user}: left out"),
            }
            told &= sockets == 1;
        }
        told
    }

    /// Nothing that is for the user arrives, and what is said of that is true.
    async fn is_out_of_reach(&self, user: &str) {
        let broadcaster = &self.asker.broadcaster;
        let joined = broadcaster.to_user(user).join("room").await.unwrap();
        assert_eq!(joined.nodes(), Some(0), "{user}");
        assert!(joined.unanswered() > 0, "{user}: {joined:?}");
        let sent = broadcaster.to_user(user).send("hello").await.unwrap();
        assert_eq!(sent.nodes(), Some(0), "{user}");
        assert!(!broadcaster.is_online(user).await.unwrap(), "{user}");
    }

    async fn until_in_reach(&self, user: &str) {
        until("it is in reach", async || {
            let joined = self.asker.broadcaster.to_user(user).join("room").await;
            let joined = joined.is_ok_and(|it| (it.nodes(), it.unanswered()) == (Some(1), 0));
            joined && self.is_told(user).await
        })
        .await;
        assert!(self.asker.broadcaster.is_online(user).await.unwrap());
    }

    /// Redis has cut off what the other node listens to there, which does not learn it.
    async fn deafen(&self, at: usize, user: &str) {
        self.ways[at].deafen_subscribers();
        let (server, known) = (&self.servers[at], &self.listeners[at]);
        let listeners = listeners(server);
        let others: Vec<_> = listeners.difference(known).collect();
        assert_eq!(others.len(), 1, "control: {others:?}");
        server.cli(&["CLIENT", "KILL", "ID", others[0]]);
        let topic = format!("u:{user}");
        until("nobody hears it", async || !(self.is_heard)(at, &topic)).await;
    }

    /// Whatever becomes of any of its links, the other node is not left out in silence.
    async fn is_never_left_out(&self) {
        let all = self.ways.len();
        let (users, clients) = self.users().await;
        let mut told = 0;
        for (at, user) in users.iter().enumerate() {
            self.until_in_reach(user).await;
            self.deafen(at, user).await;
            told += usize::from(self.is_told(user).await);
            self.is_out_of_reach(user).await;
            assert_eq!(self.other.cluster.health(), Health::Up, "control: unaware");

            self.ways[at].cut();
            until("a link of one is down", async || {
                self.other.cluster.stats().bus_shards_up == all as u64 - 1
            })
            .await;
            self.is_told(user).await;
            self.is_out_of_reach(user).await;
            for node in [&self.asker, &self.bystander] {
                assert_eq!(node.cluster.health(), Health::Up, "control: of it alone");
            }
            self.ways[at].heal();
            self.other.until_up().await;
            self.until_in_reach(user).await;
        }
        assert_eq!(told, all - 1, "but where it is asked by name it tells");
        drop(clients);
    }
}

/// The connections that listen, by their numbers.
fn listeners(server: &RedisServer) -> HashSet<String> {
    let clients = server.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    let number = |line: &str| {
        line.split(' ')
            .find_map(|part| part.strip_prefix("id=").map(str::to_owned))
    };
    clients.lines().filter_map(number).collect()
}

async fn until_they_know_one_another(nodes: &[&TestNode]) {
    until("they know one another", async || {
        let known = |node: &&TestNode| node.cluster.stats().nodes == nodes.len() as u64;
        nodes
            .iter()
            .all(|node| node.cluster.health() == Health::Up && known(node))
    })
    .await;
}

fn is_heard_at(server: &RedisServer, topic: &str) -> bool {
    let heard = server.cli(&["PUBSUB", "NUMSUB", &format!("cluster:{topic}")]);
    !heard.ends_with('0')
}

/// T26.
#[tokio::test(flavor = "multi_thread")]
async fn who_hears_only_some_of_several_redises_is_not_left_out_in_silence() {
    let servers = [(); 2].map(|()| RedisServer::start());
    let urls = servers.each_ref().map(RedisServer::url);
    let is_heard = |at: usize, topic: &str| is_heard_at(&servers[at], topic);
    let trio = Trio::start(&servers, &is_heard, |at| {
        Backend::shards(urls.each_ref().map(|url| at(url))).unwrap()
    });
    trio.await.is_never_left_out().await;
}

/// T26.
#[tokio::test(flavor = "multi_thread")]
async fn who_hears_only_some_primaries_of_a_cluster_is_not_left_out_in_silence() {
    let redis = RedisCluster::start(3, 0);
    let is_heard = |at: usize, topic: &str| redis.is_heard_at(at, topic);
    let trio = Trio::start(&redis.nodes, &is_heard, |at| at(&redis.url()).into());
    trio.await.is_never_left_out().await;
}

/// T26: the slot of its user has moved, and it is not at the new primary yet.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_followed_a_slot_is_not_left_out_in_silence() {
    let redis = RedisCluster::start(3, 0);
    let is_heard = |at: usize, topic: &str| redis.is_heard_at(at, topic);
    let trio = Trio::start(&redis.nodes, &is_heard, |at| at(&redis.url()).into()).await;
    let moving = part("u:alice");
    let slot = slot_of(moving);
    let from = redis.owner(slot, 0).unwrap();
    let to = (from + 1) % 3;
    let client = trio.other.client("alice").await;
    trio.until_in_reach("alice").await;
    trio.ways[to].hold();
    redis.begin_move(slot, to);
    redis.flip(slot, to);
    until("the others have followed", async || {
        let census = redis.heard_at(to, &format!("{}n:all", prefix_of(moving)));
        let counted = |channel: &String| redis.ask(to, &format!("PUBSUB SHARDNUMSUB {channel}"));
        census.first().is_some_and(|it| counted(it).ends_with('2'))
    })
    .await;
    assert!(!is_heard(to, "u:alice"), "control: it has not");
    trio.is_told("alice").await;
    assert!(!is_heard(to, "u:alice"), "control: it had not");
    trio.ways[to].heal();
    trio.until_in_reach("alice").await;
    drop(client);
}

/// T26: where nodes meet is down, so that nobody knows who has come, and others count it for one of those that are known.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_not_counted_for_who_is_cut_off() {
    let mut servers = [(); 2].map(|()| RedisServer::start());
    let urls = servers.each_ref().map(RedisServer::url);
    let ways = [
        Proxy::to(servers[0].port()).await,
        Proxy::to(servers[1].port()).await,
    ];
    let detours = servers.each_ref().map(RedisServer::port);
    let detours: Vec<_> = detours
        .into_iter()
        .zip(ways.each_ref().map(|way| way.addr.port()))
        .collect();
    let detour = |url: &String| {
        let detours = detours.clone();
        Redis::at(url).unwrap().addresses(move |name, port| {
            let way = detours.iter().find(|(to, _)| *to == port);
            (name.to_owned(), way.map_or(port, |(_, way)| *way))
        })
    };
    let backend = || Backend::shards(&urls).unwrap();
    let start = |backend| TestNode::start(Lab::memory().builder().backend(backend).start());
    let a = start(backend()).await;
    let b = start(Backend::shards(urls.iter().map(detour)).unwrap()).await;
    until_they_know_one_another(&[&a, &b]).await;
    let meeting = servers
        .iter()
        .position(|server| is_heard_at(server, "nodes"));
    let meeting = meeting.expect("they meet somewhere");
    let other = 1 - meeting;
    let (mut user, mut clients) = (String::new(), Vec::new());
    while user.is_empty() || !is_heard_at(&servers[other], &format!("u:{user}")) {
        user = format!("user-{}", clients.len());
        clients.push(b.client(&user).await);
    }
    servers[meeting].kill();
    let stranger = start(backend()).await;
    let census = servers[other].cli(&["PUBSUB", "CHANNELS", "cluster:n:all*"]);
    let counted = || servers[other].cli(&["PUBSUB", "NUMSUB", &census]);
    until("a stranger has come", async || counted().ends_with('3')).await;
    ways[other].cut();
    until("one is cut off", async || counted().ends_with('2')).await;
    assert_eq!(
        a.cluster.stats().nodes,
        2,
        "control: nobody knows the stranger"
    );
    let count = a.broadcaster.to_user(&*user).count().await.unwrap();
    assert_eq!((count.sockets(), count.missing()), (0, &[b.id()][..]));
    drop((clients, stranger));
}

/// T27: nobody else has to be asked for that. Where nodes meet is up, since else somebody may have come of whom nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_whole_while_another_redis_is_down() {
    let mut servers = [(); 2].map(|()| RedisServer::start());
    let urls = servers.each_ref().map(RedisServer::url);
    let backend = Backend::shards(&urls).unwrap();
    let builder = || Lab::memory().builder().probe_interval(NEVER);
    let start = || TestNode::start(builder().backend(backend.clone()).start());
    let (a, b) = (start().await, start().await);
    until_they_know_one_another(&[&a, &b]).await;
    let meeting = servers
        .iter()
        .position(|server| is_heard_at(server, "nodes"));
    let meeting = meeting.expect("they meet somewhere");
    let (mut users, mut clients) = ([None, None], Vec::new());
    for n in 0.. {
        let user = format!("user-{n}");
        clients.push(a.client(&user).await);
        let at = usize::from(!is_heard_at(&servers[0], &format!("u:{user}")));
        users[at].get_or_insert(user);
        if users.iter().all(Option::is_some) {
            break;
        }
    }
    servers[1 - meeting].kill();
    until("both have noticed", async || {
        let up = [&a, &b].map(|node| node.cluster.stats().bus_shards_up);
        up == [1, 1]
    })
    .await;
    let count = async |at: usize| {
        let user = users[at].as_deref().unwrap();
        a.broadcaster.to_user(user).count().await.unwrap()
    };
    let there = count(1 - meeting).await;
    assert_eq!(
        (there.sockets(), there.missing()),
        (1, &[b.id()][..]),
        "control"
    );
    let here = count(meeting).await;
    assert_eq!((here.sockets(), here.is_complete()), (1, true));
    drop(clients);
}
