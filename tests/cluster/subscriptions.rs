//! Sockets without a WebSocket.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

use axum_cluster::{
    Broadcaster, Close, CloseCode, Cluster, Health, Message, OverLimit, PresenceChange, RoomId,
    SlowConsumer, SubscribeErrorKind, Subscription,
};
use futures::{FutureExt, StreamExt};

use crate::support::client::{Event, text};
use crate::support::node::NEVER;
use crate::support::proxy::Proxy;
use crate::support::{Lab, TestNode, soon, until};

on_every_bus! {
    a_subscription_is_reached_from_everywhere_when_it_exists
    it_is_a_socket_to_everybody_else
    dropping_it_gives_everything_back
    whoever_ends_it_it_is_gone_before_its_reader_comes
    it_has_a_seat_in_the_cluster
    one_whose_reader_lags_hurts_nobody_else
}

async fn next(subscription: &mut Subscription) -> Option<Message> {
    soon("a message", subscription.next()).await
}

async fn next_text(subscription: &mut Subscription) -> String {
    let message = next(subscription).await.expect("it lives");
    message.into_text().unwrap().into()
}

async fn a_subscription_is_reached_from_everywhere_when_it_exists(mut lab: Lab) {
    let b = lab.node().await;
    // Whatever it asks of Redis takes a while.
    let link = match &lab.redis {
        Some(redis) => Some(Proxy::slow(redis.port(), Duration::from_millis(20)).await),
        None => None,
    };
    let builder = match &link {
        Some(link) => lab.builder().redis(link.url()),
        None => lab.builder(),
    };
    let a = builder.start();
    a.ready().await.unwrap();
    for n in 0..5 {
        let (user, room) = (format!("user-{n}"), format!("room-{n}"));
        let mut subscription = a.broadcaster().subscribe(user.as_str()).await.unwrap();
        let to = &b.broadcaster;
        let sent = to.to_user(user.as_str()).send("user").await.unwrap();
        assert_eq!(sent.nodes(), Some(1));
        subscription.join(room.as_str()).await.unwrap();
        let sent = to.to_room(room.as_str()).send("room").await.unwrap();
        assert_eq!(sent.nodes(), Some(1));
        to.to_all().send(vec![1, 2, 3]).await.unwrap();
        let union = to.to_rooms([room.as_str(), "nowhere"]).to_user(user);
        union.send("union").await.unwrap();
        a.broadcaster()
            .to_socket(subscription.id())
            .send("own")
            .await
            .unwrap();
        let mut messages = Vec::new();
        while messages.len() < 5 {
            messages.push(next(&mut subscription).await.unwrap());
        }
        // Its own node's does not wait for those of the other.
        messages.retain(|message| *message != Message::from("own"));
        let expected = [
            "user".into(),
            "room".into(),
            vec![1, 2, 3].into(),
            "union".into(),
        ];
        assert_eq!(messages, expected);
        assert_eq!(subscription.next().now_or_never(), None, "each once");
        subscription.leave(room.as_str());
        let sent = to.to_room(room).local().send("left").await.unwrap();
        assert_eq!(sent.local(), 0);
    }
    drop(link);
    if lab.redis.is_some() {
        // Nobody waits for a Redis that is gone.
        lab.server().kill();
        until("the outage is noticed", async || a.health() != Health::Up).await;
        let mut alone = soon("a subscription", a.broadcaster().subscribe("alone"))
            .await
            .unwrap();
        let own = a.broadcaster().to_user("alone").local();
        assert_eq!(own.send("own").await.unwrap().local(), 1);
        assert_eq!(next_text(&mut alone).await, "own");
    }
}

async fn it_is_a_socket_to_everybody_else(lab: Lab) {
    let [a, b] = lab.nodes().await;
    let mut presence = b.broadcaster.presence_of(["bot"]);
    let bot = a.broadcaster.subscribe("bot").await.unwrap();
    let online = soon("the bot", presence.next()).await;
    assert_eq!(online, Some(PresenceChange::Online("bot".into())));
    assert!(b.broadcaster.is_online("bot").await.unwrap());
    assert_eq!(
        b.broadcaster
            .to_user("bot")
            .join("lobby")
            .await
            .unwrap()
            .unanswered(),
        0
    );
    bot.join("news").await.unwrap();
    let mut rooms = bot.rooms();
    rooms.sort_unstable();
    assert_eq!(rooms, ["lobby", "news"].map(RoomId::from));
    let roster = b.broadcaster.to_room("lobby").sockets().await.unwrap();
    let [info] = roster.sockets() else {
        panic!("{roster:?}")
    };
    assert_eq!((info.id, &info.user), (bot.id(), bot.user()));
    let stats = a.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (1, 1, 2));
    b.broadcaster.to_user("bot").leave("lobby").await.unwrap();
    assert_eq!(bot.rooms(), [RoomId::from("news")]);
    drop(bot);
    let offline = soon("its end", presence.next()).await;
    assert_eq!(offline, Some(PresenceChange::Offline("bot".into())));
}

