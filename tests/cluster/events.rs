//! Streams of events: sockets whose clients only listen.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use axum::extract::{Query, State};
use axum::http::Request;
use axum::middleware;
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::{
    Broadcaster, Close, CloseCode, Cluster, ClusterBuilder, ClusterEvents, Events, Health,
    OverLimit, Unauthenticated,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::FutureExt;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::support::client::user_header;
use crate::support::events::EventSource;
use crate::support::node::{Ended, authenticate, serve};
use crate::support::{Lab, soon, until};

on_every_bus! {
    what_is_sent_anywhere_comes_as_events
    it_is_a_socket_to_everybody_else
    a_room_is_heard_before_the_stream_begins
    every_end_gives_everything_back
    it_has_a_seat_in_the_cluster
    a_client_that_does_not_read_hurts_nobody_else
}

/// A node with streams of events beside its sockets.
struct Served {
    cluster: Cluster,
    to: Broadcaster,
    addr: SocketAddr,
    ended: mpsc::UnboundedReceiver<Ended>,
    server: JoinHandle<()>,
}

#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default)]
    rooms: String,
    #[serde(default)]
    does: String,
}

impl Served {
    async fn start(builder: ClusterBuilder) -> Self {
        let cluster = builder.start();
        until("the bus is up", async || cluster.health() == Health::Up).await;
        Self::of(cluster).await
    }

    async fn of(cluster: Cluster) -> Self {
        let (sender, ended) = mpsc::unbounded_channel();
        let app = Router::new()
            .route("/events", any(plain))
            .route("/handled", any(handled))
            .route("/lost", any(lost))
            .with_state(sender)
            .layer(cluster.layer())
            .layer(middleware::from_fn(authenticate));
        let (addr, server) = serve(app).await;
        Self {
            to: cluster.broadcaster(),
            cluster,
            addr,
            ended,
            server,
        }
    }

    async fn events(&self, user: &str, path: &str) -> EventSource {
        let source = self.ask(user, path, &[]).await;
        assert_eq!(source.status, 200);
        source.opened().await
    }

    async fn ask(&self, user: &str, path: &str, headers: &[(&str, &str)]) -> EventSource {
        let user = user_header(user);
        let headers: Vec<_> = [("x-user", user.as_str())]
            .iter()
            .chain(headers)
            .copied()
            .collect();
        EventSource::connect(self.addr, path, &headers).await
    }

    async fn next_end(&mut self) -> Ended {
        let end = soon("a handler's end", self.ended.recv()).await;
        end.expect("the app lives")
    }

    async fn until_empty(&self) {
        until("no socket here", async || self.cluster.stats().sockets == 0).await;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn prepared(events: ClusterEvents, asked: &Asked) -> ClusterEvents {
    let rooms = asked.rooms.split(',').filter(|room| !room.is_empty());
    let events = rooms.fold(events, |events, room| events.join(room));
    match asked.does.as_str() {
        "expire" => events.expires_at(SystemTime::now() + Duration::from_millis(50)),
        "wrong" => events.describe("x".repeat(2000)),
        _ => events.describe(json!({ "device": "page" })),
    }
}

async fn plain(events: ClusterEvents, Query(asked): Query<Asked>) -> Response {
    prepared(events, &asked).stream()
}

/// The app gives another answer.
async fn lost(
    State(ended): State<mpsc::UnboundedSender<Ended>>,
    events: ClusterEvents,
) -> &'static str {
    let response = events.on_open(|events| async move { tell(&ended, &events) });
    drop(response);
    "another answer"
}

async fn handled(
    State(ended): State<mpsc::UnboundedSender<Ended>>,
    events: ClusterEvents,
    Query(asked): Query<Asked>,
) -> Response {
    let events = prepared(events, &asked);
    events.on_open(move |mut events| async move {
        let does = asked.does.split_once(' ').unwrap_or((&asked.does, ""));
        match does {
            ("panic", _) => panic!("the client asked for it"),
            ("close", code) => {
                let code: u16 = code.parse().expect("a code");
                events.close(Close::new(code, "asked")).await;
            }
            ("flood", size) => {
                let text = "x".repeat(size.parse().expect("a size"));
                while events.send(text.as_str()).await.is_ok() {}
            }
            ("return", _) => events.send("bye").await.expect("it is open"),
            ("hang", _) => std::future::pending().await,
            _ => {
                // The client may be gone already.
                let _ = events.join("later").await;
                let _ = events.send(events.id().to_string()).await;
                events.closed().await;
            }
        }
        tell(&ended, &events);
    })
}

fn tell(ended: &mpsc::UnboundedSender<Ended>, events: &Events) {
    let end = Ended {
        user: events.user().to_string(),
        close: events.close_reason(),
    };
    // Nobody may be interested.
    let _ = ended.send(end);
}

async fn what_is_sent_anywhere_comes_as_events(lab: Lab) {
    let a = Served::start(lab.builder()).await;
    let b = lab.node().await;
    let mut page = a.events("alice", "/events?rooms=lobby,news").await;
    assert_eq!(page.header("content-type"), Some("text/event-stream"));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("x-accel-buffering"), Some("no"));
    assert!((1000..=5000).contains(&page.retry.unwrap()));

