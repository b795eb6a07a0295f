//! Questions in floods, and from runtimes that are not the node's own.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use axum_cluster::{Broadcaster, Close, Cluster, Health, SocketId};
use futures::future::join_all;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::support::node::{NEVER, id_of};
use crate::support::proxy::Proxy;
use crate::support::{Lab, PATIENCE, TestNode, until};

on_every_bus! {
    who_asks_from_a_runtime_of_its_own_is_told_the_truth
    who_asks_without_any_runtime_is_answered
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs something that must not hang, on a thread of its own.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    let done = done.recv_timeout(2 * PATIENCE);
    done.unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Polls a future outside any runtime.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

/// More than are answered at a time: who is refused an answer is told that it is not whole.
#[tokio::test]
async fn a_refused_question_is_missing_never_empty() {
    const QUESTIONS: usize = 8000;
    let lab = Lab::memory();
    // However slow the machine, what is missing was refused.
    let patient = lab.builder().publish_timeout(PATIENCE);
    let nodes = [(); 3].map(|()| patient.clone().start());
    let [asker, holder, bystander] = nodes;
    let asker = TestNode::start(asker).await;
    let holder = TestNode::start(holder).await;
    for cluster in [&asker.cluster, &holder.cluster, &bystander] {
        cluster.ready().await.unwrap();
    }
    let _client = holder.client("alice").await;
    let count = |number: usize| {
        let different = format!("room-{number}");
        let audience = asker.broadcaster.to_user("alice").to_room(different);
        audience.count()
    };
    let counts = join_all((0..QUESTIONS).map(count)).await;
    let (mut whole, mut partial) = (0, 0);
    for count in counts.iter().map(|count| count.as_ref().unwrap()) {
        match count.is_complete() {
            true => {
                assert_eq!(count.sockets(), 1, "said to be whole");
                whole += 1;
            }
            false => {
                assert!(!count.missing().is_empty());
                partial += 1;
            }
        }
    }
    let refused = holder.cluster.stats().questions_refused;
    assert!(refused > 0, "control: none was refused");
    assert!(whole > 0 && partial > 0, "{whole} whole, {partial} partial");
}

async fn who_asks_from_a_runtime_of_its_own_is_told_the_truth(lab: Lab) {
    const THREADS: usize = 8;
    const CALLS: usize = 50;
    let [here, there] = lab.nodes().await;
    let (mut one, mut two) = (here.client("alice").await, there.client("alice").await);
    let own = id_of(&mut one).await;
    let all = HashSet::from([own, id_of(&mut two).await]);
    let ask = |broadcaster: Broadcaster| {
        move || {
            let question = || broadcaster.to_user("alice").sockets();
            let answers = (0..CALLS).map(|_| runtime().block_on(question()).unwrap());
            answers.collect::<Vec<_>>()
        }
    };
    let threads = (0..THREADS).map(|_| {
        let ask = ask(here.broadcaster.clone());
        tokio::task::spawn_blocking(move || in_time("answers", ask))
    });
    for rosters in join_all(threads).await {
        for roster in rosters.unwrap() {
            let ids: HashSet<SocketId> = roster.sockets().iter().map(|it| it.id).collect();
            assert!(ids.contains(&own), "a node knows its own sockets");
            assert!(ids == all || !roster.is_complete(), "{roster:?}");
        }
    }
}

async fn who_asks_without_any_runtime_is_answered(lab: Lab) {
    let [here, there] = lab.nodes().await;
    let _clients = (here.client("alice").await, there.client("alice").await);
    let (broadcaster, cluster) = (here.broadcaster.clone(), here.cluster.clone());
    let ask = move || {
        let alice = || broadcaster.to_user("alice");
        let roster = block_on(alice().sockets()).unwrap();
        assert_eq!((roster.sockets().len(), roster.is_complete()), (2, true));
        let count = block_on(alice().count()).unwrap();
        assert_eq!((count.sockets(), count.is_complete()), (2, true));
        assert_eq!(block_on(cluster.nodes()).unwrap().len(), 2);
        for _ in 0..5 {
            // Connections that are kept belong to no caller.
            assert!(block_on(broadcaster.is_online("bob")).unwrap());
            assert!(runtime().block_on(broadcaster.is_online("bob")).unwrap());
        }
        assert_eq!(block_on(alice().send("hello")).unwrap().nodes(), Some(1));
        assert_eq!(block_on(alice().join("room")).unwrap().nodes(), Some(1));
        let closed = block_on(alice().close(Close::new(4001, "bye")));
        assert_eq!(closed.unwrap().nodes(), Some(1));
    };
    let bob = there.client("bob").await;
    let asking = tokio::task::spawn_blocking(move || in_time("answers", ask));
    asking.await.unwrap();
    drop(bob);
    until("both are closed", async || {
        here.cluster.stats().sockets + there.cluster.stats().sockets == 0
    })
    .await;
}

#[test]
fn a_runtime_that_ends_among_questions_ends() {
    for _ in 0..10 {
        in_time("the end of the runtime", || {
            let runtime = Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let broadcaster = Cluster::builder().start().broadcaster();
                for task in 0..4 {
                    let broadcaster = broadcaster.clone();
                    tokio::spawn(async move {
                        for user in 0_u64.. {
                            let user = format!("{task}-{user}");
                            let _ = broadcaster.to_user(user).count().await;
                        }
                    });
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            });
        });
    }
}

