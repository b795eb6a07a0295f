//! Clients that are strange, slow, hostile or gone (rows C1 to C8, as far as they are the crate's own).

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Request;
use axum_cluster::{Close, SlowConsumer};
use bytes::Bytes;
use futures::future::join_all;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::support::client::{Event, text};
use crate::support::node::NEVER;
use crate::support::{Client, Lab, TestNode, until};

/// C1: a client that stops reading is closed, counted, and hurts nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_consumer_is_closed_and_the_others_get_everything() {
    // Only its full outbox may give it up.
    let builder = Lab::memory().builder().write_timeout(NEVER);
    let mut node = TestNode::start(builder.start()).await;
    let _slow = node.client("slow").await;
    let mut quick = node.client("quick").await;
    let padding = "x".repeat(1024);
    for n in 0..10_000 {
        node.broadcaster
            .to_all()
            .send(format!("{n} {padding}"))
            .await
            .unwrap();
        let Event::Text(message) = quick.event().await else {
            panic!("the quick one was closed")
        };
        assert!(message.starts_with(&format!("{n} ")));
    }
    let end = node.next_end().await;
    assert_eq!(
        (end.user.as_str(), end.close.map(|c| c.code.as_u16())),
        ("slow", Some(1013))
    );
    let stats = node.cluster.stats();
    assert_eq!((stats.sockets, stats.slow_closed), (1, 1));
    assert!(
        stats.dropped > 0,
        "what was queued is discarded and counted"
    );
}

/// C1, the other policy: the newest are kept, the loss is counted.
#[tokio::test(flavor = "multi_thread")]
async fn with_drop_oldest_the_newest_messages_survive() {
    let builder = Lab::memory()
        .builder()
        .outbox_messages(16)
        .slow_consumer(SlowConsumer::DropOldest);
    let node = TestNode::start(builder.start()).await;
    let mut client = node.client("alice").await;
    let payload = "x".repeat(100_000);
    for n in 0..1000 {
        let sent = node
            .broadcaster
            .to_user("alice")
            .send(format!("{n:04}{payload}"))
            .await;
        assert_eq!(sent.unwrap().local(), 1);
    }
    let dropped = node.cluster.stats().dropped as usize;
    assert!(dropped > 0, "control: the client was too slow");
    let mut heard: Vec<u32> = Vec::new();
    for _ in 0..1000 - dropped {
        let Event::Text(text) = client.event().await else {
            panic!("closed")
        };
        heard.push(text[..4].parse().unwrap());
    }
    assert!(heard.is_sorted_by(|a, b| a < b), "in order: {heard:?}");
    // The outbox holds ten of them.
    let newest: Vec<u32> = (992..1000).collect();
    assert!(heard.ends_with(&newest), "the newest: {heard:?}");
    assert_eq!(node.cluster.stats().slow_closed, 0);
}

/// C2: nothing but silence, without FIN.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_client_is_given_up() {
    // Long enough for a busy machine to answer a ping.
    let (interval, timeout) = (Duration::from_millis(200), Duration::from_secs(3));
    let builder = Lab::memory()
        .builder()
        .ping_interval(interval)
        .pong_timeout(timeout);
    let mut node = TestNode::start(builder.start()).await;
    // Reads nothing, so answers no ping.
    let _silent = node.client("silent").await;
    let mut alive = node.client("alive").await;
    let answering = tokio::spawn(async move { alive.event().await });
    let end = node.next_end().await;
    assert_eq!(
        (end.user.as_str(), end.close.map(|c| c.code.as_u16())),
        ("silent", Some(1006))
    );
    assert_eq!(
        node.cluster.stats().sockets,
        1,
        "control: who answers pings stays"
    );
    node.broadcaster.to_all().send("you live").await.unwrap();
    assert_eq!(answering.await.unwrap(), text("you live"));
}

