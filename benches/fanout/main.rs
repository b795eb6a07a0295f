//! One message to 1, 100 and 10,000 outboxes, against pushing it into as many plain locked queues.
//! It needs `--cfg axum_cluster_internals`: see benches/README.md.

#[cfg(axum_cluster_internals)]
mod fan_out;
#[cfg(all(axum_cluster_internals, feature = "metrics"))]
mod measured;
#[cfg(axum_cluster_internals)]
#[path = "../support/mod.rs"]
mod support;

#[cfg(axum_cluster_internals)]
fn main() {
    support::compare("fanout", fan_out::fan_out);
    // Not where `cargo test` only tries the benches.
    #[cfg(feature = "metrics")]
    if std::env::args().any(|argument| argument == "--bench") {
        measured::compare();
    }
}

#[cfg(not(axum_cluster_internals))]
fn main() {
    eprintln!("fanout: skipped, it needs RUSTFLAGS=\"--cfg axum_cluster_internals\"");
}