/// One of two that share a question gives up and is gone, with its runtime.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_outlives_whoever_asked_it_first() {
    const ROUNDS: usize = 100;
    let lab = Lab::memory();
    let [here, there] = lab.nodes().await;
    let _clients = (here.client("alice").await, there.client("alice").await);
    let threads = (0..2).map(|patience| {
        let broadcaster = here.broadcaster.clone();
        let ask = move || {
            for _ in 0..ROUNDS {
                let question = broadcaster.to_user("alice").count();
                let patience = if patience == 0 {
                    Duration::ZERO
                } else {
                    PATIENCE
                };
                let answer = runtime().block_on(async { timeout(patience, question).await });
                match answer {
                    Ok(count) => assert!(count.unwrap().sockets() >= 1),
                    Err(_) => assert!(patience.is_zero(), "no answer"),
                }
            }
        };
        tokio::task::spawn_blocking(move || in_time("answers", ask))
    });
    for asked in join_all(threads).await {
        asked.unwrap();
    }
    let count = here.broadcaster.to_user("alice").count();
    let count = timeout(PATIENCE, count).await.expect("an answer").unwrap();
    assert_eq!((count.sockets(), count.is_complete()), (2, true));
}

/// It subscribes to thousands of channels again, over a slow link.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_coming_back_is_missing_until_it_hears_everything() {
    const USERS: usize = 50;
    const ROOMS: usize = 8000;
    let mut lab = Lab::redis();
    let link = Proxy::to(lab.server().port()).await;
    let hasty = lab.builder().publish_timeout(Duration::from_millis(200));
    let a = TestNode::start(hasty.start()).await;
    let b = TestNode::start(lab.builder().redis(link.url()).start()).await;
    b.cluster.ready().await.unwrap();
    let users: Vec<String> = (0..USERS).map(|n| format!("user-{n}")).collect();
    let clients = join_all(users.iter().map(|user| b.client(user))).await;
    let first = || b.broadcaster.to_user("user-0").local();
    join_all((0..ROOMS).map(|n| first().join(format!("{n:0>250}")))).await;
    assert_eq!(b.cluster.stats().rooms, ROOMS as u64, "control");
    let counts = async || {
        let asking = users
            .iter()
            .map(|user| a.broadcaster.to_user(user.as_str()).count());
        let counts = join_all(asking).await.into_iter().map(Result::unwrap);
        let counts = counts.map(|count| (count.sockets(), count.is_complete()));
        counts.collect::<Vec<_>>()
    };
    let is_whole = async || a.cluster.stats().nodes == 2 && counts().await == [(1, true); USERS];
    until("every answer is whole", is_whole).await;

    link.cut();
    let is_cut = async || b.cluster.health() != Health::Up;
    until("its link is gone", is_cut).await;
    link.narrow(250_000);
    link.heal();
    let channels = users.iter().map(|user| format!("cluster:u:{user}"));
    let channels: Vec<String> = channels.collect();
    let command = ["PUBSUB", "NUMSUB"].into_iter();
    let command: Vec<&str> = command.chain(channels.iter().map(String::as_str)).collect();
    let (mut half_back, mut wrong) = (0, 0);
    until("it hears everything", async || {
        let listening = lab.server().cli(&command);
        let back = listening.lines().filter(|line| line.trim() == "1").count();
        half_back += usize::from((1..USERS).contains(&back));
        let counts = counts().await;
        wrong += counts.iter().filter(|count| **count == (0, true)).count();
        b.cluster.health() == Health::Up && counts == [(1, true); USERS]
    })
    .await;
    assert!(half_back > 0, "control: it came back at once");
    assert_eq!(wrong, 0, "said to be whole");
    drop(clients);
}

