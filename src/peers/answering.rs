//! What other nodes ask of this one.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;

use super::introduction::Introduction;
use crate::bus::Published;
use crate::bus::control::{Answer, Ask, Control};
use crate::bus::reception::Reception;
use crate::bus::scope::Scope;
use crate::bus::seen::Seen;
use crate::bus::uplink::Uplink;
use crate::bus::wire::Action;
use crate::counts::Counters;
use crate::home::{Ground, Home};
use crate::local::socket::Sender;
use crate::local::{CHUNK, Sockets};
use crate::model::description::MAX_DESCRIPTION;
use crate::model::error::PublishError;
use crate::model::id::NodeId;
use crate::model::roster::SocketInfo;
use crate::model::topic::Topic;

/// Most questions that are answered at the same time; others are refused and counted.
const MAX_QUESTIONS: usize = 1024;
/// Bytes in one part of an answer, about: a part ends with the socket that fills it.
const PART: usize = 256 * 1024;

/// The questions of others.
#[derive(Debug)]
pub(super) struct Answering {
    home: Arc<Home>,
    reception: Arc<Reception>,
    counters: Arc<Counters>,
    uplink: Arc<Uplink>,
    sockets: Sockets,
    introduction: Arc<Introduction>,
    /// Questions that are being answered now.
    open: Mutex<HashSet<(NodeId, u64)>>,
    /// Questions that came, whatever became of them.
    heard: Mutex<Seen>,
}

/// A question of another node that is being answered, and counts as such until this is dropped.
struct OpenAnswer {
    answering: Arc<Answering>,
    asker: NodeId,
    id: u64,
}

impl Answering {
    pub(super) fn new(
        ground: &Ground,
        uplink: &Arc<Uplink>,
        sockets: Sockets,
        introduction: &Arc<Introduction>,
    ) -> Self {
        Self {
            home: ground.home.clone(),
            reception: ground.reception.clone(),
            counters: ground.counters.clone(),
            uplink: uplink.clone(),
            sockets,
            introduction: introduction.clone(),
            open: Mutex::default(),
            heard: Mutex::default(),
        }
    }

    /// Silence says that a question came: its answer is under way, or was lost and is missing.
    pub(super) fn heard_ping(&self, asker: NodeId, id: u64) {
        let came = self.open.lock().contains(&(asker, id)) || self.heard.lock().contains(asker, id);
        if !came {
            // What was published before, or in an outage, may have been missed: only the asker knows when it asked.
            let hearing = self.reception.hearing();
            let heard = hearing.map(|(since, _)| since.elapsed());
            let heard = heard.unwrap_or_default().as_micros() as u64;
            self.reply(asker, id, &Control::Unasked { id, heard });
        }
    }

    /// Does what is asked at once, in the order in which it came; only answering takes its time.
    pub(super) fn heard_question(
        self: &Arc<Self>,
        asker: NodeId,
        id: u64,
        scope: &Scope<'_>,
        what: Ask,
    ) {
        if self.came_before(asker, id) {
            return;
        }
        let (count, confirmation) = self.sockets.carry_out(asker, scope, &what);
        let Some(open) = self.open(asker, id) else {
            self.counters.questions_refused.fetch_add(1, Relaxed);
            return self.reply(asker, id, &Control::Refused { id });
        };
        let mut answer = Answer::default();
        match what {
            Ask::Sockets => {
                let members = self.sockets.members_of(scope);
                self.home.spawn(open.answer_with_sockets(members));
            }
            Ask::Node => {
                answer.node = self.introduction.as_node();
                self.home.spawn(open.answer(answer));
            }
            Ask::Count | Ask::Close { .. } | Ask::Join { .. } | Ask::Leave { .. } => {
                answer.count = count;
                self.home.spawn(async move {
                    open.answering.sockets.wait_confirmed(confirmation).await;
                    open.answer(answer).await;
                });
            }
        }
    }

    /// Whether a question was heard on its channel, and is repeated by name.
    fn came_before(&self, asker: NodeId, id: u64) -> bool {
        let mut heard = self.heard.lock();
        let came = heard.contains_lately(asker, id);
        heard.insert(asker, id);
        came
    }

    /// Somebody looks at a dashboard there.
    pub(super) fn heard_examination(&self, asker: NodeId, at: u64) {
        if let Some(vitals) = self.introduction.vitals() {
            let vitals = Box::new(vitals);
            self.reply(asker, 0, &Control::Vitals { at, vitals });
        }
    }

    /// The asker has left.
    pub(super) fn forget(&self, asker: NodeId) {
        self.heard.lock().forget(asker);
    }

    /// Queued by the call, and not waited for. Unsaid, it is taken for silence.
    fn reply(&self, asker: NodeId, id: u64, control: &Control) {
        let word = self.uplink.write_word(&Scope::default(), id, control);
        drop(self.uplink.say(Topic::node(asker), word));
    }

    fn open(self: &Arc<Self>, asker: NodeId, id: u64) -> Option<OpenAnswer> {
        let mut open = self.open.lock();
        if open.len() >= MAX_QUESTIONS {
            return None;
        }
        open.insert((asker, id));
        drop(open);
        Some(OpenAnswer {
            answering: self.clone(),
            asker,
            id,
        })
    }
}

/// About how long a socket is in an answer, in bytes.
fn estimated_size(socket: &SocketInfo) -> usize {
    let rooms: usize = socket
        .rooms
        .iter()
        .map(|room| room.as_str().len() + 3)
        .sum();
    let description = socket.description.as_ref().map_or(0, |_| MAX_DESCRIPTION);
    200 + rooms + description
}

impl OpenAnswer {
    async fn answer(self, answer: Answer) {
        // Unsaid, the asker names us as missing.
        let _ = self.say(&answer, false).await;
    }

    async fn answer_with_sockets(self, members: Vec<Sender>) {
        let (mut part, mut size) = (Answer::default(), 0);
        for chunk in members.chunks(CHUNK) {
            for socket in self.answering.sockets.describe(chunk).await {
                size += estimated_size(&socket);
                part.sockets.push(socket);
                part.count += 1;
                if size >= PART {
                    if self.say(&part, true).await.is_err() {
                        return;
                    }
                    (part, size) = (Answer::default(), 0);
                }
            }
        }
        self.answer(part).await;
    }

    async fn say(&self, answer: &Answer, more: bool) -> Result<Published, PublishError> {
        let part = serde_json::to_vec(answer).expect("an answer is plain data");
        let action = Action::Answer {
            id: self.id,
            more,
            part: &part,
        };
        let uplink = &self.answering.uplink;
        let part = uplink.write(None, &Scope::default(), &action);
        uplink.say(Topic::node(self.asker), part).await
    }
}

impl Drop for OpenAnswer {
    fn drop(&mut self) {
        let mut open = self.answering.open.lock();
        open.remove(&(self.asker, self.id));
    }
}
