//! The spans of sockets and sends, as whoever collects traces sees them.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use axum::routing::any;
use axum::{Router, middleware};
use axum_cluster::testing::App;
use axum_cluster::{Close, Cluster, ClusterSocket, Socket, UserId};
use tower::ServiceExt;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Instrument, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::capture::Alone;
use crate::support::until;

/// Everything that spans do, in order, in words.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<String>>>);

impl Trace {
    /// Those of this thread, up to this level, while the guard lives.
    fn capture(level: Level) -> (Self, DefaultGuard, Alone) {
        let alone = Alone::wait();
        let trace = Self::default();
        let filtered = trace.clone().with_filter(LevelFilter::from_level(level));
        let registry = tracing_subscriber::registry().with(filtered);
        (trace, tracing::subscriber::set_default(registry), alone)
    }

    fn note(&self, words: String) {
        self.0.lock().unwrap().push(words);
    }

    /// What begins so.
    fn find(&self, prefix: &str) -> Vec<String> {
        let all = self.0.lock().unwrap();
        let found = all.iter().filter(|words| words.starts_with(prefix));
        found.cloned().collect()
    }
}

/// Fields in the order in which they came.
#[derive(Default)]
struct Fields(String);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0 += &format!(" {field}={value:?}");
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Trace {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let parent = context.span(id).unwrap().parent();
        let parent = parent.map_or("nothing", |parent| parent.name());
        let name = attributes.metadata().name();
        self.note(format!("new {name} in {parent}:{}", fields.0));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        let name = context.span(id).unwrap().name();
        self.note(format!("recorded {name}:{}", fields.0));
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let name = |id| context.span(id).unwrap().name();
        self.note(format!("{} follows {}", name(id), name(follows)));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let span = context.event_span(event);
        let span = span.map_or("nothing", |span| span.name());
        self.note(format!("event in {span}:{}", fields.0));
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let name = context.span(&id).unwrap().name();
        self.note(format!("closed {name}"));
    }
}

/// Each request has a span, as `tower_http::trace` makes one.
fn app(cluster: &Cluster) -> App {
    async fn traced(request: Request, next: Next) -> Response {
        let span = tracing::info_span!("request", code = tracing::field::Empty);
        next.run(request).instrument(span).await
    }
    async fn ws(socket: ClusterSocket) -> Response {
        socket.on_upgrade(|mut socket| async move {
            tracing::info!("the handler begins");
            while let Some(message) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        })
    }
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    App::new(app.layer(middleware::from_fn(traced)))
}

#[tokio::test]
async fn a_socket_s_span_follows_from_its_request_and_tells_its_end() {
    let (trace, _listening, _alone) = Trace::capture(Level::DEBUG);
    let cluster = Cluster::builder().start();
    let mut alice = app(&cluster).socket("/ws").user("alice").await.unwrap();
    alice.send_text("hello").await;
    assert_eq!(alice.recv_text().await, "hello");
    until("the request is over", async || {
        !trace.find("closed request").is_empty()
    })
    .await;
    assert_eq!(trace.find("closed socket"), [""; 0], "control: it lives");
    let roster = cluster.broadcaster().to_user("alice").sockets().await;
    let id = roster.unwrap().sockets()[0].id;
    let new = format!("new socket in nothing: socket={id} user=\"alice\"");
    assert_eq!(trace.find("new socket"), [new]);
    assert_eq!(trace.find("socket follows"), ["socket follows request"]);
    let begins = "event in socket: message=the handler begins";
    assert_eq!(trace.find(begins), [begins]);

    let alices = cluster.broadcaster().to_user("alice");
    alices.close(Close::new(4001, "out")).await.unwrap();
    assert_eq!(alice.closed_with(4001).await.reason, "out");
    until("the span is over", async || {
        !trace.find("closed socket").is_empty()
    })
    .await;
    assert_eq!(trace.find("recorded"), ["recorded socket: code=4001"]);
    assert_eq!(
        trace.find("event in socket: message=socket closed").len(),
        1
    );
}