/// C3.
#[tokio::test]
async fn a_message_over_the_limit_closes_with_1009() {
    let mut node = TestNode::start(Lab::memory().builder().max_message_size(1000).start()).await;
    let mut client = node.client("alice").await;
    assert_eq!(
        client.ask(&"x".repeat(1000)).await.len(),
        1000,
        "control: the limit itself passes"
    );
    client.send(&"x".repeat(1001)).await;
    assert!(matches!(client.event().await, Event::Closed(1009, _)));
    assert_eq!(
        node.next_end().await.close.map(|close| close.code.as_u16()),
        Some(1009)
    );

    // A header that promises 16 MiB, and nothing after it.
    let mut client = node.client("bob").await;
    let header = [0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4];
    client.raw().write_all(&header).await.unwrap();
    assert!(matches!(client.event().await, Event::Closed(1009, _)));

    // A message in a million pieces, of which as many have content as are allowed, or one more.
    let mut client = node.client("carol").await;
    for (len, full) in [(1000, false), (1001, true)] {
        let mut pieces = vec![0x02, 0x80, 0, 0, 0, 0];
        pieces.extend([0x00, 0x81, 0, 0, 0, 0, b'x'].repeat(len));
        pieces.extend([0x00, 0x80, 0, 0, 0, 0].repeat(1_000_000 - len - 2));
        pieces.extend([0x80, 0x80, 0, 0, 0, 0]);
        // The rest is not read when it is too long.
        let sent = client.raw().write_all(&pieces).await;
        match full {
            false => assert_eq!(client.event().await, Event::Binary(vec![b'x'; len])),
            true => {
                assert!(sent.is_err() || matches!(client.event().await, Event::Closed(1009, _)))
            }
        }
    }
    for user in ["bob", "carol"] {
        let end = node.next_end().await;
        let code = end.close.map(|close| close.code.as_u16());
        assert_eq!((end.user.as_str(), code), (user, Some(1009)));
    }
    node.until_empty().await;
}

/// C4: each breach has the code of RFC 6455, section 7.4.1.
#[tokio::test]
async fn broken_frames_are_answered_with_their_code() {
    let mut node = TestNode::start(Lab::memory().builder().start()).await;
    let mut long_ping = vec![0x89, 0xfe, 0, 126, 0, 0, 0, 0];
    long_ping.extend([0; 126]);
    let breaches: [(&str, &[u8], u16); 9] = [
        (
            "text that is not UTF-8",
            &[0x81, 0x81, 0, 0, 0, 0, 0xff],
            1007,
        ),
        ("a reserved bit", &[0xc1, 0x80, 0, 0, 0, 0], 1002),
        ("a reserved opcode", &[0x83, 0x80, 0, 0, 0, 0], 1002),
        ("no mask", &[0x81, 0x01, b'x'], 1002),
        ("a fragmented ping", &[0x09, 0x80, 0, 0, 0, 0], 1002),
        ("a long ping", &long_ping, 1002),
        (
            "a close code that may not be sent",
            &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xed],
            1002,
        ),
        ("half a close code", &[0x88, 0x81, 0, 0, 0, 0, 0x03], 1002),
        ("a continuation of nothing", &[0x80, 0x80, 0, 0, 0, 0], 1002),
    ];
    for (what, frame, code) in breaches {
        let mut client = node.client("alice").await;
        client.raw().write_all(frame).await.unwrap();
        assert!(
            matches!(client.event().await, Event::Closed(c, _) if c == code),
            "{what}"
        );
        assert_eq!(
            node.next_end().await.close.map(|close| close.code.as_u16()),
            Some(code),
            "{what}"
        );
    }
    node.until_empty().await;
}

/// C6.
#[tokio::test]
async fn a_foreign_origin_is_refused_before_the_upgrade() {
    let node = TestNode::start(
        Lab::memory()
            .builder()
            .allow_origin("https://shop.example")
            .allow_origin("https://*.tenants.example")
            .allow_origin_if(|origin| match origin {
                "https://bug.example" => panic!("a bug in the rule"),
                origin => origin == "https://partner.example",
            })
            .start(),
    )
    .await;
    let own = format!("http://{}", node.addr);
    for origin in [
        own.as_str(),
        "https://shop.example",
        "https://a.tenants.example",
        "https://a.b.tenants.example",
        "https://partner.example",
    ] {
        let client =
            Client::try_connect(node.addr, "/ws", &[("x-user", "a"), ("origin", origin)]).await;
        assert!(client.is_ok(), "control: {origin}");
    }
    let suffixed = format!("{own}.evil.com");
    let other_scheme = "http://shop.example";
    for origin in [
        "https://evil.com",
        &suffixed,
        "http://127.0.0.1:1",
        "null",
        "https://tenants.example",
        "https://eviltenants.example",
        "https://bug.example",
        other_scheme,
        "",
    ] {
        let headers = [("x-user", "a"), ("origin", origin)];
        let (status, body) = Client::try_connect(node.addr, "/ws", &headers)
            .await
            .unwrap_err();
        assert_eq!(status, 403, "{origin:?}");
        assert!(body.contains("allow_origin"), "{body}");
    }
    let twice = [
        ("x-user", "a"),
        ("origin", own.as_str()),
        ("origin", own.as_str()),
    ];
    assert_eq!(
        Client::try_connect(node.addr, "/ws", &twice)
            .await
            .unwrap_err()
            .0,
        403
    );
    // Even without a user it is 403, not a 4403 after an upgrade.
    let foreign = [("origin", "https://evil.com")];
    assert_eq!(
        Client::try_connect(node.addr, "/ws", &foreign)
            .await
            .unwrap_err()
            .0,
        403
    );
    assert_eq!(node.cluster.stats().origins_refused, 11);
}

