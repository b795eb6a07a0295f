//! What was said to whom: the app's own store, in which a message is before it is sent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use axum_cluster::Broadcaster;

use crate::node::NEWS;

/// Everybody, or one user by number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Audience {
    News,
    User(usize),
}

/// Counts suffice: the messages of an audience are its numbers from 0 on.
#[derive(Debug)]
pub struct Log {
    news: AtomicU64,
    users: Vec<AtomicU64>,
    closed: AtomicBool,
}

impl Log {
    pub fn of(users: usize) -> Self {
        Self {
            news: AtomicU64::new(0),
            users: (0..users).map(|_| AtomicU64::new(0)).collect(),
            closed: AtomicBool::new(false),
        }
    }

    /// How many messages this audience has been sent.
    pub fn count(&self, audience: Audience) -> u64 {
        self.counter(audience).load(SeqCst)
    }

    /// Writes the next message of this audience down, before it is sent.
    pub fn write(&self, audience: Audience) -> u64 {
        self.counter(audience).fetch_add(1, SeqCst)
    }

    /// Nothing more will be written.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    fn counter(&self, audience: Audience) -> &AtomicU64 {
        match audience {
            Audience::News => &self.news,
            Audience::User(user) => &self.users[user],
        }
    }
}

pub async fn send(worker: &Broadcaster, audience: Audience, number: u64) {
    let (audience, word) = match audience {
        Audience::News => (worker.to_room(NEWS), NEWS),
        Audience::User(user) => (worker.to_user(name(user)), "you"),
    };
    let sent = audience.send(format!("{word} {number}")).await;
    sent.expect("redis is up");
}

pub fn name(user: usize) -> String {
    format!("user-{user}")
}
