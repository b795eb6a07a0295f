//! A client of server-sent events, as WHATWG HTML, section 9.2, has it, but for coming back by itself.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::soon;

/// What a page is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub kind: String,
    pub data: String,
    /// Of the last event that had one.
    pub id: String,
}

#[derive(Debug)]
pub struct EventSource {
    stream: TcpStream,
    pub status: u16,
    /// Name in lower case, and value.
    pub headers: Vec<(String, String)>,
    raw: Vec<u8>,
    body: String,
    is_over: bool,
    /// Milliseconds until it would come back.
    pub retry: Option<u64>,
    pub id: String,
    pub comments: usize,
}

impl EventSource {
    /// A GET with these headers, of which the head of the answer is read.
    pub async fn connect(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the server listens");
        Self::ask(stream, addr, "GET", path, headers).await
    }

    /// One whose kernel takes hardly anything while nobody reads.
    pub async fn connect_narrow(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let stream = socket.connect(addr).await.expect("the server listens");
        Self::ask(stream, addr, "GET", path, headers).await
    }

    pub async fn ask(
        stream: TcpStream,
        addr: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: text/event-stream\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += "\r\n";
        let mut source = Self {
            stream,
            status: 0,
            headers: Vec::new(),
            raw: Vec::new(),
            body: String::new(),
            is_over: false,
            retry: None,
            id: String::new(),
            comments: 0,
        };
        let asked = source.stream.write_all(request.as_bytes()).await;
        asked.expect("the server reads");
        source.read_head().await;
        source
    }

    async fn read_head(&mut self) {
        let end = loop {
            let end = self.raw.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            assert!(self.read().await, "an answer has a head");
        };
        let head: Vec<u8> = self.raw.drain(..end + 4).collect();
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        self.status = status.and_then(|it| it.parse().ok()).expect("a status");
        let fields = lines.filter_map(|line| line.split_once(": "));
        let fields = fields.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        self.headers = fields.collect();
        let length = self.header("content-length");
        if let Some(length) = length.and_then(|it| it.parse().ok()) {
            while self.raw.len() < length {
                assert!(self.read().await, "a body is as long as it says");
            }
            let body: Vec<u8> = self.raw.drain(..length).collect();
            self.body = String::from_utf8(body).expect("text");
        }
        self.is_over = self.header("transfer-encoding") != Some("chunked");
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(it, value)| (it == name).then_some(value.as_str()))
    }

    /// The next event; `None` when the stream has ended.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            while let Some(end) = self.body.find("\n\n") {
                let block: String = self.body.drain(..end + 2).collect();
                if let Some(heard) = self.dispatch(&block) {
                    return Some(heard);
                }
            }
            if !self.take_chunk() && (self.is_over || !soon("an event", self.read()).await) {
                return None;
            }
        }
    }

    /// Reads until it has its first id, by which it would come back.
    pub async fn opened(mut self) -> Self {
        loop {
            while let Some(end) = self.body.find("\n\n") {
                let block: String = self.body.drain(..end + 2).collect();
                assert_eq!(self.dispatch(&block), None, "the first event is empty");
                if !self.id.is_empty() {
                    return self;
                }
            }
            if !self.take_chunk() {
                assert!(!self.is_over && soon("the opening", self.read()).await);
            }
        }
    }

    /// The next event, which has no name.
    pub async fn message(&mut self) -> String {
        let heard = self.next().await.expect("it goes on");
        assert_eq!(heard.kind, "", "{heard:?}");
        heard.data
    }

    /// The code of the last event, after which the stream ends.
    pub async fn code(&mut self) -> u64 {
        let heard = self.next().await.expect("it says why");
        assert_eq!(heard.kind, "close", "{heard:?}");
        let close: serde_json::Value = serde_json::from_str(&heard.data).expect("JSON");
        assert_eq!(self.next().await, None, "nothing comes after it");
        close["code"].as_u64().expect("a code")
    }

    async fn read(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.raw).await, Ok(1..))
    }

    /// Takes one whole chunk, if it is there.
    fn take_chunk(&mut self) -> bool {
        if self.is_over {
            return false;
        }
        let Some(end) = self.raw.windows(2).position(|two| two == b"\r\n") else {
            return false;
        };
        let size = std::str::from_utf8(&self.raw[..end]).expect("a size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        let whole = end + 2 + size + 2;
        if self.raw.len() < whole {
            return false;
        }
        let chunk: Vec<u8> = self.raw.drain(..whole).collect();
        let text = std::str::from_utf8(&chunk[end + 2..end + 2 + size]).expect("whole events");
        self.body += text;
        self.is_over = size == 0;
        true
    }

    fn dispatch(&mut self, block: &str) -> Option<Heard> {
        let (mut kind, mut data) = (String::new(), Vec::new());
        for line in block.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "" if line.is_empty() => {}
                "" => self.comments += 1,
                "event" => kind = value.to_owned(),
                "data" => data.push(value),
                "id" => self.id = value.to_owned(),
                "retry" => self.retry = value.parse().ok(),
                _ => panic!("an unknown field: {line:?}"),
            }
        }
        (!data.is_empty()).then(|| Heard {
            kind,
            data: data.join("\n"),
            id: self.id.clone(),
        })
    }
}