/// C7.
#[tokio::test]
async fn only_a_known_protocol_is_echoed_never_a_token() {
    let node = TestNode::start(Lab::memory().builder().start()).await;
    let header = "sec-websocket-protocol";
    let offered = [("x-user", "a"), (header, "bearer, s3cret, superchat, chat")];
    let client = Client::try_connect(node.addr, "/ws", &offered)
        .await
        .unwrap();
    assert_eq!(
        client.response.headers()[header],
        "chat",
        "the server's first choice"
    );
    let mut raw = tokio::net::TcpStream::connect(node.addr).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nx-user: a\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: bearer, s3cret\r\n\r\n",
        node.addr
    );
    raw.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let count = tokio::io::AsyncReadExt::read(&mut raw, &mut answer)
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).to_lowercase();
    assert!(
        answer.starts_with("http/1.1 101") && !answer.contains("s3cret"),
        "{answer}"
    );
    assert!(!answer.contains(header));
}

/// C8: exact, though everybody comes at once.
#[tokio::test(flavor = "multi_thread")]
async fn limits_on_sockets_are_exact() {
    let builder = Lab::memory()
        .builder()
        .max_sockets(10)
        .max_sockets_per_user(4);
    let node = TestNode::start(builder.start()).await;
    let user = [("x-user", "alice")];
    let attempts = join_all((0..20).map(|_| Client::try_connect(node.addr, "/ws", &user))).await;
    let (admitted, refused): (Vec<_>, Vec<_>) = attempts.into_iter().partition(Result::is_ok);
    assert_eq!(admitted.len(), 4);
    assert!(
        refused
            .iter()
            .all(|r| r.as_ref().is_err_and(|(status, _)| *status == 429))
    );
    let users: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
    let attempts = users.iter().map(|user| {
        let addr = node.addr;
        async move { Client::try_connect(addr, "/ws", &[("x-user", user)]).await }
    });
    let (others, refused): (Vec<_>, Vec<_>) = join_all(attempts)
        .await
        .into_iter()
        .partition(Result::is_ok);
    assert_eq!(others.len(), 6);
    assert!(
        refused
            .iter()
            .all(|r| r.as_ref().is_err_and(|(status, _)| *status == 503))
    );
    assert_eq!(node.cluster.stats().limits_refused, 30);
    drop(admitted);
    until("places are given back", async || {
        node.cluster.stats().sockets == 6
    })
    .await;
    assert!(Client::try_connect(node.addr, "/ws", &user).await.is_ok());
}

/// While the handler does not read, pings are answered until the inbox is full; then no pong is expected of
/// the client, and sends and closes still arrive.
#[tokio::test]
async fn a_handler_that_does_not_read_neither_deafens_nor_kills_its_client() {
    let quick = Duration::from_millis(100);
    let builder = Lab::memory()
        .builder()
        .ping_interval(quick)
        .pong_timeout(quick);
    let node = TestNode::start(builder.start()).await;
    let mut client = node.client("alice").await;
    client.send("sleep").await;
    for n in 0..10 {
        client.send(&n.to_string()).await;
    }
    client.ping().await;
    for n in 10..100 {
        client.send(&n.to_string()).await;
    }
    node.broadcaster
        .to_user("alice")
        .send("still heard")
        .await
        .unwrap();
    assert_eq!(client.event().await, text("still heard"));
    tokio::time::sleep(quick * 5).await;
    node.broadcaster
        .to_user("alice")
        .close(Close::new(4001, "out"))
        .await
        .unwrap();
    assert_eq!(
        client.event().await,
        Event::Closed(4001, "out".into()),
        "not 1006"
    );
}