    let to = &b.broadcaster;
    to.to_user("alice").send(" two\nlines\r\n").await.unwrap();
    to.to_room("lobby").send("").await.unwrap();
    to.to_all().send(vec![0, 255]).await.unwrap();
    let union = to.to_rooms(["lobby", "news"]).to_user("alice");
    union.send("once").await.unwrap();
    assert_eq!(page.message().await, " two\nlines\n");
    assert_eq!(page.message().await, "");
    let heard = page.next().await.unwrap();
    assert_eq!(heard.kind, "binary");
    assert_eq!(BASE64_STANDARD.decode(heard.data).unwrap(), [0, 255]);
    assert_eq!(page.message().await, "once");
    a.to.to_user("alice").send("own").await.unwrap();
    assert_eq!(page.message().await, "own", "each once");

    let mut handled = a.events("bob", "/handled").await;
    let id = handled.message().await.parse().unwrap();
    to.to_room("later").except(id).send("no").await.unwrap();
    to.to_socket(id).send("yes").await.unwrap();
    assert_eq!(handled.message().await, "yes");
}

async fn it_is_a_socket_to_everybody_else(lab: Lab) {
    let mut a = Served::start(lab.builder()).await;
    let b = lab.node().await;
    let to = &b.broadcaster;
    let mut page = a.events("alice", "/handled?rooms=lobby").await;
    page.message().await;
    assert!(to.is_online("alice").await.unwrap());
    let roster = to.to_room("lobby").sockets().await.unwrap();
    let [info] = roster.sockets() else {
        panic!("{roster:?}")
    };
    assert_eq!(info.user, "alice");
    assert_eq!(info.description, Some(json!({ "device": "page" })));
    assert_eq!(info.rooms.len(), 2);
    let stats = a.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (1, 1, 2));
    to.to_user("alice").leave("lobby").await.unwrap();
    to.to_room("lobby").send("not here").await.unwrap();
    to.to_user("alice").send("last").await.unwrap();
    let closing = to.to_user("alice").close(Close::new(4001, "out")).await;
    assert_eq!(closing.unwrap().nodes(), Some(1));
    assert_eq!(a.cluster.stats().sockets, 0, "gone before its client knows");
    assert_eq!(page.message().await, "last");
    assert_eq!(page.code().await, 4001);
    assert_eq!(page.id, ".", "it may come back");
    let end = a.next_end().await;
    assert_eq!(end.close, Some(Close::new(4001, "out")));
}

