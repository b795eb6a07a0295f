//! Sockets that tell of their own gaps: one whose user is concerned, one in a room that is, and one that is neither.

use super::client::{Client, Event, text, user_header};
use super::node::TestNode;

#[derive(Debug)]
pub struct Concern {
    clients: [Client; 3],
    /// Of user and room.
    topics: [String; 2],
}

impl Concern {
    /// Whether messages to a topic are going to be missed; not those to everybody at this node.
    pub async fn of(node: &TestNode, is_missed: impl Fn(&str) -> bool) -> Self {
        let carriers = ["all".to_owned(), format!("n:{}", node.id())];
        assert!(
            !carriers.iter().any(|topic| is_missed(topic)),
            "else all are"
        );
        let find = |kind: &str, missed: bool| {
            let mut names = (0..).map(|n| format!("concern-{n}"));
            let fits = |name: &String| is_missed(&format!("{kind}:{name}")) == missed;
            names.find(fits).expect("there are many")
        };
        let (user, other) = (find("u", true), find("u", false));
        let (room, elsewhere) = (find("r", true), find("r", false));
        let clients = [
            enter(node, &user, &elsewhere).await,
            enter(node, &other, &room).await,
            enter(node, &other, &elsewhere).await,
        ];
        Self {
            clients,
            topics: [format!("u:{user}"), format!("r:{room}")],
        }
    }

    /// What they are heard by, where something is missed.
    pub fn topics(&self) -> impl Iterator<Item = String> {
        self.topics.iter().cloned()
    }

    /// How many gaps each was told of, once those that are concerned have one: by user, by room, by neither.
    pub async fn told(self) -> [usize; 3] {
        let Self { mut clients, .. } = self;
        let mut told = [0; 3];
        for (client, told) in clients.iter_mut().zip(&mut told).take(2) {
            assert_gap(&client.event().await);
            *told += 1;
        }
        for (client, told) in clients.iter_mut().zip(&mut told) {
            // The answer comes behind all that is to be told.
            client.send("anywhere").await;
            let before = client.before("joined").await;
            before.iter().for_each(assert_gap);
            *told += before.len();
        }
        told
    }
}

async fn enter(node: &TestNode, user: &str, room: &str) -> Client {
    let user = [("x-user", &*user_header(user))];
    let client = Client::try_connect(node.addr, "/gaps", &user).await;
    let mut client = client.expect("the handshake succeeds");
    client.send(room).await;
    assert_eq!(client.event().await, text("joined"));
    client
}

fn assert_gap(event: &Event) {
    let is_gap = matches!(event, Event::Text(text) if text.starts_with(r#"{"from":"#));
    assert!(is_gap, "{event:?}");
}