/// What completes no message counts as well: pings one by one, and pieces without a payload by their bytes.
#[tokio::test]
async fn a_flood_of_pings_closes_with_1008_where_messages_are_limited() {
    let pings = b"\x89\x80\0\0\0\0".repeat(100);
    let mut pieces = b"\x01\x80\0\0\0\0".to_vec();
    pieces.extend(b"\0\x80\0\0\0\0".repeat(400));
    pieces.extend(b"\x80\x80\0\0\0\0");
    let builder = || {
        let builder = Lab::memory().builder();
        builder.max_message_size(1000)
    };
    for flood in [&pings, &pieces] {
        let free = TestNode::start(builder().start()).await;
        let mut client = free.client("alice").await;
        client.raw().write_all(flood).await.unwrap();
        client.send("control").await;
        let before = client.before("control").await;
        assert!(before.len() <= 1, "the pieces are one message: {before:?}");

        let limited = builder().inbound_limit(50, 1000).start();
        let limited = TestNode::start(limited).await;
        let mut client = limited.client("alice").await;
        client.raw().write_all(flood).await.unwrap();
        let end = client.event().await;
        assert!(matches!(end, Event::Closed(1008, _)), "{end:?}");
        assert_eq!(limited.cluster.stats().inbound_closed, 1);
    }
}

/// RFC 8441: a WebSocket is one stream of an HTTP/2 connection, beside others.
#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_over_http2_works_the_same() {
    let mut node = TestNode::start(Lab::memory().builder().start()).await;
    let mut connection = Http2::connect(&node).await;
    let (mut sender, mut body) = connection.open("alice").await;
    let _bob = connection.open("bob").await;
    until("both are registered", async || {
        node.cluster.stats().sockets == 2
    })
    .await;

    let masked_hello = b"\x81\x85\0\0\0\0hello";
    sender
        .send_data(masked_hello.to_vec().into(), false)
        .unwrap();
    assert_eq!(read_h2(&mut body, 7).await, b"\x81\x05hello");
    node.broadcaster.to_user("alice").send("you").await.unwrap();
    assert_eq!(read_h2(&mut body, 5).await, b"\x81\x03you");
    node.broadcaster
        .to_user("alice")
        .close(Close::new(4001, "out"))
        .await
        .unwrap();
    assert_eq!(read_h2(&mut body, 7).await, b"\x88\x05\x0f\xa1out");
    sender
        .send_data(b"\x88\x82\0\0\0\0\x0f\xa1".to_vec().into(), true)
        .unwrap();
    assert_eq!(node.next_end().await.close, Some(Close::new(4001, "out")));
    until("only bob is left", async || {
        node.cluster.stats().sockets == 1
    })
    .await;
    drop(connection);
    node.until_empty().await;
}

/// Where only the socket's task can write, more than its outbox holds may come before it runs: from the bus at
/// once, or from a sender that never waits.
#[tokio::test]
async fn a_burst_over_http2_is_no_slowness() {
    const BURST: usize = 2000;
    let lab = Lab::redis();
    // A thread that is blocked misses no probe.
    let node = TestNode::start(lab.builder().probe_interval(NEVER).start()).await;
    node.cluster.ready().await.unwrap();
    let mut connection = Http2::connect(&node).await;
    let (_sender, mut body) = connection.open("alice").await;
    let burst = b"\x81\x01x".repeat(BURST);

    // Nothing else runs on this thread until all of it waits to be read.
    publish_at_once(&lab, "cluster:u:alice", BURST);
    assert_eq!(read_h2(&mut body, burst.len()).await, burst);

    for _ in 0..BURST {
        let sent = node.broadcaster.to_user("alice").local().send("x").await;
        assert_eq!(sent.unwrap().local(), 1);
    }
    assert_eq!(read_h2(&mut body, burst.len()).await, burst);
    assert_eq!(node.cluster.stats().slow_closed, 0);
}

