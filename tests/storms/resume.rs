//! Everybody comes back at once, and goes on where they were (row H25).

use std::time::Instant;

use axum_cluster::{History, Resumed, Subscription};
use futures::StreamExt;
use futures::future::join_all;

use crate::support::{Lab, TestNode, soon};

const CLIENTS: usize = 10_000;
/// Messages that each has missed.
const MISSED: usize = 3;
/// In microseconds: while one command runs Redis serves nobody else.
const LONG: &str = "10000";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, for a release build"]
async fn ten_thousand_that_come_back_at_once_have_everything_once() {
    let _turn = crate::alone(crate::DESCRIPTORS).await;
    let mut lab = Lab::redis();
    let builder = lab.builder().user_history(History::default());
    let [old, new] = [(); 2].map(|()| builder.clone().start());
    let (old, new) = (TestNode::start(old).await, TestNode::start(new).await);
    for node in [&old, &new] {
        node.until_up().await;
    }
    let user = |n: usize| format!("user-{n}");
    let coming = (0..CLIENTS).map(|n| old.broadcaster.subscribe_since(user(n), None));
    let came = join_all(coming).await.into_iter();
    let positions: Vec<_> = came.map(|came| came.unwrap().position()).collect();
    old.until_empty().await;
    for number in 0..MISSED {
        let sending =
            (0..CLIENTS).map(|n| new.broadcaster.to_user(user(n)).send(number.to_string()));
        let sent = join_all(sending).await;
        assert!(sent.iter().all(Result::is_ok));
    }
    let server = lab.server();
    server.cli(&["CONFIG", "SET", "slowlog-log-slower-than", LONG]);
    server.cli(&["SLOWLOG", "RESET"]);
    let (begun, reads) = (Instant::now(), server.calls("evalsha"));
    let positions = positions.into_iter().enumerate();
    let returning = positions.map(|(n, at)| new.broadcaster.subscribe_since(user(n), at));
    let (back, _) = crate::growth("H25", join_all(returning)).await;
    let took = begun.elapsed();
    let (slow, reads) = (
        server.cli(&["SLOWLOG", "LEN"]),
        server.calls("evalsha") - reads,
    );
    println!("resumed\tH25\t{CLIENTS} clients\t{took:?}\t{reads} reads\t{slow} slow commands");
    for back in back {
        let mut back: Subscription = back.unwrap();
        assert_eq!(back.resumed(), Resumed::Complete { replayed: MISSED });
        for number in 0..MISSED {
            let message = soon("what was missed", back.next()).await.unwrap();
            assert_eq!(message.as_text(), Some(&*number.to_string()));
        }
    }
    assert!(reads <= CLIENTS as u64, "{reads} reads");
    assert_eq!(slow, "0");
}
