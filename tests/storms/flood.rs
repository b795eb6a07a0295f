//! Ten thousand messages from another node for clients of which some do not read (row C1).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use axum_cluster::SlowConsumer;
use futures::future::join_all;

use crate::support::node::NEVER;
use crate::support::raw::{RawClient, Said};
use crate::support::{Lab, TestNode, soon, until};

const SLOW: usize = 20;
const QUICK: usize = 5;
const MESSAGES: usize = 10_000;
/// The sender waits for the quick ones after so many, as nothing else does.
const STRIDE: usize = 100;
const OUTBOX: usize = 256;
const PAYLOAD: usize = 2048;
/// One full outbox, whose frames the slow ones share, and buffers; all messages would be 20 MB.
const BOUND: usize = 8 * OUTBOX * PAYLOAD;

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_bounded_and_the_quick_get_everything() {
    let _turn = crate::alone(crate::DESCRIPTORS).await;
    for policy in [SlowConsumer::Close, SlowConsumer::DropOldest] {
        let lab = Lab::redis();
        // Only the outbox may give up the slow ones.
        let builder = lab.builder().write_timeout(NEVER).pong_timeout(NEVER);
        let builder = builder.outbox_messages(OUTBOX).slow_consumer(policy);
        let a = TestNode::start(builder.start()).await;
        a.cluster.ready().await.unwrap();
        let b = lab.node().await;
        let mut slow = Vec::new();
        for _ in 0..SLOW {
            slow.push(RawClient::connect_narrow(a.addr, "slow").await.unwrap());
        }
        let heard = Arc::new(AtomicUsize::new(0));
        let mut quick = Vec::new();
        for _ in 0..QUICK {
            let client = RawClient::connect(a.addr, "quick").await.unwrap();
            quick.push(tokio::spawn(hear_all(client, heard.clone())));
        }
        let flood = async {
            for n in 0..MESSAGES {
                let message = format!("{n:PAYLOAD$}");
                let sent = b.broadcaster.to_all().send(message).await.unwrap();
                assert_eq!(sent.nodes(), Some(1));
                if n % STRIDE == 0 {
                    let all = || heard.load(SeqCst) >= n * QUICK;
                    until("the quick keep up", async || all()).await;
                }
            }
        };
        let ((), growth) = crate::growth("C1", flood).await;
        let quick: Result<Vec<RawClient>, _> = join_all(quick).await.into_iter().collect();
        let _quick = quick.unwrap();
        assert!(growth < BOUND, "{policy:?}: {growth} bytes");
        let stats = a.cluster.stats();
        assert!(stats.dropped > 0, "{policy:?}: {stats:?}");
        match policy {
            SlowConsumer::DropOldest => {
                assert_eq!(
                    (stats.sockets as usize, stats.slow_closed),
                    (SLOW + QUICK, 0)
                );
                assert_eq!(
                    last(&mut slow[0]).await,
                    MESSAGES - 1,
                    "the newest are kept"
                );
            }
            _ => {
                assert_eq!(
                    (stats.sockets as usize, stats.slow_closed as usize),
                    (QUICK, SLOW)
                );
            }
        }
    }
}

/// Every message, in order.
async fn hear_all(mut client: RawClient, heard: Arc<AtomicUsize>) -> RawClient {
    for n in 0..MESSAGES {
        assert_eq!(number(soon("a message", client.next()).await), n);
        heard.fetch_add(1, SeqCst);
    }
    client
}

/// The newest message that waits for a client.
async fn last(client: &mut RawClient) -> usize {
    let mut last = 0;
    while last < MESSAGES - 1 {
        last = number(soon("a message", client.next()).await);
    }
    last
}

fn number(said: Said) -> usize {
    match said {
        Said::Text(text) => text.trim().parse().expect("only numbers are sent"),
        said => panic!("{said:?} is no number"),
    }
}
