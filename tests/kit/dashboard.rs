//! A dashboard behind an app's auth: its views, and its actions, over two nodes.

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::{Router, routing::any};
use axum_cluster::testing::{App, MemoryHub};
use axum_cluster::{Close, Cluster, ClusterSocket, Dashboard};
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};

const SAME: (&str, &str) = ("origin", "http://localhost");

async fn ws(socket: ClusterSocket) -> Response {
    let described = socket.describe(json!({ "device": "phone" })).join("lobby");
    described.on_upgrade(|mut socket| async move { while socket.recv().await.is_some() {} })
}

/// Stands for the auth of operators.
async fn operators_only(request: Request, next: Next) -> Result<Response, StatusCode> {
    match request.headers().contains_key("x-operator") {
        true => Ok(next.run(request).await),
        false => Err(StatusCode::UNAUTHORIZED),
    }
}

fn app(cluster: &Cluster, dashboard: Dashboard) -> App {
    let admin = Router::new()
        .nest_service("/admin/cluster", dashboard)
        .layer(middleware::from_fn(operators_only));
    let app = Router::new().route("/ws", any(ws));
    App::new(app.layer(cluster.layer()).merge(admin))
}

/// Two nodes that know each other; each serves a dashboard.
async fn two(hub: &MemoryHub, dashboard: fn(&Cluster) -> Dashboard) -> [(App, Cluster); 2] {
    let nodes = [(); 2].map(|()| {
        let cluster = Cluster::builder().backend(hub.backend()).start();
        (app(&cluster, dashboard(&cluster)), cluster)
    });
    sleep(Duration::from_secs(1)).await;
    nodes
}

async fn get(app: &App, path: &str) -> axum_cluster::testing::Response {
    let path = format!("/admin/cluster{path}");
    app.get(path).header("x-operator", "olga").await
}

/// What came of an action, asked for with this header.
async fn close(app: &App, query: &str, header: (&str, &str)) -> (StatusCode, String) {
    let request = app.post(format!("/admin/cluster/close?{query}"));
    let request = request
        .header("x-operator", "olga")
        .header(header.0, header.1);
    let response = request.await;
    (response.status(), response.text().to_owned())
}

