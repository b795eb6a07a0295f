//! Writing and reading an envelope, against a copy of the payload and a look at its UTF-8.
//! It needs `--cfg axum_cluster_internals`: see benches/README.md.

#[cfg(axum_cluster_internals)]
mod envelopes;
#[cfg(axum_cluster_internals)]
#[path = "../support/mod.rs"]
mod support;

#[cfg(axum_cluster_internals)]
fn main() {
    support::compare("envelope", envelopes::envelope);
}

#[cfg(not(axum_cluster_internals))]
fn main() {
    eprintln!("envelope: skipped, it needs RUSTFLAGS=\"--cfg axum_cluster_internals\"");
}
