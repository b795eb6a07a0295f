use std::collections::HashSet;
use std::future::ready;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use http::{Method, Uri};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;
use crate::bus::Backend;
use crate::peers::checkup::Finding;

/// What is between these tags of the page.
fn inline(tag: &str) -> String {
    let (_, rest) = PAGE.split_once(&format!("<{tag}>")).unwrap();
    let (inside, rest) = rest.split_once(&format!("</{tag}>")).unwrap();
    assert!(!rest.contains(&format!("<{tag}>")), "there is one");
    // As browsers read it.
    inside.replace("\r\n", "\n")
}

#[test]
fn the_policy_admits_what_is_in_the_page_and_nothing_else() {
    for (tag, directive) in [("script", "script-src"), ("style", "style-src")] {
        let hash = BASE64_STANDARD.encode(Sha256::digest(inline(tag)));
        let source = format!("{directive} 'sha256-{hash}';");
        assert!(POLICY.contains(&source), "it has to be {source}");
    }
    assert!(!POLICY.contains("unsafe") && !POLICY.contains('*'));
}

/// What others wrote must not become markup, and nothing is fetched from elsewhere.
#[test]
fn the_page_makes_no_markup_of_text_and_has_no_foreign_assets() {
    let page = PAGE.replace("'http://www.w3.org/2000/svg'", "");
    for forbidden in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "createContextualFragment",
        "setHTML",
        "eval(",
        "Function(",
        "http:",
        "https:",
        "//cdn",
        " style=",
        " onclick=",
    ] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

fn parts(method: Method, uri: &str, headers: &[(&'static str, &'static str)]) -> Parts {
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.parse::<Uri>().unwrap();
    for (name, value) in headers {
        let value = HeaderValue::from_static(value);
        request.headers_mut().append(*name, value);
    }
    request.into_parts().0
}

fn node(backend: &Backend, name: &str) -> Cluster {
    let builder = Cluster::builder().backend(backend.clone()).name(name);
    builder.start()
}

async fn body(response: Response) -> String {
    let pieces = response.into_body().into_data_stream();
    let pieces: Vec<Bytes> = pieces.map(Result::unwrap).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

/// What an open page is told: names and data.
fn told(response: Response) -> impl Stream<Item = (String, Value)> + Unpin {
    let pieces = response.into_body().into_data_stream();
    pieces.map(|piece| {
        let piece = String::from_utf8(piece.unwrap().to_vec()).unwrap();
        let (name, data) = piece
            .strip_prefix("event: ")
            .and_then(|it| it.strip_suffix("\n\n"))
            .and_then(|it| it.split_once("\ndata: "))
            .unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    })
}

async fn get(cluster: &Cluster, uri: &str) -> Response {
    let dashboard = cluster.dashboard();
    dashboard.answer(parts(Method::GET, uri, &[])).await
}

#[tokio::test]
async fn a_page_is_served_that_is_kept_by_nobody_and_framed_by_nobody() {
    let response = get(&Cluster::builder().start(), "/").await;
    assert_eq!(response.status(), StatusCode::OK);
    let of = |name| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(of(CONTENT_TYPE), "text/html; charset=utf-8");
    assert_eq!(of(CACHE_CONTROL), "no-store");
    assert_eq!(of(X_CONTENT_TYPE_OPTIONS), "nosniff");
    assert!(of(CONTENT_SECURITY_POLICY).contains("frame-ancestors 'none'"));
    assert_eq!(body(response).await, PAGE);
}

#[tokio::test(start_paused = true)]
async fn an_open_page_is_told_of_all_nodes_once_a_second_and_after_a_minute_comes_again() {
    let hub = Backend::memory();
    let [a, b] = ["a", "b"].map(|name| node(&hub, name));
    tokio::time::sleep(Duration::from_secs(6)).await;
    let _alice = b.broadcaster().subscribe("alice").await.unwrap();
    let all: Vec<_> = told(get(&a, "/live").await).collect().await;
    let (name, hello) = &all[0];
    assert_eq!(
        (name.as_str(), &hello["actions"]),
        ("hello", &Value::Bool(false))
    );
    assert_eq!(hello["node"], a.id().to_string());
    let of = |kind: &str| -> Vec<&Value> {
        let named = all.iter().filter(|(name, _)| name == kind);
        named.map(|(_, data)| data).collect()
    };
    let rolls = of("roll");
    assert_eq!(rolls.len(), 60);
    assert!(rolls.iter().all(|roll| roll[0]["id"] == b.id().to_string()));
    let of_node = |cluster: &Cluster| -> Vec<&Value> {
        let id = cluster.id().to_string();
        let vitals = of("vitals").into_iter();
        vitals.filter(|it| it["node"]["id"] == id).collect()
    };
    assert_eq!(of_node(&a).len(), 60);
    let others = of_node(&b);
    assert_eq!(others.len(), 60, "no more than one a second");
    assert_eq!(others[0]["numbers"]["sockets"], 1);
    assert_eq!(others[0]["health"]["state"], "up");
    assert_eq!(others[0]["node"]["name"], "b");
    assert!(others[0]["took_micros"].is_u64() && of_node(&a)[0]["took_micros"].is_null());
    let up = |at: usize| others[at]["up_millis"].as_u64().unwrap();
    assert_eq!(up(1) - up(0), 1000);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_looks_nothing_is_asked_and_two_who_look_cost_no_more_than_one() {
    let hub = Backend::memory();
    let [a, b] = ["a", "b"].map(|name| node(&hub, name));
    let answered = || async {
        let mut seen = a.broadcaster().node().peers.checkup().look();
        let mut vitals = 0;
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        while let Some(Some(finding)) = seen.next().now_or_never() {
            let of_b = matches!(&finding, Finding::Vitals(it, _) if it.node.id == b.id());
            vitals += usize::from(of_b);
        }
        vitals
    };
    assert_eq!(answered().await, 4, "control: at once, and once a second");
    let another = get(&a, "/live").await;
    assert_eq!(answered().await, 3, "the same for all who look");
    drop(another);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!a.broadcaster().node().peers.checkup().is_asking());
    assert_eq!(answered().await, 4, "and again");
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_no_node_that_is_shown() {
    let hub = Backend::memory();
    let [a, b] = ["a", "b"].map(|name| node(&hub, name));
    let worker = Broadcaster::builder().backend(hub).try_start().unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    let shown = told(get(&a, "/live").await).filter_map(|(name, data)| {
        let id = data["node"]["id"].as_str().map(str::to_owned);
        ready(id.filter(|_| name == "vitals"))
    });
    let shown: HashSet<String> = shown.collect().await;
    let nodes = [a.id(), b.id()].map(|id| id.to_string());
    assert_eq!(shown, nodes.into());
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_node_tells_nobody_any_more() {
    let cluster = node(&Backend::memory(), "a");
    let mut told = told(get(&cluster, "/live").await);
    for name in ["hello", "roll", "vitals"] {
        assert_eq!(told.next().await.unwrap().0, name);
    }
    cluster.shutdown(Duration::ZERO).await;
    let end = tokio::time::timeout(Duration::from_secs(60), told.next()).await;
    assert_eq!(end.map(|told| told.is_none()), Ok(true));
    let after: Vec<_> = self::told(get(&cluster, "/live").await).collect().await;
    assert_eq!(after.len(), 1, "a hello, and the end");
}
