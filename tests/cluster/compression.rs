//! permessage-deflate: agreed on by each socket, compressed once for all, and bounded on its way in.

use axum_cluster::{ClusterBuilder, Compression, Stats};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress};
use tokio::io::AsyncWriteExt;

use crate::support::raw::RawClient;
use crate::support::{Lab, TestNode, soon, until};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
const TEXT: u8 = 0x81;
const DEFLATED: u8 = 0xc1;

on_every_bus! {
    who_agreed_gets_messages_compressed_once_on_every_node
    what_is_said_to_be_uncompressed_is_so_on_every_node
    what_is_kept_is_compressed_too_and_told_apart
}

fn compressing(lab: &Lab) -> ClusterBuilder {
    lab.builder().compression(Compression::default())
}

async fn nodes(lab: &Lab) -> [TestNode; 2] {
    let start = async || {
        let node = TestNode::start(compressing(lab).start()).await;
        node.until_up().await;
        node
    };
    [start().await, start().await]
}

async fn agreeing(node: &TestNode, user: &str) -> RawClient {
    let client = RawClient::connect_with(node.addr, user, OFFER)
        .await
        .unwrap();
    assert_eq!(client.extensions.as_deref(), Some(AGREED));
    client
}

async fn frame(client: &mut RawClient) -> (u8, Vec<u8>) {
    soon("a frame", client.next_frame())
        .await
        .expect("it is open")
}

/// About 1 KiB of JSON.
fn orders() -> String {
    let orders = (0..20)
        .map(|n| serde_json::json!({ "order": n * 7919, "paid": n % 3 == 0, "user": "alice" }));
    serde_json::Value::from_iter(orders).to_string()
}

fn inflated(payload: &[u8]) -> String {
    let mut text = Vec::with_capacity(1 << 20);
    let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
    Decompress::new(false)
        .decompress_vec(&whole, &mut text, FlushDecompress::Sync)
        .expect("it was deflated");
    String::from_utf8(text).unwrap()
}

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut deflated = Vec::with_capacity(payload.len() + 64);
    Compress::new(flate2::Compression::best(), false)
        .compress_vec(payload, &mut deflated, FlushCompress::Full)
        .unwrap();
    deflated.truncate(deflated.len() - 4);
    deflated
}

