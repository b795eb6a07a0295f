//! How a client that comes back goes on where it was: what the rules ask for is read, and what they say is done.

mod missed;
mod waiting;

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::Either;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::missed::{CUT, MOST, MissedClient, Resume, missed_in, told, told_meanwhile};
use self::waiting::WaitingClient;
pub(crate) use self::waiting::{Waiting, keep_asking};
use super::Node;
use crate::bus::Confirmation;
use crate::bus::past::Past;
use crate::local::Resumes;
use crate::local::registry::Member;
use crate::local::socket::Sender;
use crate::local::socket::resuming::{Found, MissedEntry, Telling};
use crate::model::history::mark::Marks;
use crate::model::history::position::Position;
use crate::model::history::{Missed, Resumed};
use crate::model::topic::Topic;

impl Node {
    /// Whether sockets may go on where they were.
    pub(crate) fn resumes(&self) -> bool {
        !self.config.histories.is_off()
    }

    /// How a socket goes on that holds what comes; and one that need not.
    pub(crate) async fn resumed(
        self: &Arc<Self>,
        socket: &Sender,
        holding: Option<Telling>,
        rooms: &[Topic],
        brought: Option<Position>,
    ) -> Resumed {
        match (holding, brought) {
            (Some(_), brought) => self.resume(socket, rooms, brought).await,
            (None, Some(_)) => self.record(Resumed::Missed(Missed::Forgotten)),
            (None, None) => Resumed::New,
        }
    }

    /// Reads what a client missed that has come with a position, and releases what waits in its socket. Of a newcomer only from
    /// where it goes on. While the bus is down nobody can tell: then everything that is kept waits.
    async fn resume(
        self: &Arc<Self>,
        socket: &Sender,
        rooms: &[Topic],
        brought: Option<Position>,
    ) -> Resumed {
        let came_back = brought.is_some();
        match self.find(socket, rooms, brought.as_ref()).await {
            Ok(found) => self.release(socket, found, came_back),
            Err(reason) => {
                tracing::debug!(socket = %socket.id(), %reason, "nobody knows yet what its client missed");
                let socket = socket.clone();
                self.waiting.add(WaitingClient { socket, brought });
                told_meanwhile(came_back)
            }
        }
    }

    /// The same for one that waits, in the rooms in which it is by now; unless still nobody knows.
    async fn resume_now(&self, waiter: &WaitingClient) -> Result<(), Arc<str>> {
        let WaitingClient { socket, brought } = waiter;
        let rooms = self.local.rooms(socket);
        let rooms = rooms.iter().map(|room| Topic::room(room.as_str()));
        let rooms: Vec<Topic> = rooms.filter_map(Result::ok).collect();
        let found = self.find(socket, &rooms, brought.as_ref()).await?;
        self.release(socket, found, brought.is_some());
        Ok(())
    }

    fn release(&self, socket: &Sender, found: Found, came_back: bool) -> Resumed {
        let resumed = told(came_back, &found);
        let now = Instant::now();
        socket.release(|resuming| resuming.release(found, now));
        self.record(resumed)
    }

    fn record(&self, resumed: Resumed) -> Resumed {
        let counters = &self.ground.counters;
        let counter = match resumed {
            Resumed::New | Resumed::Later => return resumed,
            Resumed::Complete { .. } => &counters.resumed,
            Resumed::Missed(_) => &counters.resumed_missed,
        };
        counter.fetch_add(1, Relaxed);
        resumed
    }

    async fn find(
        &self,
        socket: &Sender,
        rooms: &[Topic],
        brought: Option<&Position>,
    ) -> Result<Found, Arc<str>> {
        let keyring = &self.uplink.keyring;
        let brought = match brought {
            Some(position) => Some(keyring.read(position).await?),
            None => None,
        };
        let key = keyring.key().await?;
        let user = socket.user();
        let own = Topic::user(user).map_err(|error| Arc::from(error.to_string()))?;
        let resume = Resume::new(key, own, rooms, brought, &self.config.histories);
        let (topics, since, limits) = resume.reads();
        let past = self.ground.bus.read(topics, since, limits).await?;
        Ok(resume.find(socket.id(), user.as_str(), &past))
    }

    /// Puts a socket into a room, and gives it what it missed there if it was in it.
    pub(crate) async fn join(self: &Arc<Self>, socket: &Sender, room: &Topic) -> Option<()> {
        // A cut of before it is in the room: whatever it missed from then on is behind that. Its client is told so with the room.
        if self.lacks(socket, room) {
            self.begin(slice::from_ref(socket), room, false).await;
        }
        self.begin_join(socket, room)?.await;
        Some(())
    }