async fn a_room_is_heard_before_the_stream_begins(lab: Lab) {
    let a = Served::start(lab.builder()).await;
    let b = lab.node().await;
    for n in 0..20 {
        let (user, room) = (format!("user-{n}"), format!("room-{n}"));
        for path in ["/events", "/handled"] {
            let mut page = a.events(&user, &format!("{path}?rooms={room}")).await;
            if path == "/handled" {
                page.message().await;
            }
            let sent = b.broadcaster.to_room(room.as_str()).send("x").await;
            assert_eq!(sent.unwrap().nodes(), Some(1));
            assert_eq!(page.message().await, "x");
        }
    }
}

async fn every_end_gives_everything_back(lab: Lab) {
    let mut a = Served::start(lab.builder().ping_interval(Duration::from_millis(50))).await;
    let channels = || {
        let told = lab.redis.as_ref().map(|it| it.cli(&["PUBSUB", "CHANNELS"]));
        let channels = told.iter().flat_map(|told| told.lines());
        channels.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = channels();
    for (does, code, final_id) in [
        ("return", 1000, "!1000"),
        ("close%204400", 4400, "!4400"),
        ("close%204001", 4001, "."),
        ("panic", 1011, "."),
        ("expire", 4401, "!4401"),
    ] {
        let mut page = a
            .events("alice", &format!("/handled?rooms=r&does={does}"))
            .await;
        if matches!(does, "return" | "expire") {
            page.message().await;
        }
        assert_eq!(page.code().await, code, "{does}");
        assert_eq!(page.id, final_id, "{does}");
        if does != "panic" {
            a.next_end().await;
        }
        a.until_empty().await;
    }
    // The client leaves, once with a handler that does not care.
    for path in ["/events?rooms=r", "/handled?rooms=r", "/handled?does=hang"] {
        let page = a.events("alice", path).await;
        assert_eq!(a.cluster.stats().sockets, 1, "control");
        drop(page);
        a.until_empty().await;
    }
    let end = a.next_end().await;
    assert_eq!(end.close.unwrap().code, CloseCode::ABNORMAL);
    // Nobody ever takes the answer.
    let other = a.ask("alice", "/lost", &[]).await;
    assert_eq!(other.status, 200);
    a.until_empty().await;
    let wrong = a.ask("alice", "/events?does=wrong", &[]).await;
    assert_eq!(wrong.status, 500);
    let path = format!("/events?rooms={}", "x".repeat(300));
    assert_eq!(a.ask("alice", &path, &[]).await.status, 400);
    assert_eq!(
        a.ended.recv().now_or_never(),
        None,
        "no handler of these ran"
    );
    let stats = a.cluster.stats();
    assert_eq!((stats.sockets, stats.users, stats.rooms), (0, 0, 0));
    assert_eq!((stats.closed_normal, stats.closed_panicked), (1, 1));
    assert_eq!((stats.closed_expired, stats.closed_other), (1, 2));
    assert_eq!(stats.closed_abnormal, 4);
    until("Redis has forgotten them", async || channels() == before).await;
}

async fn it_has_a_seat_in_the_cluster(lab: Lab) {
    let limited = lab
        .builder()
        .max_sockets_per_user_in_cluster(1, OverLimit::CloseOldest);
    let (a, b) = (
        Served::start(limited.clone()).await,
        Served::start(limited).await,
    );
    let mut first = a.events("alice", "/events").await;
    let mut second = b.events("alice", "/events").await;
    assert_eq!(first.code().await, 4409);
    // A browser comes back by itself: two of them would chase one another for ever.
    let back = a
        .ask("alice", "/events", &[("last-event-id", &first.id)])
        .await;
    assert_eq!(back.status, 204);
    assert_eq!(a.cluster.stats().events_over, 1);
    b.to.to_user("alice").send("still here").await.unwrap();
    assert_eq!(second.message().await, "still here");
}

async fn a_client_that_does_not_read_hurts_nobody_else(lab: Lab) {
    let builder = lab.builder().outbox_bytes(64 * 1024);
    let mut a = Served::start(builder).await;
    let b = lab.node().await;
    let user = [("x-user", "lags")];
    let lags = EventSource::connect_narrow(a.addr, "/handled?rooms=r", &user).await;
    let mut reads = a.events("reads", "/events?rooms=r").await;
    let text = "x".repeat(10 * 1024);
    let mut sent = 0;
    while a.cluster.stats().slow_closed == 0 {
        b.broadcaster
            .to_room("r")
            .send(text.as_str())
            .await
            .unwrap();
        sent += 1;
        assert!(sent < 10_000, "control: it does not read");
        assert_eq!(reads.message().await, text);
    }
    let end = a.next_end().await;
    assert_eq!(end.user, "lags");
    assert_eq!(end.close.unwrap().code, CloseCode::TRY_AGAIN_LATER);
    let stats = a.cluster.stats();
    assert_eq!(
        (stats.sockets, stats.closed_slow),
        (1, 1),
        "gone though it reads nothing"
    );
    assert!(stats.dropped_full > 0);
    drop(lags);
}

/// What is in the way of hyper's own buffer and the kernel's is the client's affair, but not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_accepts_nothing_is_given_up() {
    let builder = Cluster::builder()
        .outbox_bytes(usize::MAX)
        .outbox_messages(usize::MAX)
        .write_timeout(Duration::from_millis(300));
    let mut a = Served::start(builder).await;
    let user = [("x-user", "lags")];
    let lags = EventSource::connect_narrow(a.addr, "/handled", &user).await;
    let text = "x".repeat(64 * 1024);
    for _ in 0..200 {
        a.to.to_user("lags").send(text.as_str()).await.unwrap();
    }
    let end = a.next_end().await;
    assert_eq!(end.close.unwrap().code, CloseCode::TRY_AGAIN_LATER);
    assert!(a.cluster.stats().dropped_stalled > 0);
    a.until_empty().await;
    drop(lags);
}

