//! How a client that comes back goes on where it was.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::Either;
use futures::{FutureExt, StreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::Node;
use crate::bus::Confirmation;
use crate::bus::past::{Entry, Past, ReadLimits};
use crate::bus::uplink::read_entry;
use crate::bus::wire;
use crate::local::Resumes;
use crate::local::registry::Member;
use crate::local::socket::Sender;
use crate::local::socket::resuming::{Found, Telling};
use crate::model::health::Health;
use crate::model::history::mark::{Clock, Mark, Marks, Number};
use crate::model::history::position::Position;
use crate::model::history::token::{Key, Parts};
use crate::model::history::{Missed, Resumed};
use crate::model::id::SocketId;
use crate::model::topic::Topic;
use crate::ws::frame::Frame;

/// Most that is sent again at once; for more a client is quicker to fetch its state.
const MOST: ReadLimits = ReadLimits {
    entries: 512,
    bytes: 1024 * 1024,
};

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
            (Some(_), brought) => self.resume(socket, rooms, brought.as_ref()).await,
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
        brought: Option<&Position>,
    ) -> Resumed {
        match self.find(socket, rooms, brought).await {
            Ok(found) => self.release(socket, found, brought.is_some()),
            Err(reason) => {
                tracing::debug!(socket = %socket.id(), %reason, "nobody knows yet what its client missed");
                let (node, socket) = (Arc::downgrade(self), socket.clone());
                let later = resume_later(node, socket, brought.cloned());
                self.ground.home.spawn(later);
                match brought {
                    Some(_) => Resumed::Later,
                    None => Resumed::New,
                }
            }
        }
    }

    fn release(&self, socket: &Sender, found: Found, came_back: bool) -> Resumed {
        let resumed = match (came_back, &found.missed) {
            (false, _) => Resumed::New,
            (true, Ok(entries)) => Resumed::Complete {
                replayed: entries.len(),
            },
            (true, Err(why)) => Resumed::Missed(*why),
        };
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
        let read = match brought {
            Some(position) => keyring.read(position).await?,
            None => Ok(Parts::default()),
        };
        let key = keyring.key().await?;
        let own = Topic::user(socket.user()).map_err(|error| Arc::from(error.to_string()))?;
        let user = key.tag(own.as_str());
        let read = read.and_then(|parts| match parts.user {
            Some(other) if other != user => Err(Missed::Foreign),
            _ => Ok(parts),
        });
        let topics: Vec<Topic> = [own, Topic::all()]
            .into_iter()
            .chain(rooms.iter().cloned())
            .collect();
        let (brought, missed, cuts) = match (brought, read) {
            (Some(_), Ok(parts)) => {
                let past = self.past(&topics, Some(&parts.marks)).await?;
                let missed = self.missed(socket, &topics, &past, &parts, &key);
                (parts, missed, past.cuts())
            }
            (_, read) => {
                let past = self.past(&topics, None).await?;
                (Parts::default(), read.map(|_| Vec::new()), past.cuts())
            }
        };
        Ok(Found {
            key,
            brought,
            missed,
            cuts,
            user,
            rooms: rooms.iter().map(|room| key.tag(room.as_str())).collect(),
        })
    }

    async fn past(&self, topics: &[Topic], since: Option<&Marks>) -> Result<Past, Arc<str>> {
        let limits = match since {
            Some(_) => MOST,
            // Nothing of it is wanted but the cut.
            None => ReadLimits { entries: 1, ..MOST },
        };
        self.ground.bus.read(topics, since, limits).await
    }

    /// What came to its topics since, in order and once; of a room only if it was in it.
    fn missed(
        &self,
        socket: &Sender,
        topics: &[Topic],
        past: &Past,
        parts: &Parts,
        key: &Key,
    ) -> Result<Vec<(Clock, Number, Frame)>, Missed> {
        if parts.has_more_rooms {
            return Err(Missed::TooMany);
        }
        let mut missed = Vec::new();
        for (n, (topic, past)) in topics.iter().zip(&past.topics).enumerate() {
            let is_kept = self.config.histories.of(topic.kind()).is_some();
            if !is_kept || n > 1 && !parts.rooms.contains(&key.tag(topic.as_str())) {
                continue;
            }
            let since = parts.marks.of(past.clock);
            if is_ahead(since, past.cut) {
                return Err(Missed::Foreign);
            }
            let entries = past.entries.as_ref().map_err(|why| *why)?;
            missed.extend(unknown(entries, past.clock, since));
        }
        in_order(socket, parts.socket, missed)
    }

    /// Puts a socket into a room, and gives it what it missed there if it was in it.
    pub(crate) async fn join(self: &Arc<Self>, socket: &Sender, room: &Topic) -> Option<()> {
        // A cut of before it is in the room: whatever it missed from then on is behind that. Its client is told so with the room.
        if self.lacks(socket, room) {
            self.begin(std::slice::from_ref(socket), room, false).await;
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
    ) -> Result<Vec<(Clock, Number, Frame)>, Missed> {
        let past = self.past(std::slice::from_ref(room), Some(since)).await;
        let past = past.map_err(|_| Missed::Forgotten)?;
        let Some(past) = past.topics.first() else {
            return Ok(Vec::new());
        };
        let formerly = socket.resuming(|resuming| resuming.formerly());
        let entries = past.entries.as_ref().map_err(|why| *why)?;
        let entries = unknown(entries, past.clock, since.of(past.clock));
        in_order(socket, formerly, entries.collect())
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
        match self.past(std::slice::from_ref(room), None).await {
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
            confirmation.wait(node.config.publish_timeout).await;
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

/// As soon as somebody can tell. What waits in the socket is bounded: one for which too much came ends, and comes back.
async fn resume_later(node: Weak<Node>, socket: Sender, brought: Option<Position>) {
    loop {
        sleep(PAUSE.mul_f64(1.0 + fastrand::f64())).await;
        let Some(node) = node.upgrade().filter(|node| !node.ground.home.is_stopped()) else {
            return;
        };
        if socket.close_reason().is_some() {
            return;
        }
        if node.ground.reception.health() != Health::Up {
            continue;
        }
        let rooms = node.local.rooms(&socket);
        let rooms = rooms
            .iter()
            .filter_map(|room| Topic::room(room.as_str()).ok());
        let rooms: Vec<Topic> = rooms.collect();
        if let Ok(found) = node.find(&socket, &rooms, brought.as_ref()).await {
            node.release(&socket, found, brought.is_some());
            return;
        }
    }
}

/// Most sockets for which it is read at once what they missed in a room.
const AT_ONCE: usize = 16;
/// Between two attempts, at least; twice that at most.
const PAUSE: Duration = Duration::from_millis(250);

/// Without what is kept again and came before it was lost.
fn unknown(
    entries: &[Entry],
    clock: Clock,
    since: Option<Mark>,
) -> impl Iterator<Item = (Clock, Number, &Bytes)> {
    let is_known = move |entry: &&Entry| {
        let formerly = wire::formerly(&entry.envelope);
        since.is_some_and(|since| formerly.is_ok_and(|(marks, _)| since.covers(&marks)))
    };
    let unknown = entries.iter().filter(move |entry| !is_known(entry));
    unknown.map(move |entry| (clock, entry.number, &entry.envelope))
}

/// A number that was not given yet.
fn is_ahead(since: Option<Mark>, cut: Option<Mark>) -> bool {
    since
        .zip(cut)
        .is_some_and(|(since, cut)| since.run == cut.run && since.number > cut.number)
}

/// As the socket gets it: each once, by the numbers, without that from which it is excepted.
fn in_order(
    socket: &Sender,
    formerly: Option<SocketId>,
    mut entries: Vec<(Clock, Number, &Bytes)>,
) -> Result<Vec<(Clock, Number, Frame)>, Missed> {
    entries.sort_by(|(a, x, _), (b, y, _)| match x.cmp(y) {
        Ordering::Equal => a.cmp(b),
        order => order,
    });
    let mut seen = HashSet::new();
    entries.retain(|(clock, number, _)| seen.insert((*clock, *number)));
    let bytes: usize = entries.iter().map(|(.., envelope)| envelope.len()).sum();
    if entries.len() > MOST.entries || bytes > MOST.bytes {
        return Err(Missed::TooMany);
    }
    let (id, user) = (socket.id(), socket.user().as_str());
    let meant = entries.into_iter().filter_map(|(clock, number, envelope)| {
        let (scope, content) = read_entry(envelope)?;
        let mut former = [Some(id), formerly].into_iter().flatten();
        let is_excepted =
            former.any(|id| scope.except.contains(&id)) || scope.except_users.contains(&user);
        (!is_excepted).then(|| (clock, number, content.frame()))
    });
    Ok(meant.collect())
}
