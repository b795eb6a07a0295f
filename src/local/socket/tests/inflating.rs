//! What a client sends compressed, as its driver takes it.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use http::HeaderMap;
use tokio::io::AsyncWriteExt;
use tokio::task::yield_now;

use super::*;
use crate::local::socket::{Driver, Registered};
use crate::model::compression::Compression;
use crate::ws::{Deflating, OpenedIo};

const MESSAGES: usize = 200;
const SIZE: usize = 60_000;

struct Nobody;

impl Registered for Nobody {
    fn max_message_size(&self) -> usize {
        64 * 1024
    }

    fn unregister(&mut self, _: &Close) {}
}

fn agreed() -> Agreed {
    let mut headers = HeaderMap::new();
    let offer = "permessage-deflate".parse().unwrap();
    headers.append("sec-websocket-extensions", offer);
    Deflating::from(Compression::default()).agree(&headers)
}

/// A large message as few bytes, with a mask of zeros.
fn blank() -> Vec<u8> {
    let deflating = Deflating::from(Compression::default());
    let payload = deflating.deflate(&[0; SIZE]).unwrap();
    let length = u8::try_from(payload.len())
        .ok()
        .filter(|length| *length < 126);
    let mut frame = vec![0xc2, 0x80 | length.expect("it is blank"), 0, 0, 0, 0];
    frame.extend(payload);
    frame
}

fn heard(handler: &HandlerEnd) -> usize {
    let mut cx = Context::from_waker(Waker::noop());
    let messages = std::iter::from_fn(|| match handler.poll_recv(&mut cx) {
        Poll::Ready(message) => message,
        Poll::Pending => None,
    });
    messages
        .inspect(|message| assert_eq!(message.len(), SIZE))
        .count()
}

#[tokio::test]
async fn a_few_bytes_that_are_many_large_messages_wait_for_the_handler_and_for_other_tasks() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let all = blank().repeat(MESSAGES);
    assert!(all.len() < 32 * 1024, "control: one read takes all of it");
    client.write_all(&all).await.unwrap();
    stream.readable().await.unwrap();

    let id = SocketId {
        node: NodeId(1),
        number: 1,
    };
    let SocketEnds {
        handler, driver, ..
    } = SocketEnds::new(id, "alice".into(), topic(), None, agreed());
    let (reader, writer) = stream.into_split();
    let opened = OpenedIo {
        io: Io::Tcp(reader),
        writer: Some(writer),
        early: Bytes::new(),
    };
    let mut driver = Driver::new(opened, driver, Nobody, None);
    let mut turn = async || {
        yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut driver).poll(cx))).await;
        assert!(polled.is_pending());
    };
    let mut first = 0;
    while first == 0 {
        turn().await;
        first = heard(&handler);
    }
    assert!(first < 8, "{first} in one turn");
    for _ in 0..MESSAGES {
        turn().await;
    }
    let waiting = heard(&handler);
    assert_eq!(waiting, 16, "the handler does not read");
    let mut all = first + waiting;
    while all < MESSAGES {
        turn().await;
        all += heard(&handler);
    }
    assert_eq!(all, MESSAGES);
}
