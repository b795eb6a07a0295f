//! The clients: each lives one socket after another, in a manner of its own, and tells the referee what
//! comes.

use std::sync::Arc;
use std::time::Duration;

use axum_cluster::SocketId;
use futures::SinkExt;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::entry::{self, ENTRY, Entry, said};
use crate::fleet::Door;
use crate::pusher::Pusher;
use crate::referee::Referee;
use crate::words::{CROWDED, LIMIT, Life, NODES, ROOMS, STEADY, ToClient, USERS, WIDE, now};

/// So many clients on each node push for each user who wants too many sockets: twice as many as may enter.
const PUSHERS: usize = 2 * LIMIT / NODES;
/// A retired client waits this long for what is still under way, while its node is up.
const UNDER_WAY: Duration = Duration::from_secs(12);
/// The receive buffer of a client that pauses, so that its node feels the pause.
const SMALL: u32 = 64 * 1024;
/// Longer than a node takes to give a silent client up.
const GIVEN_UP: Duration = Duration::from_secs(90);

#[derive(Debug)]
pub struct Crowd {
    ending: watch::Sender<bool>,
    vanish: Arc<Notify>,
    clients: JoinSet<()>,
}

impl Crowd {
    /// This many clients; with enough of them, each user has sockets on several nodes.
    pub fn gather(
        count: usize,
        doors: &[Door],
        referee: &Arc<Mutex<Referee>>,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let ending = watch::Sender::new(false);
        let vanish = Arc::new(Notify::new());
        let mut clients = JoinSet::new();
        let users = usize::from(USERS);
        let ordinary = (0..count).map(|n| ((n % users) as u16, (n + n / users) % NODES));
        let steady = STEADY.map(|user| (user, usize::from(user) % NODES));
        for (user, home) in ordinary.chain(steady) {
            let client = Client {
                user,
                home,
                doors: doors.to_vec(),
                referee: referee.clone(),
                ending: ending.subscribe(),
                vanish: vanish.clone(),
                rng: rng.fork(),
            };
            clients.spawn(client.run());
        }
        for (user, door) in CROWDED.flat_map(|user| doors.iter().map(move |door| (user, door))) {
            for _ in 0..PUSHERS {
                let pusher = Pusher {
                    user,
                    door: door.clone(),
                    referee: referee.clone(),
                    ending: ending.subscribe(),
                    rng: rng.fork(),
                };
                clients.spawn(pusher.run());
            }
        }
        Self {
            ending,
            vanish,
            clients,
        }
    }

    /// Makes one client fall silent, with its connection open.
    pub fn vanish_one(&self) {
        self.vanish.notify_one();
    }

    /// Lets everyone take what is owed, and leave.
    pub async fn disperse(mut self) {
        self.ending.send_replace(true);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics");
        }
    }
}

#[derive(Debug)]
struct Client {
    user: u16,
    home: usize,
    doors: Vec<Door>,
    referee: Arc<Mutex<Referee>>,
    ending: watch::Receiver<bool>,
    vanish: Arc<Notify>,
    rng: fastrand::Rng,
}

/// What a client does while its socket lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    /// Is in many rooms, as long as its node lives.
    Stays,
    Reads,
    /// Enters and leaves a second room.
    Hops,
    /// Stops reading for a while.
    Pauses,
    /// Leaves without a word.
    Drops,
}

impl Client {
    async fn run(mut self) {
        while !*self.ending.borrow() {
            if self.live().await.is_none() {
                sleep(Duration::from_millis(self.rng.u64(50..500))).await;
            }
        }
    }

    /// One socket from its first to its last moment; `None` when there was none.
    async fn live(&mut self) -> Option<()> {
        let manner = match self.rng.u8(0..20) {
            _ if STEADY.contains(&self.user) => Manner::Stays,
            0..12 => Manner::Reads,
            12..16 => Manner::Hops,
            16..18 => Manner::Pauses,
            _ => Manner::Drops,
        };
        let node = match self.rng.u8(0..5) {
            0 if manner != Manner::Stays => self.rng.usize(0..NODES),
            _ => self.home,
        };
        let (life, addr) = (*self.doors[node].borrow())?;
        let buffer = (manner == Manner::Pauses).then_some(SMALL);
        let entering = timeout(ENTRY, entry::enter(addr, self.user, buffer));
        let Entry { stream, socket, .. } = entering.await.ok()?.ok()?;
        self.referee.lock().welcome(socket, life, self.user, now());
        let referee = self.referee.clone();
        let visit = Visit {
            client: self,
            stream,
            id: socket,
            life,
            is_asking: false,
        };
        visit.pass(manner).await;
        referee.lock().gone(socket);
        Some(())
    }
}