/// What is recorded of a socket goes to no span of the app, which may have a field of that name.
#[tokio::test]
async fn where_nobody_listens_to_debug_there_are_no_spans() {
    let (trace, _listening, _alone) = Trace::capture(Level::INFO);
    let cluster = Cluster::builder().start();
    let mut alice = app(&cluster).socket("/ws").user("alice").await.unwrap();
    alice.send_text("hello").await;
    assert_eq!(alice.recv_text().await, "hello");
    cluster.broadcaster().to_all().send("all").await.unwrap();
    assert_eq!(alice.recv_text().await, "all");
    alice.close().await;
    until("it has left", async || cluster.stats().sockets == 0).await;
    let spans = ["new", "recorded", "socket follows"].map(|prefix| trace.find(prefix));
    let [new, recorded, follows] = spans;
    assert_eq!(new, ["new request in nothing:"], "control");
    assert_eq!([recorded, follows].concat(), [""; 0]);
}

#[tokio::test]
async fn a_handler_that_panics_and_an_upgrade_that_is_not_done_end_their_spans() {
    async fn ws(socket: ClusterSocket) -> Response {
        fn panics(_: Socket) -> std::future::Ready<()> {
            panic!("on purpose")
        }
        socket.on_upgrade(panics)
    }
    let (trace, _listening, _alone) = Trace::capture(Level::DEBUG);
    let cluster = Cluster::builder().start();
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let served = App::new(app.clone());
    let mut alice = served.socket("/ws").user("alice").await.unwrap();
    alice.closed_with(1011).await;
    let ended = |code| format!("recorded socket: code={code}");
    until("the span is over", async || {
        !trace.find(&ended(1011)).is_empty()
    })
    .await;
    // As of a server that answers upgrades and does not do them.
    let mut request = Request::get("/ws")
        .header("host", "app.example")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .extension(UserId::from("bob"))
        .body(Body::empty())
        .unwrap();
    let nobody = hyper::upgrade::on(&mut request);
    request.extensions_mut().insert(nobody);
    let answered = app.oneshot(request).await.unwrap();
    assert_eq!(answered.status(), 101, "control");
    until("the other one is", async || {
        !trace.find(&ended(1006)).is_empty()
    })
    .await;
}

/// Where it is dropped, a span of the app is the current one, and has a field of that name.
#[test]
fn a_runtime_that_is_dropped_in_a_span_of_the_app_records_nothing_there() {
    let (trace, _listening, _alone) = Trace::capture(Level::INFO);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (cluster, _alice) = runtime.block_on(async {
        let cluster = Cluster::builder().start();
        let mut alice = app(&cluster).socket("/ws").user("alice").await.unwrap();
        alice.send_text("hello").await;
        assert_eq!(alice.recv_text().await, "hello");
        (cluster, alice)
    });
    assert_eq!(cluster.stats().sockets, 1, "control");
    let span = tracing::info_span!("app", code = tracing::field::Empty);
    span.in_scope(|| drop(runtime));
    assert_eq!(
        cluster.stats().sockets,
        0,
        "control: its task was dropped there"
    );
    assert_eq!(trace.find("recorded"), [""; 0]);
}

#[tokio::test]
async fn a_send_has_a_span_at_trace() {
    for (level, spans) in [(Level::DEBUG, 0), (Level::TRACE, 1)] {
        let (trace, _listening, _alone) = Trace::capture(level);
        let cluster = Cluster::builder().start();
        let _bot = cluster.broadcaster().subscribe("bot").await.unwrap();
        let app = tracing::info_span!("app");
        let to = cluster.broadcaster().to_user("bot").to_room("lobby");
        to.send("s3cret").instrument(app).await.unwrap();
        assert_eq!(trace.find("new app").len(), 1, "control");
        let new = trace.find("new send");
        assert_eq!(new.len(), spans, "{new:?}");
        assert_eq!(trace.find("closed send").len(), spans);
        if let [new] = &new[..] {
            assert_eq!(new, "new send in app: topics=2 bytes=6");
            assert_eq!(trace.find("recorded send: local").len(), 1);
        }
        // Where one channel carries it, it is known who took it.
        let _ = cluster.broadcaster().to_user("bot").send("s3cret").await;
        assert_eq!(trace.find("recorded send: nodes=0").len(), spans);
        cluster.to_nodes().send("s3cret").await.unwrap();
        assert_eq!(trace.find("new send to nodes").len(), spans);
    }
}
