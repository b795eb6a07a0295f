//! Which subprotocol is chosen where a client may go on as well.

use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{Cluster, ClusterBuilder, ClusterSocket, History};

use crate::echo;

/// What is chosen of this offer.
async fn chosen(app: &App, offer: &str) -> Option<String> {
    let handshake = app.socket("/ws").user("alice");
    let client = handshake.header("sec-websocket-protocol", offer).await;
    let client = client.unwrap();
    let chosen = client.headers().get("sec-websocket-protocol")?;
    Some(chosen.to_str().unwrap().to_owned())
}

fn keeping() -> ClusterBuilder {
    Cluster::builder().user_history(History::default())
}

#[tokio::test]
async fn resuming_comes_before_the_apps_own_unless_the_app_names_its_place() {
    let cases: [(ClusterBuilder, &str, Option<&str>); 8] = [
        (keeping(), "chat, resume.v1", Some("resume.v1")),
        (
            keeping().protocols(["chat"]),
            "chat, resume.v1",
            Some("resume.v1"),
        ),
        (keeping().protocols(["chat"]), "chat", Some("chat")),
        (keeping().protocols(["chat"]), "token", None),
        (
            keeping().protocols(["chat", "resume.v1"]),
            "resume.v1, chat",
            Some("chat"),
        ),
        (
            keeping().protocols(["chat", "resume.v1"]),
            "resume.v1",
            Some("resume.v1"),
        ),
        (
            Cluster::builder().protocols(["chat"]),
            "resume.v1, chat",
            Some("chat"),
        ),
        // Where nothing is kept it would be a lie.
        (
            Cluster::builder().protocols(["resume.v1"]),
            "resume.v1",
            None,
        ),
    ];
    for (n, (builder, offer, expected)) in cases.into_iter().enumerate() {
        let (app, _cluster) = echo(builder);
        assert_eq!(chosen(&app, offer).await.as_deref(), expected, "case {n}");
    }
}

#[tokio::test]
async fn a_handler_that_names_its_own_goes_by_the_same_rule() {
    async fn first(socket: ClusterSocket) -> Response {
        let socket = socket.protocols(["chat"]);
        let protocol = socket.protocol().unwrap_or("none").to_owned();
        socket.on_upgrade(async move |mut socket| _ = socket.send(protocol).await)
    }
    async fn last(socket: ClusterSocket) -> Response {
        let socket = socket.protocols(["chat", "resume.v1"]);
        socket.on_upgrade(async |_| {})
    }
    for (route, expected) in [(any(first), "resume.v1"), (any(last), "chat")] {
        let cluster = keeping().start();
        let app = App::new(Router::new().route("/ws", route).layer(cluster.layer()));
        let chosen = chosen(&app, "resume.v1, chat").await;
        assert_eq!(chosen.as_deref(), Some(expected));
    }
}

/// The app speaks its own within it, and is told so.
#[tokio::test]
async fn a_client_of_an_apps_own_protocol_goes_on_where_it_was() {
    let (app, cluster) = echo(keeping().protocols(["chat"]));
    let to = cluster.broadcaster();
    let offered = async |path: &str| {
        let handshake = app.socket(path).user("alice");
        let offered = handshake.header("sec-websocket-protocol", "resume.v1, chat");
        offered.await.unwrap()
    };
    let mut alice = offered("/ws").await;
    let position = alice.recv_text().await;
    let position = position.strip_prefix("\u{1}=").unwrap();
    drop(alice);
    to.to_user("alice").send("missed").await.unwrap();
    let mut alice = offered(&format!("/ws?since={position}")).await;
    let mut heard = Vec::new();
    while heard.last().is_none_or(|text| text != "missed") {
        heard.push(alice.recv_text().await);
    }
    assert_eq!(cluster.stats().resumed, 1);
}