async fn dropping_it_gives_everything_back(lab: Lab) {
    let node = lab.node().await;
    let to = &node.broadcaster;
    let channels = || {
        let told = lab.redis.as_ref().map(|it| it.cli(&["PUBSUB", "CHANNELS"]));
        let channels = told.iter().flat_map(|told| told.lines());
        channels.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = channels();
    for n in 0..20 {
        let subscription = to.subscribe("alice").await.unwrap();
        subscription.join("lobby").await.unwrap();
        let waits = to.to_room("lobby").send("waits").await.unwrap();
        assert_eq!(waits.local(), 1, "control");
        drop(subscription);
        let stats = node.cluster.stats();
        assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
        assert_eq!(stats.closed_normal, n + 1);
    }
    // One that is not waited for.
    for _ in 0..20 {
        assert!(
            to.subscribe("carol")
                .now_or_never()
                .is_none_or(|it| it.is_ok())
        );
    }
    node.until_empty().await;
    let panicking = to.subscribe("bob").await.unwrap();
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _held = panicking;
        panic!("on purpose");
    }));
    assert!(panicked.is_err(), "control");
    let stats = node.cluster.stats();
    assert_eq!((stats.sockets, stats.closed_panicked), (0, 1));
    until("Redis has forgotten them", async || channels() == before).await;
}

async fn whoever_ends_it_it_is_gone_before_its_reader_comes(lab: Lab) {
    let [a, b] = lab.nodes().await;
    type End = fn(&TestNode, &Subscription) -> futures::future::BoxFuture<'static, ()>;
    let user: End = |b, it| {
        let closing = b.broadcaster.to_user(it.user());
        let closing = closing.close(Close::new(4001, "out"));
        async move { assert_eq!(closing.await.unwrap().nodes(), Some(1)) }.boxed()
    };
    let socket: End = |b, it| {
        let closing = b.broadcaster.to_socket(it.id());
        let closing = closing.close(Close::new(4001, "out"));
        async move { assert_eq!(closing.await.unwrap().nodes(), Some(1)) }.boxed()
    };
    for end in [user, socket] {
        let mut subscription = a.broadcaster.subscribe("alice").await.unwrap();
        subscription.join("lobby").await.unwrap();
        b.broadcaster.to_user("alice").send("before").await.unwrap();
        end(&b, &subscription).await;
        let stats = a.cluster.stats();
        assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
        let after = a.broadcaster.to_user("alice").send("after").await.unwrap();
        assert_eq!((after.local(), after.nodes()), (0, Some(0)));
        assert_eq!(subscription.close_reason(), Some(Close::new(4001, "out")));
        assert_eq!(subscription.rooms(), [RoomId::from("lobby")], "as it was");
        assert!(subscription.join("late").await.is_err());
        assert_eq!(next_text(&mut subscription).await, "before");
        assert_eq!(next(&mut subscription).await, None);
        assert_eq!(next(&mut subscription).await, None);
    }
    let mut last = a.broadcaster.subscribe("alice").await.unwrap();
    // One that reads is woken.
    let (end, ()) = tokio::join!(next(&mut last), a.cluster.shutdown(Duration::ZERO));
    assert_eq!(end, None);
    assert_eq!(last.close_reason().unwrap().code, CloseCode::RESTART);
    let stats = a.cluster.stats();
    assert_eq!(
        (stats.sockets, stats.closed_other, stats.closed_restart),
        (0, 2, 1)
    );
    let refused = a.broadcaster.subscribe("alice").await.unwrap_err();
    assert_eq!(refused.kind(), SubscribeErrorKind::Draining);
    assert_eq!(a.cluster.stats().drain_refused, 1);
}

async fn it_has_a_seat_in_the_cluster(lab: Lab) {
    let limited = |over| lab.builder().max_sockets_per_user_in_cluster(1, over);
    let refusing = limited(OverLimit::Refuse);
    let (a, b) = (
        TestNode::start(refusing.clone().start()).await,
        refusing.start(),
    );
    a.until_up().await;
    b.ready().await.unwrap();
    let first = a.broadcaster.subscribe("alice").await.unwrap();
    let refused = b.broadcaster().subscribe("alice").await.unwrap_err();
    assert_eq!(refused.kind(), SubscribeErrorKind::UserFull);
    assert_eq!(b.stats().limits_refused, 1);
    drop(first);
    let there = b.broadcaster();
    until("the seat is free", async || {
        there.subscribe("alice").await.is_ok()
    })
    .await;
    drop((a, b));

    let replacing = limited(OverLimit::CloseOldest);
    let (a, b) = (
        replacing.clone().start(),
        TestNode::start(replacing.start()).await,
    );
    a.ready().await.unwrap();
    b.until_up().await;
    let mut first = a.broadcaster().subscribe("bob").await.unwrap();
    let mut client = b.client("bob").await;
    assert_eq!(next(&mut first).await, None);
    assert_eq!(first.close_reason().unwrap().code, CloseCode::REPLACED);
    let mut second = a.broadcaster().subscribe("bob").await.unwrap();
    assert!(matches!(client.event().await, Event::Closed(4409, _)));
    let third = a.broadcaster().subscribe("bob").await.unwrap();
    assert_eq!(next(&mut second).await, None);
    assert_eq!(second.close_reason().unwrap().code, CloseCode::REPLACED);
    assert_eq!(third.close_reason(), None);
}

