//! What other nodes ask of this one.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Peers;
use super::question::Question;
use crate::bus::control::{Answer, Ask, Control};
use crate::bus::scope::Scope;
use crate::bus::seen::Seen;
use crate::bus::uplink::{Part, PeerWord};
use crate::bus::wire::Action;
use crate::bus::{Confirmation, Published};
use crate::local::CHUNK;
use crate::local::moves::Move;
use crate::local::registry::Member;
use crate::local::socket::Sender;
use crate::model::close::Close;
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
#[derive(Debug, Default)]
pub(super) struct Answering {
    /// Questions that are being answered now.
    open: Mutex<HashSet<(NodeId, u64)>>,
    /// Questions that came, whatever became of them.
    heard: Mutex<Seen>,
}

impl Answering {
    /// The asker has left.
    pub(super) fn forget(&self, asker: NodeId) {
        self.heard.lock().forget(asker);
    }
}

/// A question of another node that is being answered, and counts as such until this is dropped.
struct OpenAnswer {
    peers: Arc<Peers>,
    asker: NodeId,
    id: u64,
}

impl Drop for OpenAnswer {
    fn drop(&mut self) {
        let mut open = self.peers.answering.open.lock();
        open.remove(&(self.asker, self.id));
    }
}

impl Peers {
    pub(crate) fn heard_word(&self, word: PeerWord<'_>) {
        let PeerWord {
            from: origin,
            word,
            scope,
            hearers,
        } = word;
        match word {
            Control::Ask { id, what } => self.heard_question(origin, id, &scope, what),
            Control::Ping { id } => self.heard_ping(origin, id),
            Control::Unasked { id, heard } => {
                let (heard, now) = (Duration::from_micros(heard), Instant::now());
                self.question(id, |question| question.unasked(origin, heard, now));
            }
            Control::Refused { id } => {
                self.question(id, |question| question.gathering().refused(origin));
            }
            Control::Hello(hello) => self.node_said_hello(hello, hearers),
            Control::Strayed { millis } => self.node_strayed(origin, millis),
            Control::Bye => self.node_left(origin, true),
        }
    }

    /// What this node published as well: its own copy of a question proves that it hears the answers.
    pub(crate) fn heard_itself(&self, id: u64) {
        self.question(id, |question| question.gathering().came_back());
    }

    pub(crate) fn heard_answer(&self, answer: &Part<'_>) {
        let Part {
            from,
            id,
            more,
            part,
        } = *answer;
        let part = || Bytes::copy_from_slice(part);
        self.question(id, |question| {
            question.gathering().answered(from, part(), more);
        });
    }

    /// Silence says that a question came: its answer is under way, or was lost and is missing.
    fn heard_ping(&self, asker: NodeId, id: u64) {
        let answering = &self.answering;
        let came = answering.open.lock().contains(&(asker, id))
            || answering.heard.lock().contains(asker, id);
        if !came {
            // What was published before, or in an outage, may have been missed: only the asker knows when it asked.
            let heard = self
                .home
                .reception
                .hearing()
                .map(|(since, _)| since.elapsed());
            let heard = heard.unwrap_or_default().as_micros() as u64;
            self.reply(asker, id, &Control::Unasked { id, heard });
        }
    }

    /// Queued by the call, and not waited for. Unsaid, it is taken for silence.
    fn reply(&self, asker: NodeId, id: u64, control: &Control) {
        let word = self.uplink.write_word(&Scope::default(), id, control);
        drop(self.uplink.say(Topic::node(asker), word));
    }

    /// Tells a question of this node, unless it is over.
    fn question(&self, id: u64, change: impl FnOnce(&mut Question)) {
        let question = self.questions.lock().get(&id).cloned();
        if let Some(question) = question {
            question.update(change);
        }
    }

    /// Does what is asked at once, in the order in which it came; only answering takes its time.
    fn heard_question(&self, asker: NodeId, id: u64, scope: &Scope<'_>, what: Ask) {
        self.answering.heard.lock().insert(asker, id);
        let (count, confirmation) = self.carry_out(scope, &what);
        let Some(open) = self.open(asker, id) else {
            self.home.counters.questions_refused.fetch_add(1, Relaxed);
            return self.reply(asker, id, &Control::Refused { id });
        };
        match what {
            Ask::Sockets => {
                let members = self.local.members_of(scope);
                self.home.spawn(open.answer_with_sockets(members));
            }
            Ask::Node => {
                let node = (!self.settings.worker).then(|| self.introduce());
                self.home.spawn(open.answer(Answer {
                    node,
                    ..Answer::default()
                }));
            }
            Ask::Count | Ask::Close { .. } | Ask::Join { .. } | Ask::Leave { .. } => {
                self.home.spawn(async move {
                    open.peers.local.wait_confirmed(confirmation).await;
                    open.answer(Answer {
                        count,
                        ..Answer::default()
                    })
                    .await;
                });
            }
        }
    }

    fn open(&self, asker: NodeId, id: u64) -> Option<OpenAnswer> {
        let peers = self.me.upgrade()?;
        let mut open = self.answering.open.lock();
        if open.len() >= MAX_QUESTIONS {
            return None;
        }
        open.insert((asker, id));
        drop(open);
        Some(OpenAnswer { peers, asker, id })
    }

    /// What is asked of the sockets of this node; how many it concerned, and what it takes until it is
    /// done. A Close leaves with the next `flush`.
    pub(super) fn carry_out(&self, scope: &Scope<'_>, what: &Ask) -> (usize, Confirmation) {
        let mut confirmation = Confirmation::NotAwaited;
        let members = match what {
            Ask::Sockets | Ask::Node => return (0, confirmation),
            _ => self.local.members_of(scope),
        };
        let count = match what {
            Ask::Close { code, reason } => {
                self.local
                    .collect_close(&members, &Close::new(*code, reason.as_str()));
                members.len()
            }
            Ask::Join { room: name } => {
                let Ok(room) = Topic::room(name.as_str()) else {
                    return (0, confirmation);
                };
                let moved = Move::Joined(name.as_str().into());
                let joined = members.iter().filter_map(|socket| {
                    let joined = self.local.begin_join(socket, &room)?;
                    if joined.is_new {
                        self.local.moved(socket.id(), &moved);
                    }
                    confirmation = joined.confirmation;
                    Some(())
                });
                joined.count()
            }
            Ask::Leave { room: name } => {
                let Ok(room) = Topic::room(name.as_str()) else {
                    return (0, confirmation);
                };
                let moved = Move::Left(name.as_str().into());
                for socket in &members {
                    if self.local.leave(socket, &room) {
                        self.local.moved(socket.id(), &moved);
                    }
                }
                members.len()
            }
            _ => members.len(),
        };
        (count, confirmation)
    }
}

/// About how long a socket is in an answer, in bytes.
fn estimated_size(socket: &SocketInfo) -> usize {
    let rooms: usize = socket.rooms.iter().map(|room| room.len() + 3).sum();
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
            for socket in self.peers.local.describe(chunk).await {
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
        let uplink = &self.peers.uplink;
        let part = uplink.write(None, &Scope::default(), &action);
        uplink.say(Topic::node(self.asker), part).await
    }
}
