//! A client's way in.

use std::net::SocketAddr;
use std::time::Duration;

use axum_cluster::SocketId;
use futures::StreamExt;
use http::Response;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::words::{CHECKED, ToClient, user_id};

/// How long a handshake and a welcome may take.
pub const ENTRY: Duration = Duration::from_secs(10);

/// A socket that was welcomed.
#[derive(Debug)]
pub struct Entry {
    pub stream: WebSocketStream<TcpStream>,
    pub socket: SocketId,
    /// Its node did not say that it counted only its own sockets.
    pub is_checked: bool,
}

/// Connects and waits for the welcome; with a receive buffer of this size, or the system's. When a node
/// refused, the error says whether it had counted all sockets.
pub async fn enter(
    addr: SocketAddr,
    user: u16,
    buffer: Option<u32>,
) -> Result<Entry, Option<bool>> {
    let socket = TcpSocket::new_v4().map_err(|_| None)?;
    if let Some(size) = buffer {
        socket.set_recv_buffer_size(size).map_err(|_| None)?;
    }
    let url = format!("ws://{addr}/ws");
    let mut request = url.into_client_request().map_err(|_| None)?;
    let user = user_id(user).parse().map_err(|_| None)?;
    request.headers_mut().insert("x-user", user);
    let stream = socket.connect(addr).await.map_err(|_| None)?;
    let (mut stream, response) = match client_async(request, stream).await {
        Ok(entered) => entered,
        Err(Error::Http(refusal)) => return Err(Some(is_checked(&refusal))),
        Err(_) => return Err(None),
    };
    let is_checked = is_checked(&response);
    // Reachable already, it may get messages before its handler has said anything.
    loop {
        if let ToClient::Welcome(socket) = said(&mut stream).await.ok_or(None)? {
            return Ok(Entry {
                stream,
                socket,
                is_checked,
            });
        }
    }
}

fn is_checked<T>(response: &Response<T>) -> bool {
    response
        .headers()
        .get(CHECKED)
        .is_some_and(|said| said == "true")
}

/// The next thing a node says; `None` at the end of the socket.
pub async fn said(stream: &mut WebSocketStream<TcpStream>) -> Option<ToClient> {
    loop {
        match stream.next().await?.ok()? {
            Message::Text(text) => {
                return Some(text.parse().unwrap_or_else(|()| panic!("not ours: {text}")));
            }
            Message::Close(_) => return None,
            _ => {}
        }
    }
}
