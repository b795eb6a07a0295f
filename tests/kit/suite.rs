//! The tests of the app.

use axum_cluster::testing::{App, Client, MemoryHub};
use axum_cluster::{Cluster, Health, History};
use tokio::time::{Duration, sleep};

use crate::app::{SESSION, Say, Told, router};

fn app() -> App {
    App::new(router(&Cluster::builder().start()))
}

async fn joined(mut client: Client, room: &str) -> Client {
    let room = room.to_owned();
    client.send_json(&Say::Join { room: room.clone() }).await;
    assert_eq!(client.recv_json::<Told>().await, Told::Joined { room });
    client
}

fn post(text: &str) -> Say {
    let (room, text) = ("lobby".to_owned(), text.to_owned());
    Say::Post { room, text }
}

fn posted(by: &str, text: &str) -> Told {
    let (by, text) = (by.to_owned(), text.to_owned());
    Told::Posted { by, text }
}

#[tokio::test(start_paused = true)]
async fn people_in_a_room_hear_each_other_and_nobody_else_does() {
    let app = app();
    let mut alice = joined(app.socket("/ws").user("alice").await.unwrap(), "lobby").await;
    let mut bob = joined(app.socket("/ws").user("bob").await.unwrap(), "lobby").await;
    let mut carol = joined(app.socket("/ws").user("carol").await.unwrap(), "attic").await;
    alice.send_json(&post("hello")).await;
    for client in [&mut alice, &mut bob] {
        assert_eq!(client.recv_json::<Told>().await, posted("alice", "hello"));
    }
    carol.expect_silence(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_stranger_is_told_to_log_in() {
    let app = app();
    app.socket("/ws").await.unwrap().closed_with(4403).await;
    let with_cookie = app.socket("/ws").header("cookie", "user=alice");
    with_cookie.await.unwrap().close().await;
}

#[tokio::test]
async fn a_page_of_another_origin_gets_no_socket() {
    let evil = app()
        .socket("/ws")
        .user("alice")
        .header("origin", "https://evil.example");
    assert_eq!(evil.await.unwrap_err().status(), 403);
}

#[tokio::test]
async fn what_is_no_command_ends_the_socket() {
    for nonsense in ["hello", r#"{"type": "dance"}"#] {
        let mut alice = app().socket("/ws").user("alice").await.unwrap();
        alice.send_text(nonsense).await;
        alice.closed_with(1008).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_after_an_hour() {
    let mut alice = app().socket("/ws").user("alice").await.unwrap();
    sleep(SESSION - Duration::from_secs(1)).await;
    alice = joined(alice, "lobby").await;
    sleep(Duration::from_secs(2)).await;
    alice.closed_with(4401).await;
}

#[tokio::test]
async fn an_order_and_a_log_out_reach_every_device_on_every_node() {
    let hub = MemoryHub::new();
    let [a, b] =
        [(); 2].map(|()| App::new(router(&Cluster::builder().backend(hub.backend()).start())));
    let mut devices = [
        a.socket("/ws").user("alice").await.unwrap(),
        b.socket("/ws").user("alice").await.unwrap(),
    ];
    let answer = a.post("/shipped/alice").json(&7).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    for device in &mut devices {
        assert_eq!(device.recv_json::<Told>().await, Told::Shipped { order: 7 });
    }
    b.post("/logout").user("alice").await;
    for mut device in devices {
        device.closed_with(4001).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_was_cut_off_is_told_to_reload() {
    let hub = MemoryHub::new();
    let clusters = [(); 2].map(|()| Cluster::builder().backend(hub.backend()).start());
    let [a, b] = clusters.each_ref().map(|cluster| App::new(router(cluster)));
    let mut alice = joined(a.socket("/ws").user("alice").await.unwrap(), "lobby").await;
    let mut bob = joined(b.socket("/ws").user("bob").await.unwrap(), "lobby").await;
    hub.partition(clusters[0].id());
    assert!(matches!(clusters[0].health(), Health::Degraded { .. }));
    bob.send_json(&post("lost")).await;
    assert_eq!(bob.recv_json::<Told>().await, posted("bob", "lost"));
    alice.expect_silence(Duration::from_secs(60)).await;
    hub.heal();
    assert_eq!(alice.recv_json::<Told>().await, Told::Reload);
    bob.send_json(&post("back")).await;
    assert_eq!(alice.recv_json::<Told>().await, posted("bob", "back"));
}

#[tokio::test]
async fn whoever_comes_back_to_another_node_gets_what_she_missed() {
    let hub = MemoryHub::new();
    let keeping = || Cluster::builder().user_history(History::default());
    let [a, b] = [(); 2].map(|()| App::new(router(&keeping().backend(hub.backend()).start())));
    let mut alice = a.socket("/ws").user("alice").resumes().await.unwrap();
    a.post("/shipped/alice").json(&1).await;
    assert_eq!(alice.recv_json::<Told>().await, Told::Shipped { order: 1 });
    let position = alice.position().await;
    drop(alice); // a tunnel
    a.post("/shipped/alice").json(&2).await;
    let back = b.socket("/ws").user("alice").since(position);
    let mut alice = back.await.unwrap();
    assert_eq!(alice.recv_json::<Told>().await, Told::Shipped { order: 2 });
    assert_eq!(alice.missed(), None);
}
