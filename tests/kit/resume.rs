//! Clients that come back, as the kit has them.

use std::time::Duration;

use axum_cluster::testing::{App, Client, MemoryHub};
use axum_cluster::{Cluster, ClusterBuilder, History, Missed};

use crate::app_of;

/// Joins the room that a client names, and echoes everything.
fn rooms(builder: ClusterBuilder) -> (App, Cluster) {
    let cluster = builder.start();
    let app = app_of(&cluster, |mut socket| async move {
        while let Some(message) = socket.recv().await {
            if let Some(room) = message.as_text().and_then(|it| it.strip_prefix("join ")) {
                socket.join(room).await.unwrap();
            }
            let _ = socket.send(message).await;
        }
    });
    (app, cluster)
}

fn two(hub: &MemoryHub) -> [(App, Cluster); 2] {
    let history = History {
        messages: 4,
        ..History::default()
    };
    [(); 2].map(|()| {
        let builder = Cluster::builder().backend(hub.backend());
        rooms(builder.user_history(history).room_history(history))
    })
}

async fn joined(mut client: Client) -> Client {
    client.send_text("join lobby").await;
    assert_eq!(client.recv_text().await, "join lobby");
    client
}

#[tokio::test]
async fn what_was_missed_of_a_room_comes_when_it_is_joined_again() {
    let hub = MemoryHub::new();
    let [(app_a, a), (app_b, _b)] = two(&hub);
    let to_lobby = || a.broadcaster().to_room("lobby");
    let mut alice = joined(app_a.socket("/ws").user("alice").resumes().await.unwrap()).await;
    to_lobby().send("read").await.unwrap();
    assert_eq!(alice.recv_text().await, "read");
    let position = alice.position().await;
    to_lobby().send("not read").await.unwrap();
    assert_eq!(alice.position().await, position, "nothing was read since");
    drop(alice);
    to_lobby().send("missed").await.unwrap();
    let mut alice = app_b
        .socket("/ws?theme=dark")
        .user("alice")
        .since(position)
        .await
        .unwrap();
    alice.send_text("join lobby").await;
    for text in ["not read", "missed", "join lobby"] {
        assert_eq!(alice.recv_text().await, text);
    }
    to_lobby().send("new").await.unwrap();
    assert_eq!(alice.recv_text().await, "new");
    assert_eq!(alice.missed(), None);
}

#[tokio::test(start_paused = true)]
async fn more_than_is_kept_is_missed_and_told() {
    let hub = MemoryHub::new();
    let [(app_a, a), (app_b, _b)] = two(&hub);
    let mut alice = app_a.socket("/ws").user("alice").resumes().await.unwrap();
    let position = alice.position().await;
    drop(alice);
    for n in 0..10 {
        let to_alice = a.broadcaster().to_user("alice");
        to_alice.send(n.to_string()).await.unwrap();
    }
    let back = app_b.socket("/ws").user("alice").since(position);
    let mut alice = back.await.unwrap();
    alice.expect_silence(Duration::from_secs(1)).await;
    assert_eq!(alice.missed(), Some(Missed::TooMany));
    let again = app_a.socket("/ws").user("alice");
    let mut alice = again.since(alice.position().await).await.unwrap();
    alice.expect_silence(Duration::from_secs(1)).await;
    assert_eq!(alice.missed(), None, "from there on it has everything");
}

#[tokio::test]
async fn a_client_that_does_not_resume_reads_what_it_always_did() {
    let hub = MemoryHub::new();
    let [(app, a), _] = two(&hub);
    let mut plain = app.socket("/ws").user("alice").await.unwrap();
    let mut resumes = app.socket("/ws").user("alice").resumes().await.unwrap();
    for said in ["hi", "\u{1}=mine", "\u{1}7", "\u{1}"] {
        let to_alice = a.broadcaster().to_user("alice");
        to_alice.send(said).await.unwrap();
        for client in [&mut plain, &mut resumes] {
            assert_eq!(client.recv_text().await, said);
        }
    }
}

#[tokio::test]
#[should_panic(expected = "let the handshake say `.resumes()`, and the cluster keep something")]
async fn where_nothing_is_kept_there_is_no_position() {
    let (app, _cluster) = rooms(Cluster::builder());
    let mut alice = app.socket("/ws").user("alice").resumes().await.unwrap();
    alice.position().await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "for its position, and nothing came")]
async fn a_node_that_is_cut_off_tells_no_position() {
    let hub = MemoryHub::new();
    let [(app, a), _] = two(&hub);
    hub.partition(a.id());
    let mut alice = app.socket("/ws").user("alice").resumes().await.unwrap();
    alice.position().await;
}

/// Else it would wait for a slow client that may come back, and close that.
#[tokio::test]
async fn what_a_slow_client_may_miss_is_not_kept() {
    let [(app, a), (_app, b)] = two(&MemoryHub::new());
    let mut alice = app.socket("/ws").user("alice").resumes().await.unwrap();
    let to_alice = || b.broadcaster().to_user("alice");
    to_alice().send("kept").await.unwrap();
    to_alice().volatile().send("volatile").await.unwrap();
    to_alice().latest("one").send("latest").await.unwrap();
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(alice.recv_text().await);
    }
    heard.sort_unstable();
    assert_eq!(heard, ["kept", "latest", "volatile"]);
    let kept = a.broadcaster().to_user("alice").history().await.unwrap();
    assert_eq!(kept.messages, ["kept".into()]);
}