/// The same for many sockets, whose tasks cannot all run between two reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_to_many_sockets_over_http2_is_no_slowness() {
    const BURST: usize = 2000;
    let lab = Lab::redis();
    // Four times as much may wait for a task that the machine keeps from running.
    let builder = lab.builder().outbox_messages(BURST / 4);
    let node = TestNode::start(builder.start()).await;
    node.cluster.ready().await.unwrap();
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    for n in 0..5 {
        let mut connection = Http2::connect(&node).await;
        for m in 0..4 {
            sockets.push(connection.open(&format!("user-{n}-{m}")).await);
        }
        connections.push(connection);
    }
    let burst = b"\x81\x01x".repeat(BURST);
    publish_at_once(&lab, "cluster:all", BURST);
    let reading = sockets
        .iter_mut()
        .map(|(_, body)| read_h2(body, burst.len()));
    for read in join_all(reading).await {
        assert!(read == burst);
    }
    assert_eq!(node.cluster.stats().slow_closed, 0);
}

/// So many messages in one command, which nothing can interrupt.
fn publish_at_once(lab: &Lab, channel: &str, count: usize) {
    let publish = r#"for _ = 1, ARGV[1] do redis.call("PUBLISH", KEYS[1], ARGV[2]) end"#;
    let (count, message) = (count.to_string(), r#"{"text": "x"}"#);
    let server = lab.redis.as_ref().unwrap();
    server.cli(&["EVAL", publish, "1", channel, &count, message]);
}

struct Http2 {
    requests: h2::client::SendRequest<Bytes>,
    addr: SocketAddr,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl Http2 {
    async fn connect(node: &TestNode) -> Self {
        let addr = node.addr;
        let stream = TcpStream::connect(addr).await.unwrap();
        let (requests, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(connection);
        until("the server offers extended CONNECT", async || {
            requests.is_extended_connect_protocol_enabled()
        })
        .await;
        Self {
            requests,
            addr,
            connection,
        }
    }

    /// A WebSocket of this user: what it says, and what it hears.
    async fn open(&mut self, user: &str) -> (h2::SendStream<Bytes>, h2::RecvStream) {
        let request = Request::builder()
            .method("CONNECT")
            .uri(format!("http://{}/ws", self.addr))
            .extension(h2::ext::Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13")
            .header("x-user", user)
            .body(())
            .unwrap();
        let (response, sender) = self.requests.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        (sender, response.into_body())
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

async fn read_h2(body: &mut h2::RecvStream, count: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < count {
        let data = crate::support::soon("data", body.data())
            .await
            .unwrap()
            .unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        read.extend(data);
    }
    read
}

/// C5: nothing that a client does or leaves undone lasts for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_closing_that_is_never_answered_ends_all_the_same() {
    let mut node = TestNode::start(Lab::memory().builder().start()).await;
    let mut silent = node.client("silent").await;
    silent.send("close 4000").await;
    let end = node.next_end().await;
    assert_eq!(
        end.close,
        Some(Close::new(4000, "asked")),
        "`Socket::close` returned"
    );
    node.until_empty().await;

    // Half of a frame, then the end of the client's side.
    let mut half = node.client("half").await;
    half.raw().write_all(&[0x81, 0x85, 0, 0]).await.unwrap();
    half.raw().shutdown().await.unwrap();
    assert_eq!(
        node.next_end().await.close.map(|close| close.code.as_u16()),
        Some(1006)
    );
}

/// C5: a frame that trickles in is no sign of life, though each byte arrives well within the heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_never_ends_is_given_up() {
    let interval = Duration::from_millis(200);
    let builder = Lab::memory()
        .builder()
        .ping_interval(interval)
        .pong_timeout(interval);
    let mut node = TestNode::start(builder.start()).await;
    let mut trickling = node.client("trickling").await;
    let mut frame = vec![0x82, 0xfe, 0x10, 0, 0, 0, 0, 0];
    frame.resize(frame.len() + 0x1000, b'x');
    let trickle = async {
        for byte in frame {
            // An error: it was given up.
            if trickling.raw().write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(interval / 20).await;
        }
    };
    let end = async {
        tokio::select! {
            end = node.next_end() => end,
            () = trickle => node.next_end().await,
        }
    };
    assert_eq!(end.await.close.map(|close| close.code.as_u16()), Some(1006));
    assert_eq!(node.cluster.stats().sockets, 0);
}
