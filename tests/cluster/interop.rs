//! Programs in other languages: all they need is PUBLISH.

use crate::support::Lab;
use crate::support::client::{Event, text};

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_script_can_send_to_users_rooms_and_everybody() {
    let mut lab = Lab::redis();
    let [a, b] = lab.nodes().await;
    let (mut alice, mut bob) = (a.client("alice@example.com").await, b.client("bob").await);
    assert_eq!(bob.ask("join news").await, "joined");
    let server = lab.server();
    let publish = |channel: &str, message: &str| server.cli(&["PUBLISH", channel, message]);
    assert_eq!(
        publish("cluster:u:alice%40example.com", r#"{"text": "h\u00e9llo"}"#),
        "1"
    );
    assert_eq!(
        publish(
            "cluster:u:alice%40example.com",
            r#"{"json": {"order": 7,  "paid":true}}"#
        ),
        "1"
    );
    assert_eq!(
        publish("cluster:u:alice%40example.com", r#"{"base64": "AAH/"}"#),
        "1"
    );
    assert_eq!(publish("cluster:r:news", r#"{"text": "to the room"}"#), "1");
    assert_eq!(
        publish(
            "cluster:all",
            r#"{"text": "to all", "added": "by a later version"}"#
        ),
        "2"
    );
    assert_eq!(
        publish(
            "cluster:u:bob",
            r#"{"close": {"code": 4001, "reason": "logged out"}}"#
        ),
        "1"
    );

    assert_eq!(alice.event().await, text("héllo"));
    assert_eq!(alice.event().await, text(r#"{"order": 7,  "paid":true}"#));
    assert_eq!(alice.event().await, Event::Binary(vec![0, 1, 255]));
    assert_eq!(alice.event().await, text("to all"));
    assert_eq!(bob.event().await, text("to the room"));
    assert_eq!(bob.event().await, text("to all"));
    assert_eq!(bob.event().await, Event::Closed(4001, "logged out".into()));
    assert_eq!(
        a.cluster.stats().bus_garbage + b.cluster.stats().bus_garbage,
        0
    );
}
