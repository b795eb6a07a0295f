//! What the log says of actions at a dashboard.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum_cluster::{Cluster, Dashboard, UserId};
use tower::ServiceExt;

use crate::capture::Log;

/// A POST that olga sends, from a page of this origin.
async fn close(dashboard: Dashboard, query: &str, origin: &str) -> u16 {
    let admin = Router::new().nest_service("/admin", dashboard);
    let mut request = Request::post(format!("/admin/close?{query}"))
        .header("host", "ops.example")
        .header("origin", origin)
        .body(Body::empty())
        .unwrap();
    request.extensions_mut().insert(UserId::from("olga"));
    admin.oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_close_is_told_with_its_operator_and_a_refusal_with_its_reason() {
    let (log, _listening) = Log::capture_here();
    let cluster = Cluster::builder().start();
    let _alice = cluster.broadcaster().subscribe("alice").await.unwrap();
    let lines = || -> Vec<String> {
        let log = log.take();
        let lines = log.lines().filter(|line| line.contains("dashboard"));
        lines.map(str::to_owned).collect()
    };
    let (silent, acting) = (cluster.dashboard(), cluster.dashboard().allow_actions());
    let (ours, foreign) = ("https://ops.example", "https://evil.example");
    for (dashboard, origin, reason) in [
        (&silent, ours, "allow_actions"),
        (&acting, foreign, "another origin"),
    ] {
        assert_eq!(close(dashboard.clone(), "user=alice", origin).await, 403);
        let [line] = &lines()[..] else {
            panic!("{reason}")
        };
        assert!(line.contains("DEBUG") && line.contains(reason), "{line}");
    }
    assert_eq!(close(acting, "user=alice", ours).await, 200);
    let [line] = &lines()[..] else { panic!() };
    for part in ["INFO", "by=\"olga\"", "whom=\"alice\"", "code=4001"] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
}
