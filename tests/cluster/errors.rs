//! What errors say: a kind to match on, a whole text, a source, and a response that tells the class only.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use axum::body::to_bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::any};
use axum_cluster::testing::App;
use axum_cluster::{
    Close, CloseCode, ClosedKind, Cluster, ClusterRejection, ClusterRejectionKind, ClusterSocket,
    ConnectErrorKind, InvalidId, QueryErrorKind, RoomErrorKind, SendErrorKind,
};

use crate::face::app_of;
use crate::support::{RedisServer, soon};

/// Every error but those of the bus, which say the class alone, says the same to whoever called the handler.
async fn response(error: impl IntoResponse) -> (u16, String) {
    let (parts, body) = error.into_response().into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (
        parts.status.as_u16(),
        String::from_utf8(body.into()).unwrap(),
    )
}

fn source(error: &dyn Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

#[tokio::test]
async fn a_send_that_the_bus_failed_tells_callers_the_class_and_the_log_the_rest() {
    let server = RedisServer::absent();
    let cluster = Cluster::builder().redis(server.url()).start();
    let to = cluster.broadcaster();
    let sent = to.to_user("alice").send("x").await.unwrap_err();
    assert_eq!(sent.kind(), SendErrorKind::Bus);
    assert_eq!((sent.local(), sent.maybe_sent()), (0, false));
    assert!(source(&sent).contains("not sent"), "{sent:?}");
    assert!(sent.to_string().contains(&source(&sent)), "whole: {sent}");
    let (status, body) = response(sent.clone()).await;
    assert!(
        status == 503 && body.starts_with("the bus is not usable"),
        "{body}"
    );
    assert!(!body.contains(&source(&sent)), "{body}");

    let asked = to.is_online("alice").await.unwrap_err();
    assert_eq!(asked.kind(), QueryErrorKind::Bus);
    assert!(asked.to_string().contains(&source(&asked)), "{asked}");
    assert_eq!(
        response(asked).await,
        (503, "no answer from the bus".into())
    );

    let ready = soon("the deadline", cluster.ready()).await.unwrap_err();
    assert_eq!(ready.kind(), ConnectErrorKind::Unreachable);
    assert!(ready.to_string().ends_with(&source(&ready)), "{ready}");
    assert_eq!(response(ready).await, (503, "the bus is not up".into()));
}

#[tokio::test]
async fn what_was_refused_says_why() {
    let cluster = Cluster::builder().start();
    let to_all = || cluster.broadcaster().to_all();
    let unwritable = HashMap::from([((), 1)]);
    let json = to_all().send_json(&unwritable).await.unwrap_err();
    assert!(json.source().unwrap().is::<serde_json::Error>());
    let refused = [
        (json, SendErrorKind::Json, 500),
        (
            to_all().send(vec![0; 17 << 20]).await.unwrap_err(),
            SendErrorKind::TooLarge,
            413,
        ),
        (
            to_all().close(Close::new(1006, "")).await.unwrap_err(),
            SendErrorKind::InvalidClose,
            400,
        ),
        (
            to_all().to_room("").send("x").await.unwrap_err(),
            SendErrorKind::InvalidId,
            400,
        ),
    ];
    for (error, kind, status) in refused {
        assert_eq!(error.kind(), kind);
        assert_eq!(response(error).await.0, status, "{kind:?}");
    }
    let invalid = cluster.broadcaster().to_room("").count().await.unwrap_err();
    assert_eq!(invalid.kind(), QueryErrorKind::InvalidId);
    assert_eq!(response(invalid).await, response(InvalidId::Empty).await);

    cluster.shutdown(Duration::ZERO).await;
    let down = to_all().send("x").await.unwrap_err();
    assert_eq!(
        (down.kind(), source(&down)),
        (SendErrorKind::Down, "".into())
    );
    assert_eq!(
        to_all().join("x").await.unwrap_err().kind(),
        SendErrorKind::Down
    );
    assert_eq!(
        to_all().count().await.unwrap_err().kind(),
        QueryErrorKind::Down
    );
    assert_eq!(
        response(down).await,
        (503, "the cluster was shut down".into())
    );
}

#[tokio::test]
async fn what_cannot_start_says_which_setting() {
    let url = Cluster::builder().redis("http://localhost").try_start();
    let setting = Cluster::builder().namespace("a:b").try_start();
    for (error, kind, part) in [
        (url.unwrap_err(), ConnectErrorKind::Url, "http"),
        (setting.unwrap_err(), ConnectErrorKind::Setting, "a:b"),
    ] {
        assert_eq!(error.kind(), kind);
        assert!(source(&error).contains(part), "{error}");
        let (status, body) = response(error).await;
        assert_eq!((status, body.contains(part)), (500, false), "{body}");
    }
}

#[tokio::test]
async fn a_socket_that_has_ended_says_how() {
    let cluster = Cluster::builder().start();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let app = app_of(&cluster, move |mut socket| async move {
        let invalid = socket.join("").await.unwrap_err();
        socket.leave("x".repeat(257)); // nobody is there
        while socket.recv().await.is_some() {}
        let closed = socket.send("too late").await.unwrap_err();
        let room = socket.join("lobby").await.unwrap_err();
        report.send((invalid, closed, room)).unwrap();
    });
    for (code, kind) in [
        (CloseCode::RESTART, ClosedKind::Restart),
        (CloseCode::POLICY_VIOLATION, ClosedKind::Policy),
        (CloseCode(4001), ClosedKind::Other),
    ] {
        let mut client = app.socket("/ws").user("alice").await.unwrap();
        let out = Close::new(code, "out");
        let to_alice = cluster.broadcaster().to_user("alice");
        assert_eq!(to_alice.close(out.clone()).await.unwrap().local(), 1);
        client.closed_with(code).await;
        let (invalid, closed, room) = soon("the report", reports.recv()).await.unwrap();
        assert_eq!(
            (invalid.kind(), invalid.close()),
            (RoomErrorKind::InvalidId, None)
        );
        assert!(invalid.source().unwrap().is::<InvalidId>());
        assert_eq!(response(invalid).await.0, 400);
        assert_eq!((closed.kind(), closed.close()), (kind, &out));
        assert_eq!(
            (room.kind(), room.close()),
            (RoomErrorKind::Closed, Some(&out))
        );
        assert_eq!(source(&room), closed.to_string());
        let ended = (410, "the socket has ended".into());
        assert_eq!(response(closed).await, ended);
        assert_eq!(response(room).await, ended);
    }
}

#[tokio::test]
async fn a_rejection_of_an_unusable_user_has_it_as_its_source() {
    async fn ws(socket: Result<ClusterSocket, ClusterRejection>) -> Response {
        let rejection = socket.unwrap_err();
        (rejection.status(), source(&rejection)).into_response()
    }
    let cluster = Cluster::builder().start();
    let app = Router::new().route("/ws", any(ws)).layer(cluster.layer());
    let refused = App::new(app).socket("/ws").user("").await.unwrap_err();
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.body(), InvalidId::Empty.to_string());
}

