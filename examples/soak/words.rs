//! The words of the soak's processes: lives, targets and audiences, the stamp of a message, and what a node
//! says to its client.

use std::fmt;
use std::str::{FromStr, SplitWhitespace};
use std::time::{SystemTime, UNIX_EPOCH};

use axum_cluster::{Audience, Broadcaster, SocketId};

pub const NODES: usize = 3;
pub const USERS: u16 = 100;
pub const ROOMS: u16 = 8;
/// Users beyond these have one socket, at this node's number of `NODES`, for as long as it lives.
pub const STEADY: std::ops::Range<u16> = USERS..USERS + 4 * NODES as u16;
/// Rooms that every steady socket is in.
pub const WIDE: std::ops::Range<u16> = ROOMS..ROOMS + 16;
/// Users who want more sockets than they may have.
pub const CROWDED: std::ops::Range<u16> = 200..203;
/// A user's sockets in the cluster: twice what an ordinary user has.
pub const LIMIT: usize = 6;

/// The header of an upgrade's answer that says whether the limit was checked in the whole cluster.
pub const CHECKED: &str = "x-checked";

/// Microseconds on the wall clock, which all processes of one machine share.
pub fn now() -> u64 {
    micros(SystemTime::now())
}

pub fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.expect("it is past 1970").as_micros() as u64
}

/// Seconds, without the leading digits, for those who read.
pub fn clock(micros: u64) -> f64 {
    (micros / 1000 % 10_000_000) as f64 / 1000.0
}

/// One life of a node: restarted, it is another sender.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Life {
    pub node: usize,
    pub life: usize,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node, self.life)
    }
}

impl FromStr for Life {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (node, life) = text.split_once('.').ok_or(())?;
        let number = |text: &str| text.parse().map_err(drop);
        Ok(Self {
            node: number(node)?,
            life: number(life)?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    All,
    User(u16),
    Room(u16),
    Socket(SocketId),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::User(user) => write!(f, "u{user}"),
            Self::Room(room) => write!(f, "r{room}"),
            Self::Socket(socket) => write!(f, "s{socket}"),
        }
    }
}

impl FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let rest = text.get(1..).ok_or(())?;
        match text.as_bytes()[0] {
            b'u' => rest.parse().map(Self::User).map_err(drop),
            b'r' => rest.parse().map(Self::Room).map_err(drop),
            b's' => rest.parse().map(Self::Socket).map_err(drop),
            _ if text == "all" => Ok(Self::All),
            _ => Err(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    All,
    User,
    Room,
    Union,
    Socket,
}

/// Every set of targets that the nodes send to all the time, in the order that stamps count them. The unions overlap
/// on purpose: a socket that matches twice gets one copy.
pub fn audiences() -> Vec<Vec<Target>> {
    let mut all = vec![vec![Target::All]];
    all.extend((0..USERS).map(|user| vec![Target::User(user)]));
    all.extend((0..ROOMS).map(|room| vec![Target::Room(room)]));
    for n in 0..ROOMS / 2 {
        let (user, next) = (Target::User(n * 7), Target::User(n * 7 + 1));
        let (room, beside) = (Target::Room(n), Target::Room(n + ROOMS / 2));
        all.extend([vec![user, next], vec![user, room], vec![room, beside]]);
    }
    all
}

/// Sent to only over a slow link, and counted after the others.
pub fn wide_union() -> Vec<Target> {
    WIDE.map(Target::Room).collect()
}

pub fn kind(targets: &[Target]) -> Kind {
    match targets {
        [Target::All] => Kind::All,
        [Target::User(_)] => Kind::User,
        [Target::Room(_)] => Kind::Room,
        [Target::Socket(_)] => Kind::Socket,
        _ => Kind::Union,
    }
}

pub fn user_id(user: u16) -> String {
    format!("user-{user}")
}

pub fn room_name(room: u16) -> String {
    format!("room {room}")
}

/// The audience as the crate knows it.
pub fn address(broadcaster: &Broadcaster, targets: &[Target]) -> Audience {
    let nobody = broadcaster.to_users([] as [&str; 0]);
    targets
        .iter()
        .fold(nobody, |audience, target| match *target {
            Target::All => audience.to_all(),
            Target::User(user) => audience.to_user(user_id(user)),
            Target::Room(room) => audience.to_room(room_name(room)),
            Target::Socket(socket) => audience.to_socket(socket),
        })
}

/// What every message carries. Each sender numbers its messages to each audience from 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Stamp {
    pub sender: Life,
    pub audience: usize,
    pub number: u64,
    pub sent: u64,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sender,
            audience,
            number,
            sent,
        } = self;
        write!(f, "stamp {sender} {audience} {number} {sent}")
    }
}

/// What became of a send at its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// `Ok`.
    Taken,
    /// An error, and other nodes may have it.
    Unsure,
    /// An error, and no other node has it.
    Refused,
}

/// What a node says to its client.
#[derive(Clone, PartialEq, Debug)]
pub enum ToClient {
    Welcome(SocketId),
    Joined(u16),
    Left(u16),
    /// Everything before it was said before the client asked.
    Fence,
    Gap {
        from: u64,
        until: u64,
    },
    Stamped(Stamp),
}

impl fmt::Display for ToClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Welcome(socket) => write!(f, "welcome {socket}"),
            Self::Joined(room) => write!(f, "joined {room}"),
            Self::Left(room) => write!(f, "left {room}"),
            Self::Fence => f.write_str("fence"),
            Self::Gap { from, until } => write!(f, "gap {from} {until}"),
            Self::Stamped(stamp) => stamp.fmt(f),
        }
    }
}

impl FromStr for ToClient {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        Ok(match words.next().ok_or(())? {
            "welcome" => Self::Welcome(next(&mut words)?),
            "joined" => Self::Joined(next(&mut words)?),
            "left" => Self::Left(next(&mut words)?),
            "fence" => Self::Fence,
            "gap" => Self::Gap {
                from: next(&mut words)?,
                until: next(&mut words)?,
            },
            "stamp" => Self::Stamped(Stamp {
                sender: next(&mut words)?,
                audience: next(&mut words)?,
                number: next(&mut words)?,
                sent: next(&mut words)?,
            }),
            _ => return Err(()),
        })
    }
}

pub fn next<T: FromStr>(words: &mut SplitWhitespace<'_>) -> Result<T, ()> {
    words.next().ok_or(())?.parse().map_err(drop)
}
