//! What the guide begins with, and that all of it runs.

use axum::{Router, response::Response, routing::any};
use axum_cluster::{Cluster, ClusterSocket};

/// Takes its cluster, so that a test can bring its own.
pub fn router(cluster: &Cluster) -> Router {
    Router::new().route("/ws", any(ws)).layer(cluster.layer())
}

async fn ws(socket: ClusterSocket) -> Response {
    socket.on_upgrade(|mut socket| async move {
        while let Some(message) = socket.recv().await {
            let _ = socket.send(message).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use axum_cluster::{Cluster, testing::App};

    #[tokio::test]
    async fn what_is_said_comes_back() {
        let app = App::new(super::router(&Cluster::builder().start()));
        let mut alice = app.socket("/ws").user("alice").await.unwrap();
        alice.send_text("hello").await;
        assert_eq!(alice.recv_text().await, "hello");
    }
}

/// Every program in it is a part of a test that runs.
#[test]
fn the_guide_shows_what_runs() {
    let sources = [
        include_str!("app.rs"),
        include_str!("suite.rs"),
        include_str!("guide.rs"),
    ];
    let guide = include_str!("../../docs/testing.md");
    let programs = guide.split("```rust\n").skip(1);
    let programs: Vec<&str> = programs.filter_map(|it| it.split("```").next()).collect();
    assert!(programs.len() > 5, "control: it shows some");
    for program in programs {
        let runs = sources.iter().any(|source| source.contains(program));
        assert!(runs, "this is in no test:\n{program}");
    }
}
