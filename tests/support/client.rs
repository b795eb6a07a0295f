//! A real WebSocket client.

use std::net::SocketAddr;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Response};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::soon;

/// Percent-encodes a user id for a header, as the test app expects it.
pub fn user_header(user: &str) -> String {
    user.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[derive(Debug)]
pub struct Client {
    stream: WebSocketStream<TcpStream>,
    pub response: Response<Option<Vec<u8>>>,
}

/// What came: a message, or the end with its code and reason.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    Closed(u16, String),
}

pub fn text(text: &str) -> Event {
    Event::Text(text.to_owned())
}

impl Client {
    /// A socket of this user; the user id travels in a header.
    pub async fn connect(addr: SocketAddr, user: &str) -> Self {
        let client = Self::try_connect(addr, "/ws", &[("x-user", &user_header(user))]).await;
        client.expect("the handshake succeeds")
    }

    /// A handshake with these headers; an error is the response that refused it.
    pub async fn try_connect(
        addr: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, (u16, String)> {
        let mut request = format!("ws://{addr}{path}")
            .into_client_request()
            .expect("a good url");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a good name");
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(value).expect("a good value"));
        }
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        match soon("handshake", client_async(request, stream)).await {
            Ok((stream, response)) => Ok(Self { stream, response }),
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                Err((
                    response.status().as_u16(),
                    String::from_utf8_lossy(&body).into_owned(),
                ))
            }
            Err(error) => panic!("the handshake failed: {error}"),
        }
    }

    pub async fn send(&mut self, text: &str) {
        self.stream
            .send(Message::text(text))
            .await
            .expect("the server reads");
    }

    pub async fn send_binary(&mut self, bytes: Vec<u8>) {
        self.stream
            .send(Message::Binary(Bytes::from(bytes)))
            .await
            .expect("the server reads");
    }

    pub async fn close(&mut self, code: u16) {
        let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: code.into(),
            reason: "bye".into(),
        };
        self.stream
            .close(Some(frame))
            .await
            .expect("the server reads");
    }

    /// The stream underneath, to break the rules with.
    pub fn raw(&mut self) -> &mut TcpStream {
        self.stream.get_mut()
    }

    /// Pings and waits for the pong.
    pub async fn ping(&mut self) {
        let ping = Message::Ping(Bytes::from_static(b"there?"));
        self.stream.send(ping).await.expect("the server reads");
        let pong = Message::Pong(Bytes::from_static(b"there?"));
        let mut heard =
            async || matches!(self.stream.next().await, Some(Ok(frame)) if frame == pong);
        let answered = async { while !heard().await {} };
        soon("a pong", answered).await;
    }

    pub async fn event(&mut self) -> Event {
        soon("an event", self.next()).await
    }

    /// The next event, however long it takes.
    pub async fn next(&mut self) -> Event {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return Event::Text(text.to_string()),
                Some(Ok(Message::Binary(bytes))) => return Event::Binary(bytes.to_vec()),
                Some(Ok(Message::Close(frame))) => {
                    // Lets the answer out.
                    let _ = self.stream.next().await;
                    let frame = frame.map(|frame| (frame.code.into(), frame.reason.to_string()));
                    let (code, reason) = frame.unwrap_or((1005, String::new()));
                    return Event::Closed(code, reason);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Event::Closed(1006, String::new()),
            }
        }
    }

    /// Sends a command to the test app and returns what it answers.
    pub async fn ask(&mut self, command: &str) -> String {
        self.send(command).await;
        match self.event().await {
            Event::Text(answer) => answer,
            event => panic!("no answer to {command}: {event:?}"),
        }
    }

    /// Everything that came before this text, which proves that nothing else did.
    pub async fn before(&mut self, fence: &str) -> Vec<Event> {
        let mut events = Vec::new();
        loop {
            match self.event().await {
                Event::Text(text) if text == fence => return events,
                end @ Event::Closed(..) => panic!("closed before {fence}: {end:?}, {events:?}"),
                event => events.push(event),
            }
        }
    }
}