#[tokio::test(start_paused = true)]
async fn who_is_no_operator_sees_nothing() {
    let hub = MemoryHub::new();
    let [(app, _), _] = two(&hub, Cluster::dashboard).await;
    for path in ["", "/", "/live", "/devices?user=alice"] {
        let refused = app.get(format!("/admin/cluster{path}")).await;
        assert_eq!(refused.status(), 401, "{path}");
    }
    for path in ["", "/"] {
        let page = get(&app, path).await;
        assert_eq!(page.status(), 200, "control: {path}");
        assert!(page.text().starts_with("<!doctype html>"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_is_found_with_her_devices_on_all_nodes() {
    let hub = MemoryHub::new();
    let [(app_a, a), (app_b, b)] = two(&hub, Cluster::dashboard).await;
    let hers = "<img src=x onerror=alert(1)>&+ %";
    let _here = app_a.socket("/ws").user(hers).await.unwrap();
    let _there = app_b.socket("/ws").user(hers).await.unwrap();
    let _other = app_b.socket("/ws").user("bob").await.unwrap();
    let asked = "/devices?user=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E%26%2B%20%25";
    let response = get(&app_a, asked).await;
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let found: Value = response.json();
    let sockets = found["sockets"].as_array().unwrap();
    let mut nodes: Vec<&str> = sockets
        .iter()
        .map(|socket| {
            assert_eq!(socket["user"], hers);
            assert_eq!(socket["description"], json!({ "device": "phone" }));
            assert_eq!(socket["rooms"], json!(["lobby"]));
            assert!(socket["connected_at"].is_u64());
            socket["id"].as_str().unwrap().split('-').next().unwrap()
        })
        .collect();
    nodes.sort_unstable();
    let mut both = [a.id().to_string(), b.id().to_string()];
    both.sort_unstable();
    assert_eq!(nodes, both);
    assert_eq!(
        (&found["total"], &found["complete"]),
        (&json!(2), &json!(true))
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_whole_says_so() {
    let hub = MemoryHub::new();
    let [(app_a, a), (app_b, b)] = two(&hub, Cluster::dashboard).await;
    let _there = app_b.socket("/ws").user("alice").await.unwrap();
    let whole: Value = get(&app_a, "/devices?user=alice").await.json();
    assert_eq!(
        (&whole["total"], &whole["complete"]),
        (&json!(1), &json!(true)),
        "control"
    );
    hub.partition(a.id());
    let found: Value = get(&app_a, "/devices?user=alice").await.json();
    assert_eq!(
        (&found["total"], &found["complete"]),
        (&json!(0), &json!(false))
    );
    assert_eq!(found["missing"], json!([b.id().to_string()]));
}

#[tokio::test(start_paused = true)]
async fn of_many_devices_the_oldest_are_shown_and_all_are_counted() {
    let hub = MemoryHub::new();
    let [(app, a), _] = two(&hub, Cluster::dashboard).await;
    let mut bots = Vec::new();
    for _ in 0..501 {
        bots.push(a.broadcaster().subscribe("bot").await.unwrap());
    }
    let found: Value = get(&app, "/devices?user=bot").await.json();
    assert_eq!(found["total"], 501);
    assert_eq!(found["sockets"].as_array().unwrap().len(), 500);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_or_asked_in_another_way_is_refused_with_what_would_do() {
    let hub = MemoryHub::new();
    let [(app, _), _] = two(&hub, Cluster::dashboard).await;
    assert_eq!(get(&app, "/other").await.status(), 404);
    let wrong = get(&app, "/close?user=alice").await;
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let vague = get(&app, "/devices").await;
    assert_eq!(vague.status(), 400);
    assert!(vague.text().contains("?user="));
    let unusable = get(&app, "/devices?user=").await;
    assert_eq!(unusable.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn where_no_actions_are_allowed_nobody_is_closed_and_each_refusal_is_counted() {
    let hub = MemoryHub::new();
    let [(app, a), _] = two(&hub, Cluster::dashboard).await;
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    let (status, why) = close(&app, "user=alice", SAME).await;
    assert_eq!(status, 403);
    assert!(why.contains("allow_actions"), "{why}");
    assert_eq!(a.stats().actions_refused, 1);
    alice.expect_silence(Duration::from_secs(1)).await;
    assert_eq!(a.stats().sockets, 1);
}

#[tokio::test(start_paused = true)]
async fn a_page_of_another_origin_closes_nobody() {
    let hub = MemoryHub::new();
    let [(app, a), _] = two(&hub, |cluster| cluster.dashboard().allow_actions()).await;
    let mut alice = app.socket("/ws").user("alice").await.unwrap();
    for foreign in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "none"),
        ("x-nothing", "at all"),
    ] {
        let (status, why) = close(&app, "user=alice", foreign).await;
        assert_eq!(status, 403, "{foreign:?}");
        assert!(why.contains("origin"), "{why}");
    }
    assert_eq!(a.stats().actions_refused, 5);
    alice.expect_silence(Duration::from_secs(1)).await;
    let (status, _) = close(&app, "user=alice", SAME).await;
    assert_eq!(status, 200, "control");
    alice.closed_with(4001).await;
}

#[tokio::test(start_paused = true)]
async fn one_socket_is_closed_or_all_of_a_user_on_every_node() {
    let hub = MemoryHub::new();
    let [(app_a, _), (app_b, b)] = two(&hub, |cluster| {
        let dashboard = cluster.dashboard().allow_actions();
        dashboard.close_with(Close::new(4123, "enough"))
    })
    .await;
    let mut here = app_a.socket("/ws").user("alice").await.unwrap();
    let mut there = app_b.socket("/ws").user("alice").await.unwrap();
    let mut another = app_b.socket("/ws").user("alice").await.unwrap();
    let mut bob = app_b.socket("/ws").user("bob").await.unwrap();
    let found: Value = get(&app_a, "/devices?user=alice").await.json();
    let sockets = found["sockets"].as_array().unwrap().iter();
    let mut ids = sockets.map(|socket| socket["id"].as_str().unwrap());
    let first_there = ids.find(|id| id.starts_with(&b.id().to_string())).unwrap();
    let (status, outcome) = close(&app_a, &format!("socket={first_there}"), SAME).await;
    assert_eq!(
        (status.as_u16(), &*outcome),
        (200, r#"{"local":0,"nodes":1,"unanswered":0}"#)
    );
    there.closed_with(4123).await;
    here.expect_silence(Duration::from_secs(1)).await;
    let browser = ("sec-fetch-site", "same-origin");
    let (status, outcome) = close(&app_a, "user=alice", browser).await;
    assert_eq!(
        (status.as_u16(), &*outcome),
        (200, r#"{"local":1,"nodes":1,"unanswered":0}"#)
    );
    here.closed_with(4123).await;
    another.closed_with(4123).await;
    bob.expect_silence(Duration::from_secs(1)).await;
}