#[tokio::test]
async fn a_rejection_says_of_which_kind_it_is() {
    async fn ws(socket: Result<ClusterSocket, ClusterRejection>) -> (StatusCode, String) {
        let kind = socket.unwrap_err().kind();
        (StatusCode::IM_A_TEAPOT, format!("{kind:?}"))
    }
    let routes = Router::new().route("/ws", any(ws));
    let within = |cluster: &Cluster| App::new(routes.clone().layer(cluster.layer()));
    let (open, over) = (Cluster::builder().start(), Cluster::builder().start());
    let full = Cluster::builder().max_sockets(1).start();
    let _bob = full.broadcaster().subscribe("bob").await.unwrap();
    over.shutdown(Duration::ZERO).await;

    let bare = App::new(routes.clone());
    let [open, full, over] = [&open, &full, &over].map(within);
    let alice = |app: &App| app.socket("/ws").user("alice");
    let foreign = alice(&open).header("origin", "https://evil.example");
    for (handshake, kind) in [
        (alice(&bare), ClusterRejectionKind::NoLayer),
        (foreign, ClusterRejectionKind::Origin),
        (open.socket("/ws"), ClusterRejectionKind::Unauthenticated),
        (open.socket("/ws").user(""), ClusterRejectionKind::InvalidId),
        (alice(&full), ClusterRejectionKind::NodeFull),
        (alice(&over), ClusterRejectionKind::Draining),
    ] {
        let refused = handshake.await.unwrap_err();
        assert_eq!(refused.body(), format!("{kind:?}"));
    }
}
