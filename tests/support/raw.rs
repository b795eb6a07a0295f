//! A WebSocket client of a few hundred bytes, of which thousands fit, and which can be rude.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::soon;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
/// Empty, with an empty mask.
const MASKED_CLOSE: [u8; 6] = [CLOSE, 0x80, 0, 0, 0, 0];

#[derive(Debug)]
pub struct RawClient {
    pub stream: TcpStream,
    /// What was answered to what it offers.
    pub extensions: Option<String>,
    read: Vec<u8>,
}

/// What the server says to it.
#[derive(Debug, PartialEq)]
pub enum Said {
    Text(String),
    Close(u16),
    /// The stream has ended.
    Nothing,
}

impl RawClient {
    /// A handshake; an error is the status that refused it.
    pub async fn connect(addr: SocketAddr, user: &str) -> Result<Self, u16> {
        Self::connect_with(addr, user, "").await
    }

    /// With these lines of the header beside.
    pub async fn connect_with(addr: SocketAddr, user: &str, lines: &str) -> Result<Self, u16> {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        Self::upgrade(stream, addr, user, lines).await
    }

    /// One whose kernel takes hardly anything while nobody reads.
    pub async fn connect_narrow(addr: SocketAddr, user: &str) -> Result<Self, u16> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(addr).await.expect("the server listens");
        Self::upgrade(stream, addr, user, "").await
    }

    async fn upgrade(
        mut stream: TcpStream,
        addr: SocketAddr,
        user: &str,
        lines: &str,
    ) -> Result<Self, u16> {
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {addr}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nx-user: {user}\r\n{lines}\r\n"
        );
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        let mut client = Self {
            stream,
            extensions: None,
            read: Vec::new(),
        };
        let end = loop {
            let end = client.read.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break end + 4;
            }
            assert!(soon("a response", client.fill()).await, "no response");
        };
        let status = std::str::from_utf8(&client.read[9..12]).expect("a status");
        let status: u16 = status.parse().expect("a status");
        let head = String::from_utf8(client.read.drain(..end).collect()).expect("a header");
        let extensions = "sec-websocket-extensions: ";
        let extensions = head.lines().find_map(|line| line.strip_prefix(extensions));
        client.extensions = extensions.map(str::to_owned);
        if status == 101 {
            Ok(client)
        } else {
            Err(status)
        }
    }

    /// Sends a short text.
    pub async fn send(&mut self, text: &str) {
        let mut frame = vec![
            TEXT,
            0x80 | u8::try_from(text.len()).expect("short"),
            0,
            0,
            0,
            0,
        ];
        frame.extend(text.as_bytes());
        self.stream
            .write_all(&frame)
            .await
            .expect("the server reads");
    }

    pub async fn answer_close(&mut self) {
        // The server may have given up.
        let _ = self.stream.write_all(&MASKED_CLOSE).await;
    }

    /// The next frame as it is, or nothing where the stream has ended.
    pub async fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(frame) = self.take_frame() {
                return Some(frame);
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next frame; pings are passed over.
    pub async fn next(&mut self) -> Said {
        loop {
            if let Some((opcode, payload)) = self.take_frame() {
                match opcode {
                    TEXT => return Said::Text(String::from_utf8(payload).expect("UTF-8")),
                    CLOSE => return Said::Close(u16::from_be_bytes([payload[0], payload[1]])),
                    _ => continue,
                }
            }
            if !self.fill().await {
                return Said::Nothing;
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (header, length) = match *self.read.get(1)? {
            126 => (
                4,
                usize::from(u16::from_be_bytes([*self.read.get(2)?, *self.read.get(3)?])),
            ),
            127 => unreachable!("no test sends so much"),
            length => (2, usize::from(length)),
        };
        let payload = self.read.get(header..header + length)?.to_vec();
        let opcode = self.read[0];
        self.read.drain(..header + length);
        Some((opcode, payload))
    }

    /// Whether there was more to read.
    async fn fill(&mut self) -> bool {
        self.read.reserve(512);
        self.stream
            .read_buf(&mut self.read)
            .await
            .is_ok_and(|count| count > 0)
    }
}
