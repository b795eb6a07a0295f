//! The sockets of this node as its peers see them: who is meant, and what is done to them.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tokio::task::yield_now;

use super::moves::Move;
use super::registry::Member;
use super::socket::Sender;
use super::{CHUNK, Local, Sizes};
use crate::bus::Confirmation;
use crate::bus::control::Ask;
use crate::bus::scope::Scope;
use crate::model::close::Close;
use crate::model::description::Descriptions;
use crate::model::history::mark::Marks;
use crate::model::id::{NodeId, UserId};
use crate::model::roster::SocketInfo;
use crate::model::topic::Topic;

/// Whoever knows what clients missed that may come back.
pub(crate) trait Resumes: Send + Sync + 'static {
    /// These sockets are in a room by now, with what those have of it that were in it before: so that they have all of it, and
    /// may go on there. Resolves when what is sent there comes here, and they may.
    fn resume_in(
        self: Arc<Self>,
        room: &Topic,
        joined: Vec<(Sender, Option<Marks>)>,
        confirmation: Confirmation,
    ) -> Confirmation;
}

/// A handle for those who speak for other nodes: they neither admit anybody nor send.
#[derive(Debug, Clone)]
pub(crate) struct Sockets(Arc<Local>);

impl Sockets {
    pub(crate) fn of(local: &Arc<Local>) -> Self {
        Self(local.clone())
    }

    pub(crate) fn sizes(&self) -> Sizes {
        self.0.sizes()
    }

    /// Every user with a socket on a topic, and what they are described as.
    pub(crate) fn users_on(&self, topic: &Topic) -> HashMap<UserId, Descriptions> {
        self.0.registry.read().users_on(topic)
    }

    /// As what a user is described that has a socket on a topic.
    pub(crate) fn user_on(&self, user: &Topic, topic: &Topic) -> Option<Descriptions> {
        self.0.registry.read().user_on(user, topic)
    }

    /// Which of these users have a socket here.
    pub(crate) fn are_here(&self, users: &[Topic]) -> Vec<bool> {
        let registry = self.0.registry.read();
        users.iter().map(|user| registry.has_member(user)).collect()
    }

    /// The sockets that are meant and have not ended.
    pub(crate) fn members_of(&self, scope: &Scope<'_>) -> Vec<Sender> {
        self.0.members_of(scope)
    }

    /// What rosters tell of these sockets; other tasks may run in between, and the registry is never
    /// held for long.
    pub(crate) async fn describe(&self, members: &[Sender]) -> Vec<SocketInfo> {
        let mut infos = Vec::with_capacity(members.len());
        for chunk in members.chunks(CHUNK) {
            let ends: Vec<_> = chunk.iter().map(Sender::expires_at).collect();
            {
                let registry = self.0.registry.read();
                let described = chunk.iter().zip(ends);
                let described = described.map(|(socket, end)| registry.describe(socket.id(), end));
                infos.extend(described.flatten());
            }
            yield_now().await;
        }
        infos
    }

    /// What this node itself asks of its sockets.
    pub(crate) fn carry_out_own(&self, scope: &Scope<'_>, what: &Ask) -> (usize, Confirmation) {
        self.carry_out(self.0.node, scope, what)
    }

    /// What a node asks of the sockets of this one; how many it concerned, and what it takes until it is
    /// done. A Close leaves with the next `flush`.
    pub(crate) fn carry_out(
        &self,
        by: NodeId,
        scope: &Scope<'_>,
        what: &Ask,
    ) -> (usize, Confirmation) {
        let members = || self.members_of(scope);
        match what {
            Ask::Sockets | Ask::Node => (0, Confirmation::NotAwaited),
            Ask::Count => (members().len(), Confirmation::NotAwaited),
            Ask::Close { code, reason } => {
                let members = members();
                let close = Close::new(*code, reason.as_str());
                self.0.close_members(&members, &close);
                (members.len(), Confirmation::NotAwaited)
            }
            Ask::Join { room } => self.join(by, &members(), room),
            Ask::Leave { room } => (self.leave(by, &members(), room), Confirmation::NotAwaited),
        }
    }

    /// Writes a part of what was collected; whether there is more to do, or other tasks are to run.
    pub(crate) fn flush(&self) -> bool {
        self.0.flush()
    }

    pub(crate) async fn wait_confirmed(&self, confirmation: Confirmation) {
        self.0.wait_confirmed(confirmation).await;
    }

    /// How many are in the room now, and when what is sent to it comes here.
    fn join(&self, by: NodeId, members: &[Sender], name: &str) -> (usize, Confirmation) {
        let mut confirmation = Confirmation::NotAwaited;
        let Ok(room) = Topic::room(name) else {
            return (0, confirmation);
        };
        let moved = Move::Joined {
            room: name.into(),
            by,
        };
        let joined = members.iter().filter_map(|socket| {
            let owed = socket.resuming(|resuming| resuming.owes(room.as_str()));
            let joined = self.0.begin_join(socket, &room)?;
            if joined.is_new {
                self.0.live.moved(socket.id(), &moved);
            }
            confirmation = joined.confirmation;
            Some((socket.clone(), owed))
        });
        let joined: Vec<_> = joined.collect();
        let count = joined.len();
        if let Some(resumes) = self.0.resumes.get().and_then(Weak::upgrade) {
            confirmation = resumes.resume_in(&room, joined, confirmation);
        }
        (count, confirmation)
    }

    fn leave(&self, by: NodeId, members: &[Sender], name: &str) -> usize {
        let Ok(room) = Topic::room(name) else {
            return 0;
        };
        let moved = Move::Left {
            room: name.into(),
            by,
        };
        for socket in members {
            if self.0.leave(socket, &room) {
                self.0.live.moved(socket.id(), &moved);
            }
        }
        members.len()
    }
}