    /// The same: it is in the room at once, and resolves when what is sent there comes here. What it missed is read though nobody
    /// waits for it: until then what comes is held.
    pub(crate) fn begin_join(
        self: &Arc<Self>,
        socket: &Sender,
        room: &Topic,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let owed = socket.resuming(|resuming| resuming.owes(room.as_str()));
        let joined = self.local.begin_join(socket, room)?;
        let (node, socket, room) = (self.clone(), socket.clone(), room.clone());
        let Some(since) = owed else {
            let heard = async move {
                node.local.wait_confirmed(joined.confirmation).await;
                if node.lacks(&socket, &room) {
                    node.begin(&[socket], &room, true).await;
                }
            };
            return Some(Either::Left(heard));
        };
        let reading = self.ground.home.spawn(async move {
            node.local.wait_confirmed(joined.confirmation).await;
            node.complete(&socket, &room, &since).await;
        });
        Some(Either::Right(reading.map(drop)))
    }

    /// Gives a socket what it missed in a room in which it is again.
    async fn complete(&self, socket: &Sender, room: &Topic, since: &Marks) {
        let missed = self.missed_in(socket, room, since).await;
        socket.release(|resuming| resuming.release_room(missed));
    }

    /// What came to a room since.
    async fn missed_in(
        &self,
        socket: &Sender,
        room: &Topic,
        since: &Marks,
    ) -> Result<Vec<MissedEntry>, Missed> {
        let past = self.past(room, Some(since)).await;
        let client = MissedClient {
            socket: socket.id(),
            formerly: socket.resuming(|resuming| resuming.formerly()),
            user: socket.user().as_str(),
        };
        missed_in(client, &past.map_err(|_| Missed::Forgotten)?, since)
    }

    async fn past(&self, room: &Topic, since: Option<&Marks>) -> Result<Past, Arc<str>> {
        let limits = since.map_or(CUT, |_| MOST);
        let rooms = slice::from_ref(room);
        self.ground.bus.read(rooms, since, limits).await
    }

    /// Whether a client could not go on in a room.
    fn lacks(&self, socket: &Sender, room: &Topic) -> bool {
        let is_kept = self.config.histories.of(room.kind()).is_some();
        let clock = self.ground.bus.clock(room);
        let lacks = || socket.resuming(|resuming| resuming.lacks(clock).then_some(()));
        is_kept && lacks().is_some()
    }

    /// Has sockets go on from now in a room of whose clock they have heard nothing; clients are told so, if they are.
    async fn begin(&self, sockets: &[Sender], room: &Topic, are_told: bool) {
        match self.past(room, None).await {
            Ok(past) => {
                let cuts = past.cuts();
                for socket in sockets {
                    socket.release(|resuming| {
                        let told = resuming.begin(&cuts);
                        told.filter(|_| are_told).into_iter().collect()
                    });
                }
            }
            Err(reason) => {
                tracing::debug!(%reason, "clients cannot go on in a room: nobody knows from where");
            }
        }
    }
}

/// Of a room into which others have put sockets.
impl Resumes for Node {
    fn resume_in(
        self: Arc<Self>,
        room: &Topic,
        joined: Vec<(Sender, Option<Marks>)>,
        confirmation: Confirmation,
    ) -> Confirmation {
        let (mut owed, mut lacking) = (Vec::new(), Vec::new());
        for (socket, since) in joined {
            match since {
                Some(since) => owed.push((socket, since)),
                None if self.lacks(&socket, room) => lacking.push(socket),
                None => {}
            }
        }
        if owed.is_empty() && lacking.is_empty() {
            return confirmation;
        }
        let (node, room, (heard, is_heard)) = (self.clone(), room.clone(), oneshot::channel());
        self.ground.home.spawn(async move {
            node.local.wait_confirmed(confirmation).await;
            if !lacking.is_empty() {
                node.begin(&lacking, &room, true).await;
            }
            // Whoever waits for that may have given up.
            let _ = heard.send(());
            let complete = async |(socket, since)| node.complete(&socket, &room, &since).await;
            stream::iter(owed)
                .for_each_concurrent(AT_ONCE, complete)
                .await;
        });
        Confirmation::Pending(is_heard)
    }
}

/// Most sockets for which it is read at once what they missed in a room.
const AT_ONCE: usize = 16;