async fn one_whose_reader_lags_hurts_nobody_else(lab: Lab) {
    const MOST: usize = 16;
    let builder = lab.builder().outbox_messages(MOST);
    let a = TestNode::start(builder.clone().start()).await;
    let oldest = builder.slow_consumer(SlowConsumer::DropOldest).start();
    a.until_up().await;
    oldest.ready().await.unwrap();
    let b = lab.node().await;
    let mut lags = a.broadcaster.subscribe("lags").await.unwrap();
    let mut forgets = oldest.broadcaster().subscribe("forgets").await.unwrap();
    let mut prompt = a.client("prompt").await;
    let mut reads = a.broadcaster.subscribe("reads").await.unwrap();
    for n in 0..2 * MOST {
        b.broadcaster.to_all().send(n.to_string()).await.unwrap();
        assert_eq!(prompt.event().await, text(&n.to_string()));
        assert_eq!(next_text(&mut reads).await, n.to_string());
        until("the others have it", async || {
            oldest.stats().delivered == n as u64 + 1
        })
        .await;
    }
    assert_eq!(next(&mut lags).await, None, "what waited is discarded");
    let close = lags.close_reason().unwrap();
    assert_eq!(close.code, CloseCode::TRY_AGAIN_LATER);
    let stats = a.cluster.stats();
    assert_eq!(
        (stats.sockets, stats.slow_closed, stats.closed_slow),
        (2, 1, 1)
    );
    assert_eq!(stats.dropped_full, MOST as u64 + 1);

    for n in MOST..2 * MOST {
        assert_eq!(next_text(&mut forgets).await, n.to_string(), "the newest");
    }
    assert_eq!(forgets.close_reason(), None);
    assert_eq!(oldest.stats().dropped_oldest, MOST as u64);
    assert_eq!(reads.close_reason(), None);
}

#[tokio::test]
async fn who_may_not_be_subscribed_is_refused_and_counted() {
    let cluster = Cluster::builder().max_sockets(2).max_sockets_per_user(1);
    let cluster = cluster.start();
    let refused = async |user: &str| {
        let to = cluster.broadcaster();
        to.subscribe(user).await.map(drop).unwrap_err()
    };
    for id in [String::new(), "x".repeat(257)] {
        let error = refused(&id).await;
        assert_eq!(error.kind(), SubscribeErrorKind::InvalidId);
        assert!(error.to_string().starts_with("user id: "), "{error}");
    }
    let _alice = cluster.broadcaster().subscribe("alice").await.unwrap();
    assert_eq!(refused("alice").await.kind(), SubscribeErrorKind::UserFull);
    let _bob = cluster.broadcaster().subscribe("bob").await.unwrap();
    assert_eq!(refused("carol").await.kind(), SubscribeErrorKind::NodeFull);
    let stats = cluster.stats();
    assert_eq!((stats.ids_refused, stats.limits_refused), (2, 2));
    assert_eq!((stats.sockets, stats.users), (2, 2));

    let worker = Broadcaster::builder().connect().await.unwrap();
    let error = worker.subscribe("alice").await.unwrap_err();
    assert_eq!(error.kind(), SubscribeErrorKind::Worker);
    assert!(error.to_string().contains("Cluster::builder"), "{error}");
}

/// No heartbeat, and nobody waits for a reader.
#[tokio::test(start_paused = true)]
async fn a_reader_may_take_its_time() {
    let cluster = Cluster::builder().start();
    let mut bot = cluster.broadcaster().subscribe("bot").await.unwrap();
    cluster
        .broadcaster()
        .to_user("bot")
        .send("1")
        .await
        .unwrap();
    tokio::time::sleep(NEVER).await;
    cluster
        .broadcaster()
        .to_user("bot")
        .send("2")
        .await
        .unwrap();
    assert_eq!(next_text(&mut bot).await, "1");
    tokio::time::sleep(NEVER).await;
    assert_eq!(next_text(&mut bot).await, "2");
    assert_eq!(bot.next().now_or_never(), None);
    assert_eq!(bot.close_reason(), None);
}

/// What needs a timer is done where there is one.
#[test]
fn a_subscription_needs_no_runtime_of_its_reader() {
    let lab = Lab::redis();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let cluster = runtime.block_on(async {
        let cluster = lab.builder().start();
        cluster.ready().await.unwrap();
        cluster
    });
    block_on(async {
        let to = cluster.broadcaster();
        let mut bot = to.subscribe("bot").await.unwrap();
        bot.join("lobby").await.unwrap();
        to.to_room("lobby").send("hello").await.unwrap();
        let hello = bot.next().await.unwrap();
        assert_eq!(hello.as_text(), Some("hello"));
        drop(runtime);
        let refused = to.subscribe("late").await.unwrap_err();
        assert_eq!(refused.kind(), SubscribeErrorKind::RuntimeEnded);
        assert_eq!(bot.close_reason(), None);
    });
}

/// Without tokio.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