/// Waits for the end of the soak.
pub async fn ending(ending: &mut watch::Receiver<bool>) {
    // Fails when the crowd is gone, which is an ending too.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// A client at its socket.
struct Visit<'a> {
    client: &'a mut Client,
    stream: WebSocketStream<TcpStream>,
    id: SocketId,
    life: Life,
    /// It has asked to enter or leave a room, and has no answer yet.
    is_asking: bool,
}

impl Visit<'_> {
    async fn pass(mut self, manner: Manner) -> Option<()> {
        let seconds = |seconds: u64| Duration::from_secs(seconds);
        let lasts = match self.client.rng.u8(0..4) {
            0 => seconds(self.client.rng.u64(3..20)),
            _ => seconds(self.client.rng.u64(20..180)),
        };
        let end = Instant::now() + lasts;
        let mut act = Instant::now() + seconds(self.client.rng.u64(2..6));
        let second_room = self.client.rng.u16(0..ROOMS);
        let mut is_there = false;
        match manner {
            Manner::Stays => {
                for room in WIDE {
                    self.enter(room).await?;
                }
            }
            _ => self.enter(self.client.user % ROOMS).await?,
        }
        let vanish = self.client.vanish.clone();
        loop {
            tokio::select! {
                said = said(&mut self.stream) => self.hear(said?),
                () = sleep_until(end), if manner != Manner::Stays => break,
                () = vanish.notified(), if manner != Manner::Stays => return self.fall_silent().await,
                () = ending(&mut self.client.ending) => return self.leave().await,
                () = sleep_until(act), if matches!(manner, Manner::Hops | Manner::Pauses) => {
                    if manner == Manner::Pauses {
                        // Shorter than the referee's patience: a gap that was told may lie unread.
                        let pause = seconds(self.client.rng.u64(2..15));
                        // Passed by the end of the soak, too.
                        let _ = timeout(pause, ending(&mut self.client.ending)).await;
                    } else if !self.is_asking && second_room != self.client.user % ROOMS {
                        match is_there {
                            true => self.exit(second_room).await?,
                            false => self.enter(second_room).await?,
                        }
                        is_there = !is_there;
                    }
                    act = Instant::now() + seconds(self.client.rng.u64(3..9));
                }
            }
        }
        match manner {
            Manner::Drops => None,
            _ => self.leave().await,
        }
    }

    async fn enter(&mut self, room: u16) -> Option<()> {
        self.client.referee.lock().begins(self.id, room);
        self.tell(&format!("join {room}")).await
    }

    async fn exit(&mut self, room: u16) -> Option<()> {
        self.client.referee.lock().begins(self.id, room);
        self.tell(&format!("leave {room}")).await
    }

    async fn tell(&mut self, command: &str) -> Option<()> {
        self.is_asking = true;
        self.stream.send(Message::text(command)).await.ok()
    }

    fn hear(&mut self, said: ToClient) {
        let (at, id) = (now(), self.id);
        self.is_asking &= !matches!(said, ToClient::Joined(_) | ToClient::Left(_));
        let mut referee = self.client.referee.lock();
        match said {
            ToClient::Stamped(stamp) => referee.received(id, stamp, at),
            ToClient::Gap { from, until } => referee.gap_told(id, from, until),
            ToClient::Joined(room) => referee.joined(id, room, at),
            ToClient::Left(room) => referee.left(id, room, at),
            ToClient::Fence => {}
            ToClient::Welcome(_) => panic!("welcome twice"),
        }
    }

    /// Waits for what is owed, then closes as a browser would.
    async fn leave(mut self) -> Option<()> {
        self.client.referee.lock().retire(self.id, now());
        // A slow client first reads what waits for it.
        self.tell("fence").await?;
        loop {
            match said(&mut self.stream).await? {
                ToClient::Fence => break,
                said => self.hear(said),
            }
        }
        let fenced = now();
        let mut look = tokio::time::interval(Duration::from_millis(500));
        // What its senders did is reported a moment later.
        look.reset();
        loop {
            tokio::select! {
                said = said(&mut self.stream) => self.hear(said?),
                _ = look.tick() => {
                    let limit = now() - UNDER_WAY.as_micros() as u64;
                    let referee = self.client.referee.lock();
                    let waited = fenced < limit && referee.has_been_up_since(self.life, limit);
                    if waited || referee.is_settled(self.id) {
                        break;
                    }
                }
            }
        }
        self.client.referee.lock().closes(self.id, now());
        // The node may have died.
        let _ = self.stream.close(None).await;
        while said(&mut self.stream).await.is_some() {}
        Some(())
    }

    /// As if its machine had lost power: nothing is read, nothing answered, nothing closed.
    async fn fall_silent(self) -> Option<()> {
        self.client.referee.lock().vanished(self.id);
        let mut ending = self.client.ending.clone();
        let given_up = async {
            while !*ending.borrow_and_update() && !self.client.referee.lock().was_given_up(self.id)
            {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(GIVEN_UP, given_up).await.ok()
    }
}