/// A handler is slowed down to the speed of its client, and is no slow consumer's.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_sends_waits_for_its_client() {
    let mut a = Served::start(Cluster::builder().outbox_bytes(64 * 1024)).await;
    let mut page = a.ask("alice", "/handled?does=flood%2010000", &[]).await;
    for _ in 0..2000 {
        assert_eq!(page.message().await.len(), 10_000);
    }
    assert_eq!(a.cluster.stats().slow_closed, 0);
    a.to.to_user("alice")
        .close(Close::new(4001, "enough"))
        .await
        .unwrap();
    while page.next().await.is_some_and(|heard| heard.kind.is_empty()) {}
    a.next_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_filled_with_comments() {
    let builder = Cluster::builder()
        .ping_interval(Duration::from_millis(40))
        .pong_timeout(Duration::from_millis(40));
    let a = Served::start(builder).await;
    let mut page = a.events("alice", "/events").await;
    // Longer than a socket is kept that answers no ping.
    a.to.to_all().send("begins").await.unwrap();
    page.message().await;
    let (later, a) = (tokio::time::sleep(Duration::from_millis(500)), &a);
    let sending = async {
        later.await;
        a.to.to_all().send("goes on").await.unwrap();
    };
    let (heard, ()) = tokio::join!(page.message(), sending);
    assert_eq!(heard, "goes on");
    assert!(page.comments >= 5, "{}", page.comments);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_when_to_come_back_and_waits_until_it_is_read() {
    let a = Served::start(Cluster::builder()).await;
    let mut pages = Vec::new();
    for n in 0..20 {
        pages.push(a.events(&format!("user-{n}"), "/events").await);
    }
    let ends = async {
        let mut retries = BTreeSet::new();
        for page in &mut pages {
            page.retry = None;
            assert_eq!(page.code().await, 1012);
            assert_eq!(page.id, ".");
            retries.insert(page.retry.unwrap());
        }
        retries
    };
    let window = Duration::from_millis(100);
    let (retries, ()) = tokio::join!(ends, a.cluster.shutdown(window));
    assert!(retries.len() > 10, "not all at once: {retries:?}");
    assert!(retries.iter().all(|retry| (1000..=5000).contains(retry)));
    assert_eq!(a.cluster.stats().closed_restart, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_its_status_and_is_counted() {
    let (address, server) = serve(Router::new().route("/events", any(plain))).await;
    let none = EventSource::connect(address, "/events", &[]).await;
    assert_eq!(none.status, 500, "no layer");
    server.abort();

    let a = Served::start(Cluster::builder().max_sockets(2).max_sockets_per_user(1)).await;
    let stream = TcpStream::connect(a.addr).await.unwrap();
    let post = EventSource::ask(stream, a.addr, "POST", "/events", &[("x-user", "alice")]).await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET")));
    let foreign = [("origin", "https://evil.example")];
    assert_eq!(a.ask("alice", "/events", &foreign).await.status, 403);
    let nobody = EventSource::connect(a.addr, "/events", &[]).await;
    assert_eq!(nobody.status, 204, "an EventSource stops");
    assert_eq!(a.ask(&"x".repeat(257), "/events", &[]).await.status, 400);
    let over = a
        .ask("alice", "/events", &[("last-event-id", "!4401")])
        .await;
    assert_eq!(over.status, 204);

    let _alice = a.events("alice", "/events").await;
    assert_eq!(a.ask("alice", "/events", &[]).await.status, 429);
    let mut bob = a.events("bob", "/events").await;
    assert_eq!(a.ask("carol", "/events", &[]).await.status, 503);
    let mut back = a.ask("carol", "/events", &[("last-event-id", ".")]).await;
    assert_eq!(back.status, 200, "else it would stop for ever");
    assert_eq!(back.next().await, None);
    assert!((1000..=5000).contains(&back.retry.unwrap()));
    let stats = a.cluster.stats();
    assert_eq!((stats.handshakes_refused, stats.origins_refused), (1, 1));
    assert_eq!((stats.unauthenticated, stats.ids_refused), (1, 1));
    assert_eq!((stats.limits_refused, stats.events_over), (3, 1));
    assert_eq!(stats.sockets, 2);

    let draining = tokio::spawn({
        let cluster = a.cluster.clone();
        async move { cluster.shutdown(Duration::ZERO).await }
    });
    assert_eq!(bob.code().await, 1012);
    assert_eq!(a.ask("bob", "/events", &[]).await.status, 503);
    let back = a.ask("bob", "/events", &[("last-event-id", ".")]).await;
    assert_eq!(back.status, 200);
    assert_eq!(a.cluster.stats().drain_refused, 2);
    draining.abort();

    let strict = Cluster::builder().unauthenticated(Unauthenticated::Reject);
    let strict = Served::start(strict).await;
    let nobody = EventSource::connect(strict.addr, "/events", &[]).await;
    assert_eq!(nobody.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_it_is_one_stream_of_a_connection() {
    let mut a = Served::start(Cluster::builder()).await;
    let stream = TcpStream::connect(a.addr).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut ask = async |path: &str| {
        let request = Request::builder()
            .uri(format!("http://{}{path}", a.addr))
            .header("x-user", "alice")
            .body(())
            .unwrap();
        let (response, _) = requests.send_request(request, true).unwrap();
        soon("an answer", response).await.unwrap()
    };
    let (kept, left) = (ask("/events?rooms=r").await, ask("/handled").await);
    assert_eq!(kept.status(), 200);
    until("both are there", async || a.cluster.stats().sockets == 2).await;
    a.to.to_room("r").send("hello").await.unwrap();
    let mut body = kept.into_body();
    let mut read = String::new();
    while !read.ends_with("data: hello\n\n") {
        let data: Bytes = soon("data", body.data()).await.unwrap().unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read += std::str::from_utf8(&data).unwrap();
    }
    // One is reset, the connection stays.
    drop(left);
    let end = a.next_end().await;
    assert_eq!(end.close.unwrap().code, CloseCode::ABNORMAL);
    assert_eq!(a.cluster.stats().sockets, 1);
    connection.abort();
    a.until_empty().await;
}
