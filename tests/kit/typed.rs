//! Typed messages: a wrong one is no end.

use axum_cluster::{BadMessageKind, Cluster, SendJsonErrorKind};
use serde::Serialize;
use serde::ser::Error;

use crate::app_of;

#[tokio::test]
async fn a_wrong_message_is_told_apart_from_the_end() {
    let cluster = Cluster::builder().start();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let app = app_of(&cluster, move |mut socket| async move {
        while let Some(said) = socket.recv_json::<u8>().await {
            let answer = said.map_err(|bad| format!("{:?}", bad.kind()));
            socket.send_json(&answer).await.unwrap();
        }
        let end = socket.send_json(&0).await.unwrap_err();
        report.send((end.kind(), end.close().cloned())).unwrap();
    });
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    let data = format!("{:?}", BadMessageKind::Data);
    let syntax = format!("{:?}", BadMessageKind::Syntax);
    for (said, answer) in [("7", Ok(7)), ("256", Err(data)), ("7 7", Err(syntax))] {
        alice.send_text(said).await;
        assert_eq!(alice.recv_json::<Result<u8, String>>().await, answer);
    }
    alice.send_binary(b"8".as_slice()).await;
    assert_eq!(alice.recv_json::<Result<u8, String>>().await, Ok(8));
    alice.close().await;
    let (kind, close) = reports.recv().await.unwrap();
    assert_eq!(kind, SendJsonErrorKind::Closed);
    assert_eq!(close.unwrap().code, 1000);
}

#[tokio::test]
async fn what_cannot_be_written_as_json_is_not_sent_and_ends_nothing() {
    struct Unwritable;
    impl Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(S::Error::custom("no"))
        }
    }
    let cluster = Cluster::builder().start();
    let app = app_of(&cluster, |mut socket| async move {
        let error = socket.send_json(&Unwritable).await.unwrap_err();
        assert_eq!(error.kind(), SendJsonErrorKind::Json);
        socket.send(error.to_string()).await.unwrap();
    });
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    assert_eq!(
        alice.recv_text().await,
        "the value cannot be written as JSON: no"
    );
    alice.closed_with(1000).await;
}

#[tokio::test]
async fn the_conventional_close_is_1008_and_counted_as_such() {
    let cluster = Cluster::builder().start();
    let app = app_of(&cluster, |mut socket| async move {
        let bad = socket.recv_json::<u8>().await.unwrap().unwrap_err();
        socket.close(bad.close()).await;
    });
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    alice.send_text("hello").await;
    assert_eq!(
        alice.closed().await.to_string(),
        "1008 the message was not understood"
    );
    let stats = cluster.stats();
    assert_eq!((stats.closed_policy, stats.closed_protocol), (1, 0));
    assert_eq!(stats.inbound_closed, 0);
}
