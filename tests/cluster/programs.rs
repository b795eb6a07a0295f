//! The examples as programs, in processes of their own.

use std::path::{Path, PathBuf};

use crate::support::client::{Event, text};
use crate::support::program::{self, post, ticker, worker};
use crate::support::redis::free_port;
use crate::support::{Client, Lab, RedisServer};

/// The tutorial: two instances, one client at either, and it hears both.
#[tokio::test(flavor = "multi_thread")]
async fn two_tickers_are_one_cluster() {
    let server = RedisServer::start();
    let ports = [free_port(), free_port()];
    let mut tickers = Vec::new();
    for port in ports {
        tickers.push(ticker(port, &server.url()).await);
    }
    for port in ports {
        let addr = ([127, 0, 0, 1], port).into();
        let mut client = Client::try_connect(addr, "/", &[("cookie", "token=user1")])
            .await
            .unwrap();
        let mut wanted = ports
            .map(|port| format!(" | from server on port {port}"))
            .to_vec();
        while !wanted.is_empty() {
            let Event::Text(tick) = client.event().await else {
                panic!("closed")
            };
            wanted.retain(|suffix| !tick.ends_with(suffix));
        }
        for path in ["/", "/ws"] {
            let mut stranger = Client::try_connect(addr, path, &[]).await.unwrap();
            let close = Event::Closed(4403, "set JWT cookie to authenticate".into());
            assert_eq!(stranger.event().await, close);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reaches_a_user() {
    let mut lab = Lab::redis();
    let [node] = lab.nodes().await;
    let mut client = node.client("alice").await;
    let output = worker(&lab.server().url(), None).await;
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        "1 nodes took it"
    );
    assert_eq!(client.event().await, text("shipped"));
}

/// A socket of whoever has this cookie.
async fn tab(port: u16, cookie: &str) -> Client {
    let addr = ([127, 0, 0, 1], port).into();
    let client = Client::try_connect(addr, "/ws", &[("cookie", cookie)]).await;
    client.expect("who is nobody is told so by a close")
}

async fn is_open(client: &mut Client) {
    client.send("there?").await;
    assert_eq!(client.event().await, text("there?"));
}

/// Logs in as alice, in a browser of its own.
async fn session(port: u16) -> String {
    let answer = post(port, "/login", "", "name=alice&password=secret").await;
    assert_eq!(answer.status, 200);
    answer.cookie.unwrap()
}

fn logged_out() -> Event {
    Event::Closed(4001, "logged out".into())
}

fn nobody() -> Event {
    Event::Closed(4403, "authentication required".into())
}

/// axum-login and tower-sessions.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_out_ends_the_tabs_of_its_session_or_all_of_its_user() {
    let port = free_port();
    let _node = program::node("login", port, &[]).await;
    let wrong = post(port, "/login", "", "name=alice&password=guessed").await;
    assert_eq!((wrong.status, wrong.cookie), (401, None));
    assert_eq!(tab(port, "").await.event().await, nobody());

    let [desk, phone, tablet] = [
        session(port).await,
        session(port).await,
        session(port).await,
    ];
    let mut tabs = [tab(port, &desk).await, tab(port, &desk).await];
    let mut others = [tab(port, &phone).await, tab(port, &tablet).await];
    for client in tabs.iter_mut().chain(&mut others) {
        is_open(client).await;
    }
    assert_eq!(post(port, "/logout", &desk, "").await.status, 200);
    for tab in &mut tabs {
        assert_eq!(tab.event().await, logged_out());
    }
    assert_eq!(tab(port, &desk).await.event().await, nobody());

    for client in &mut others {
        is_open(client).await;
    }
    assert_eq!(
        post(port, "/logout/everywhere", &phone, "").await.status,
        200
    );
    for client in &mut others {
        assert_eq!(client.event().await, logged_out());
    }
    for cookie in [&phone, &tablet] {
        assert_eq!(tab(port, cookie).await.event().await, nobody());
    }
    is_open(&mut tab(port, &session(port).await).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_ends_with_its_session() {
    let port = free_port();
    let _node = program::node("login", port, &[("SESSION_SECONDS", "2")]).await;
    let event = tab(port, &session(port).await).await.event().await;
    assert!(matches!(event, Event::Closed(4401 | 4403, _)), "{event:?}");
}

/// A signed token in a cookie.
async fn token(port: u16, user: &str) -> String {
    post(port, &format!("/login/{user}"), "", "").await.body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_a_socket_renews_it_and_is_ended_by_a_log_out() {
    let server = RedisServer::start();
    let [long, short] = [free_port(), free_port()];
    let url = server.url();
    let at = |port, seconds| {
        let settings = [("REDIS_URL", &*url), ("TTL_SECONDS", seconds)];
        async move { program::node("jwt", port, &settings).await }
    };
    let _nodes = (at(long, "600").await, at(short, "8").await);
    let (alice, soon_over) = (token(long, "alice").await, token(short, "alice").await);
    let cookie = format!("token={alice}");

    // What a token says last counts.
    let [mut shortened, mut renewed] = [tab(long, &cookie).await, tab(long, &cookie).await];
    for client in [&mut shortened, &mut renewed] {
        client.send(&format!("bearer {soon_over}")).await;
    }
    renewed.send(&format!("bearer {alice}")).await;
    let end = shortened.event().await;
    assert!(matches!(end, Event::Closed(4401, _)), "{end:?}");
    is_open(&mut renewed).await;

    let mut stolen = tab(long, &cookie).await;
    stolen
        .send(&format!("bearer {}", token(long, "bob").await))
        .await;
    let refused = Event::Closed(4401, "no token of this user".into());
    assert_eq!(stolen.event().await, refused);

    let offer = format!("chat, bearer, {alice}");
    let offer = [("sec-websocket-protocol", &*offer)];
    let addr = ([127, 0, 0, 1], short).into();
    let mut offered = Client::try_connect(addr, "/ws", &offer).await.unwrap();
    assert_eq!(offered.response.headers()["sec-websocket-protocol"], "chat");
    is_open(&mut offered).await;

    assert_eq!(post(short, "/logout", &cookie, "").await.status, 200);
    for client in [&mut renewed, &mut offered] {
        assert_eq!(client.event().await, logged_out());
    }
}

/// The documents are packaged, and so is what they lead to.
#[test]
fn links_lead_to_files_and_headings_of_the_package() {
    let mut documents = Vec::new();
    find_documents(Path::new(env!("CARGO_MANIFEST_DIR")), &mut documents);
    let (mut links, mut anchors) = (0, 0);
    for path in &documents {
        let document = path.display();
        let text = std::fs::read_to_string(path).unwrap();
        for link in relative_links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            assert!(target.is_file(), "{document}: {link}");
            // Cargo.toml excludes them from the package.
            assert!(
                !link.contains(".ci/") && !link.contains(".github/"),
                "{document}: {link}"
            );
            if !anchor.is_empty() {
                let headings = headings(&std::fs::read_to_string(target).unwrap());
                assert!(headings.iter().any(|it| it == anchor), "{document}: {link}");
                anchors += 1;
            }
            links += 1;
        }
    }
    assert!(documents.len() > 15 && links > 50 && anchors > 5, "control");
}

/// Every document of the repository: neither what was built nor what was installed.
fn find_documents(folder: &Path, documents: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            let is_foreign = name.starts_with('.') || ["target", "node_modules"].contains(&name);
            if !is_foreign {
                find_documents(&path, documents);
            }
        } else if name.ends_with(".md") {
            documents.push(path);
        }
    }
}

fn relative_links(text: &str) -> impl Iterator<Item = &str> {
    let inline = text.split("](").skip(1);
    let inline = inline.map(|rest| rest.split_once(')').unwrap().0);
    let defined = text.lines().filter(|line| line.starts_with('['));
    let defined = defined.filter_map(|line| Some(line.split_once("]: ")?.1));
    inline.chain(defined).filter(|link| !link.contains("://"))
}

/// As links name them.
fn headings(text: &str) -> Vec<String> {
    let mut is_code = false;
    let lines = text.lines().filter(|line| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with('#')
    });
    let named = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
        heading
            .chars()
            .filter(kept)
            .collect::<String>()
            .replace(' ', "-")
    };
    lines.map(named).collect()
}