/// A frame of a client with a mask of zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a part");
    let mut frame = vec![first, 0x80 | 126];
    frame.extend(length.to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

async fn who_agreed_gets_messages_compressed_once_on_every_node(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut alice = agreeing(&a, "alice").await;
    let mut bobs = [agreeing(&b, "bob").await, agreeing(&b, "bob").await];
    let mut carol = RawClient::connect(b.addr, "carol").await.unwrap();
    assert_eq!(carol.extensions, None);
    let text = orders();
    a.broadcaster.to_all().send(text.as_str()).await.unwrap();
    let (first, payload) = frame(&mut alice).await;
    assert_eq!((first, inflated(&payload)), (DEFLATED, text.clone()));
    assert!(
        payload.len() * 3 < text.len(),
        "{} of {}",
        payload.len(),
        text.len()
    );
    for bob in &mut bobs {
        assert_eq!(frame(bob).await, (DEFLATED, payload.clone()));
    }
    assert_eq!(frame(&mut carol).await, (TEXT, text.clone().into_bytes()));

    let written = |payload: usize| payload + if payload < 126 { 2 } else { 4 };
    let (bytes, saved) = (
        written(payload.len()),
        written(text.len()) - written(payload.len()),
    );
    until("it is counted", async || b.cluster.stats().compressed == 1).await;
    let Stats {
        compressed_bytes,
        compressed_saved,
        ..
    } = b.cluster.stats();
    assert_eq!(
        (compressed_bytes, compressed_saved),
        (2 * bytes as u64, 2 * saved as u64)
    );

    a.broadcaster.to_all().send("a few bytes").await.unwrap();
    for client in bobs.iter_mut().chain([&mut alice, &mut carol]) {
        assert_eq!(frame(client).await, (TEXT, b"a few bytes".to_vec()));
    }
    // What a handler says, and what a client compresses.
    alice
        .stream
        .write_all(&masked(DEFLATED, &deflated(text.as_bytes())))
        .await
        .unwrap();
    let (first, payload) = frame(&mut alice).await;
    assert_eq!(
        (first, inflated(&payload)),
        (DEFLATED, text.clone()),
        "an echo"
    );
    assert_eq!(a.cluster.stats().compressed, 2);
    assert_eq!(b.cluster.stats().compressed, 1);
}

async fn what_is_said_to_be_uncompressed_is_so_on_every_node(lab: Lab) {
    let [a, b] = nodes(&lab).await;
    let mut clients = [agreeing(&a, "alice").await, agreeing(&b, "bob").await];
    let text = orders();
    let everybody = a.broadcaster.to_all();
    everybody
        .clone()
        .uncompressed()
        .send(text.as_str())
        .await
        .unwrap();
    everybody
        .clone()
        .volatile()
        .uncompressed()
        .send(text.as_str())
        .await
        .unwrap();
    everybody.send(text.as_str()).await.unwrap();
    for client in &mut clients {
        assert_eq!(frame(client).await, (TEXT, text.clone().into_bytes()));
        assert_eq!(frame(client).await, (TEXT, text.clone().into_bytes()));
        assert_eq!(frame(client).await.0, DEFLATED, "control");
    }
    if let Some(redis) = &lab.redis {
        let publish = |more: &str| {
            redis.cli(&[
                "PUBLISH",
                "cluster:all",
                &format!(r#"{{"json": {text}{more}}}"#),
            ])
        };
        publish(r#", "uncompressed": true"#);
        publish("");
        for client in &mut clients {
            assert_eq!(frame(client).await, (TEXT, text.clone().into_bytes()));
            assert_eq!(frame(client).await.0, DEFLATED, "control");
        }
    }
}

async fn what_is_kept_is_compressed_too_and_told_apart(lab: Lab) {
    let lab = lab.keeping();
    let [a, b] = nodes(&lab).await;
    let told = format!("{OFFER}Sec-WebSocket-Protocol: resume.v1\r\n");
    let told = RawClient::connect_with(b.addr, "alice", &told)
        .await
        .unwrap();
    let mut clients = [
        agreeing(&a, "alice").await,
        agreeing(&b, "alice").await,
        told,
    ];
    let text = orders();
    let marked = format!("\u{1}{text}");
    let alice = a.broadcaster.to_user("alice");
    alice.clone().send(text.as_str()).await.unwrap();
    alice
        .clone()
        .uncompressed()
        .send(text.as_str())
        .await
        .unwrap();
    alice.send(marked.as_str()).await.unwrap();
    for (n, client) in clients.iter_mut().enumerate() {
        let mut next = async || loop {
            let (first, payload) = frame(client).await;
            // The rest are positions.
            if payload.len() >= text.len() || first == DEFLATED {
                return (first, payload);
            }
        };
        let (first, payload) = next().await;
        assert_eq!((first, inflated(&payload)), (DEFLATED, text.clone()));
        assert_eq!(next().await, (TEXT, text.clone().into_bytes()));
        let expected = if n == 2 {
            format!("\u{1}{marked}")
        } else {
            marked.clone()
        };
        assert_eq!(next().await, (TEXT, expected.into_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_offered_is_declined_where_nothing_is_compressed_or_it_makes_no_sense() {
    let lab = Lab::memory();
    let plain = lab.node().await;
    let client = RawClient::connect_with(plain.addr, "alice", OFFER)
        .await
        .unwrap();
    assert_eq!(client.extensions, None);
    let [node, _] = nodes(&lab).await;
    let wrong = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99; \"\r\n";
    let mut client = RawClient::connect_with(node.addr, "alice", wrong)
        .await
        .unwrap();
    assert_eq!(client.extensions, None);
    client
        .stream
        .write_all(&masked(DEFLATED, &deflated(b"hello")))
        .await
        .unwrap();
    assert_eq!(
        frame(&mut client).await,
        (0x88, b"\x03\xeaprotocol error".to_vec())
    );
    let narrow = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n";
    let mut client = RawClient::connect_with(node.addr, "bob", narrow)
        .await
        .unwrap();
    assert_eq!(
        client.extensions.unwrap(),
        format!("{AGREED}; server_max_window_bits=9")
    );
    let bob = node.broadcaster.to_user("bob");
    bob.clone().send(&orders()[..513]).await.unwrap();
    bob.send(&orders()[..512]).await.unwrap();
    client.extensions = None;
    assert_eq!(
        frame(&mut client).await.0,
        TEXT,
        "it does not fit into the window"
    );
    assert_eq!(frame(&mut client).await.0, DEFLATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_and_what_is_no_deflate_end_their_socket_alone() {
    let lab = Lab::memory();
    let [node, _] = nodes(&lab).await;
    let mut bystander = agreeing(&node, "bystander").await;
    let mut rude = agreeing(&node, "rude").await;
    let mut part = deflated(&vec![0; 1 << 20]);
    part.extend([0, 0, 0xff, 0xff]);
    rude.stream.write_all(&masked(0x42, &part)).await.unwrap();
    let (first, close) = frame(&mut rude).await;
    assert_eq!((first, &close[..2]), (0x88, &1009u16.to_be_bytes()[..]));
    let mut broken = agreeing(&node, "broken").await;
    broken
        .stream
        .write_all(&masked(DEFLATED, &[0xff; 20]))
        .await
        .unwrap();
    let (first, close) = frame(&mut broken).await;
    assert_eq!((first, &close[..2]), (0x88, &1007u16.to_be_bytes()[..]));
    bystander.send("still here").await;
    assert_eq!(frame(&mut bystander).await, (TEXT, b"still here".to_vec()));
    until("both are counted", async || {
        let Stats {
            closed_too_big,
            closed_protocol,
            ..
        } = node.cluster.stats();
        (closed_too_big, closed_protocol) == (1, 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_inflated_counts_towards_the_inbound_limit() {
    let lab = Lab::memory();
    let builder = compressing(&lab).inbound_limit(1_000, 10_000);
    let node = TestNode::start(builder.start()).await;
    let mut client = agreeing(&node, "alice").await;
    let blank = " ".repeat(60_000);
    let message = masked(DEFLATED, &deflated(blank.as_bytes()));
    assert!(message.len() < 500, "control: {}", message.len());
    client.stream.write_all(&message).await.unwrap();
    let (first, payload) = frame(&mut client).await;
    assert_eq!((first, inflated(&payload)), (DEFLATED, blank));
    // Another two are more than a second's worth and a message, whatever passes until then.
    for _ in 0..4 {
        client.stream.write_all(&message).await.unwrap();
    }
    let close = loop {
        let (first, payload) = frame(&mut client).await;
        if first == 0x88 {
            break payload;
        }
    };
    assert_eq!(close[..2], 1008u16.to_be_bytes());
    until("it is counted", async || {
        node.cluster.stats().inbound_closed == 1
    })
    .await;
}