/// Redis has cut off what the node listens to, and the node does not know yet.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_deaf_without_knowing_calls_nothing_whole() {
    let mut lab = Lab::redis();
    let link = Proxy::to(lab.server().port()).await;
    let unaware = lab.builder().redis(link.url()).probe_interval(NEVER);
    let unaware = unaware.publish_timeout(Duration::from_secs(2));
    let a = TestNode::start(unaware.start()).await;
    a.cluster.ready().await.unwrap();
    let b = lab.node().await;
    let mut clients = [a.client("alice").await, b.client("bob").await];
    for client in &mut clients {
        assert_eq!(client.ask("join room").await, "joined");
    }
    let count = async || a.broadcaster.to_room("room").count().await.unwrap();
    let before = count().await;
    assert_eq!(
        (before.sockets(), before.is_complete()),
        (2, true),
        "control"
    );

    link.deafen_subscribers();
    lab.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    until("only the other node listens", async || {
        let listening = lab.server().cli(&["PUBSUB", "NUMSUB", "cluster:r:room"]);
        listening.trim().ends_with('1')
    })
    .await;
    assert_eq!(a.cluster.health(), Health::Up, "control: it does not know");
    let deaf = count().await;
    assert_eq!((deaf.sockets(), deaf.is_complete()), (1, false));
    assert_eq!(deaf.missing(), [b.id()]);
}

/// One that is cut off makes the question be repeated to the others, by name: at once, while they hear it anyhow.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_twice_answers_once() {
    const SOCKETS: usize = 40;
    const ROOMS: usize = 30;
    let mut lab = Lab::redis();
    let link = Proxy::to(lab.server().port()).await;
    let [a, b] = lab.nodes().await;
    let cut = TestNode::start(lab.builder().redis(link.url()).start()).await;
    cut.until_up().await;
    until("all know one another", async || {
        a.cluster.stats().nodes == 3
    })
    .await;
    let clients = join_all((0..SOCKETS).map(|_| b.client("alice"))).await;
    // An answer of several parts.
    let alice = || b.broadcaster.to_user("alice").local();
    join_all((0..ROOMS).map(|n| alice().join(format!("{n:0>250}")))).await;
    link.cut();
    until("its link is gone", async || {
        cut.cluster.health() != Health::Up
    })
    .await;
    let mut repeated = 0;
    for _ in 0..20 {
        let roster = a.broadcaster.to_user("alice").sockets().await.unwrap();
        // Until its lease is over.
        repeated += usize::from(roster.missing() == [cut.id()]);
        let sockets: HashSet<SocketId> = roster.sockets().iter().map(|it| it.id).collect();
        assert_eq!((sockets.len(), roster.sockets().len()), (SOCKETS, SOCKETS));
    }
    assert!(repeated > 0, "control: it was not asked by name");
    drop(clients);
}

/// Redis counts no node whose link is cut, and nobody else tells that it is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_is_missing() {
    let mut lab = Lab::redis();
    let link = Proxy::to(lab.server().port()).await;
    let a = lab.node().await;
    let b = TestNode::start(lab.builder().redis(link.url()).start()).await;
    b.cluster.ready().await.unwrap();
    let c = lab.node().await;
    let _clients = (b.client("alice").await, c.client("alice").await);
    until("all know one another", async || {
        a.cluster.stats().nodes == 3
    })
    .await;
    let count = async || a.broadcaster.to_user("alice").count().await.unwrap();
    let before = count().await;
    assert_eq!(
        (before.sockets(), before.is_complete()),
        (2, true),
        "control"
    );
    link.cut();
    until("its link is gone", async || {
        b.cluster.health() != Health::Up
    })
    .await;
    let cut = count().await;
    assert_eq!((cut.sockets(), cut.is_complete()), (1, false));
    assert_eq!(cut.missing(), [b.id()]);
    assert!(
        !a.broadcaster
            .to_user("alice")
            .sockets()
            .await
            .unwrap()
            .is_complete()
    );
    assert!(!a.broadcaster.to_all().count().await.unwrap().is_complete());
    link.heal();
    until("it is there again", async || {
        let healed = count().await;
        (healed.sockets(), healed.is_complete()) == (2, true)
    })
    .await;
}
