//! A client that reconnects after a random pause and reads from the log what it missed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::log::{Audience, Log, name};
use crate::node::{NEWS, WELCOME};
use crate::support::Client;
use crate::support::client::{Event, user_header};

/// The longest pause before the first attempt to reconnect, and before any.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);

/// When a page reads what it missed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Habit {
    /// As docs/guide/missed.md has it.
    UpgradeFirst,
    /// The wrong way round, which loses what is sent between the two.
    ReadFirst,
}

#[derive(Debug)]
pub struct Page {
    door: SocketAddr,
    user: usize,
    habit: Habit,
    log: Arc<Log>,
    news: Line,
    own: Line,
    tale: Tale,
}

/// What has befallen a page.
#[derive(Debug, Default)]
pub struct Tale {
    pub sockets: usize,
    /// The statuses of handshakes that were refused.
    pub refused: Vec<u16>,
    /// Messages that came once more on the same socket, or out of order.
    pub again: Vec<String>,
    /// How many messages were shown because they were read …
    pub read: u64,
    /// … and how many were never shown.
    pub lost: u64,
}

/// What is shown of one audience.
#[derive(Debug, Default)]
struct Line {
    shown: u64,
    /// Greater than all that was shown.
    next: u64,
}

impl Line {
    /// Whether this one is new.
    fn show(&mut self, number: u64) -> bool {
        let is_new = number >= self.next;
        if is_new {
            self.next = number + 1;
            self.shown += 1;
        }
        is_new
    }
}

impl Page {
    pub fn new(door: SocketAddr, user: usize, habit: Habit, log: Arc<Log>) -> Self {
        Self {
            door,
            user,
            habit,
            log,
            news: Line::default(),
            own: Line::default(),
            tale: Tale::default(),
        }
    }

    /// Is open until it has shown the last messages.
    pub async fn live(mut self) -> Tale {
        while !self.has_shown_all() {
            if self.habit == Habit::ReadFirst {
                self.read();
            }
            let socket = self.connect().await;
            self.tale.sockets += 1;
            self.listen(socket).await;
        }
        self.tale.lost = [&self.news, &self.own]
            .map(|line| line.next - line.shown)
            .iter()
            .sum();
        self.tale
    }

    /// Tries until it has a socket.
    async fn connect(&mut self) -> Client {
        let user = user_header(&name(self.user));
        let origin = format!("http://{}", self.door);
        let headers = [("x-user", &*user), ("origin", &*origin)];
        let mut pause = PAUSE;
        loop {
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = LONGEST.min(pause * 2);
            match Client::try_connect(self.door, "/ws", &headers).await {
                Ok(socket) => return socket,
                Err((status, reason)) => {
                    println!("refused: {status} {}", reason.lines().next().unwrap_or(""));
                    self.tale.refused.push(status);
                }
            }
        }
    }

    /// Shows what comes, and what it missed, until the socket is closed.
    async fn listen(&mut self, mut socket: Client) {
        let mut heard = Heard::default();
        let mut early = Some(Vec::new());
        while !self.has_shown_all() {
            let Event::Text(text) = socket.event().await else {
                return;
            };
            if text == WELCOME {
                if self.habit == Habit::UpgradeFirst {
                    self.read();
                }
                for text in early.take().into_iter().flatten() {
                    self.show(&mut heard, text);
                }
            } else if let Some(early) = &mut early {
                early.push(text);
            } else {
                self.show(&mut heard, text);
            }
        }
    }

    fn read(&mut self) {
        for (audience, line) in [
            (Audience::News, &mut self.news),
            (Audience::User(self.user), &mut self.own),
        ] {
            for number in line.next..self.log.count(audience) {
                self.tale.read += u64::from(line.show(number));
            }
        }
    }

    fn show(&mut self, heard: &mut Heard, text: String) {
        let (audience, number) = text.split_once(' ').expect("two words");
        let number: u64 = number.parse().expect("a number");
        let (heard, line) = match audience {
            NEWS => (&mut heard.news, &mut self.news),
            _ => (&mut heard.own, &mut self.own),
        };
        if heard.is_some_and(|before| number <= before) {
            self.tale.again.push(text);
            return;
        }
        *heard = Some(number);
        line.show(number);
    }

    fn has_shown_all(&self) -> bool {
        self.log.is_closed()
            && self.news.next == self.log.count(Audience::News)
            && self.own.next == self.log.count(Audience::User(self.user))
    }
}

/// The last numbers that came on one socket.
#[derive(Debug, Default)]
struct Heard {
    news: Option<u64>,
    own: Option<u64>,
}
