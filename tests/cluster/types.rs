//! What the types of the API are, whatever else they are. It compiles, or it does not.

use std::borrow::{Borrow, Cow};
use std::error::Error;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::str::FromStr;
use std::time::Duration;

use axum::response::IntoResponse;
use axum_cluster::{
    Audience, Backend, BadMessage, BadMessageKind, Broadcaster, BroadcasterBuilder, Close,
    CloseCode, Closed, ClosedKind, Cluster, ClusterBuilder, ClusterEvents, ClusterLayer,
    ClusterRejection, ClusterRejectionKind, ClusterService, ClusterSocket, ConnectError,
    ConnectErrorKind, Count, Delivery, DescriptionError, DescriptionErrorKind, Events, Gap, Gaps,
    Health, HealthChanges, History, InvalidId, InvalidNodeId, InvalidPosition, InvalidSocketId,
    Kept, Message, Missed, Move, Moves, NodeId, NodeInfo, NodeMessage, NodeMessages, Outcome,
    OverLimit, Position, Presence, PresenceChange, QueryError, QueryErrorKind, Redis, Resumed,
    RoomError, RoomErrorKind, RoomId, Roster, SendError, SendErrorKind, SendJsonError,
    SendJsonErrorKind, SlowConsumer, Socket, SocketId, SocketInfo, StatKind, Stats, SubscribeError,
    SubscribeErrorKind, Subscription, ToNodes, Unauthenticated, UserId, Utf8Bytes,
};
use futures::{Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

macro_rules! assert_impl {
    ($($type:ty),* $(,)?: $($bounds:tt)+) => {
        const _: () = {
            const fn holds<T: $($bounds)+>() {}
            $(holds::<$type>();)*
        };
    };
}

assert_impl! {
    Audience,
    Backend,
    BadMessage,
    BadMessageKind,
    Broadcaster,
    BroadcasterBuilder,
    Close,
    CloseCode,
    Closed,
    ClosedKind,
    Cluster,
    ClusterBuilder,
    ClusterLayer,
    ClusterRejectionKind,
    ClusterService<()>,
    ConnectError,
    ConnectErrorKind,
    Count,
    Delivery,
    DescriptionError,
    DescriptionErrorKind,
    Events,
    Gap,
    Gaps,
    Health,
    HealthChanges,
    History,
    InvalidId,
    InvalidNodeId,
    InvalidPosition,
    InvalidSocketId,
    Kept,
    Message,
    Missed,
    Move,
    Moves,
    NodeId,
    NodeInfo,
    NodeMessage,
    NodeMessages,
    Outcome,
    OverLimit,
    Position,
    Presence,
    PresenceChange,
    QueryError,
    QueryErrorKind,
    Redis,
    Resumed,
    RoomError,
    RoomErrorKind,
    RoomId,
    Roster,
    SendError,
    SendErrorKind,
    SendJsonError,
    SendJsonErrorKind,
    SlowConsumer,
    Socket,
    SocketId,
    SocketInfo,
    StatKind,
    Stats,
    SubscribeError,
    SubscribeErrorKind,
    Subscription,
    ToNodes,
    Unauthenticated,
    UserId,
    Utf8Bytes:
    Send + Sync + Unpin + Debug + 'static
}
assert_impl! { ClusterEvents, ClusterRejection, ClusterSocket: Send + Sync + Unpin + Debug + 'static }
#[cfg(feature = "deflate")]
assert_impl! {
    axum_cluster::Compression:
    Copy + Default + Eq + Hash + Send + Sync + Unpin + Debug + 'static
}
#[cfg(feature = "dashboard")]
assert_impl! {
    axum_cluster::Dashboard:
    Clone + Send + Sync + Unpin + Debug + 'static +
    tower::Service<axum::extract::Request, Response = axum::response::Response, Error = std::convert::Infallible>
}
assert_impl! {
    Audience, Backend, Broadcaster, BroadcasterBuilder, Cluster, ClusterBuilder, ClusterLayer, ClusterService<()>,
    Redis:
    Clone
}
assert_impl! {
    Close, Count, Delivery, Gap, Health, Message, Move, NodeInfo, Outcome, PresenceChange, Roster, SocketInfo, Stats:
    Clone + PartialEq
}
assert_impl! {
    Close, CloseCode, Count, Delivery, Gap, Health, NodeId, NodeInfo, Outcome, PresenceChange, RoomId, Roster,
    SocketId, SocketInfo, Stats, UserId, Utf8Bytes: Serialize
}
assert_impl! { CloseCode, NodeId, RoomId, SocketId, UserId: DeserializeOwned + Ord + Hash + Display }
assert_impl! {
    RoomId, UserId: AsRef<str> + Borrow<str> + PartialEq<str> + PartialEq<&'static str> + PartialEq<String> + FromStr<Err = InvalidId>
}
assert_impl! {
    Message: From<&'static str> + From<String> + From<Utf8Bytes> + From<Cow<'static, str>> + From<&'static [u8]> +
    From<Vec<u8>> + From<axum::body::Bytes> + Into<axum::body::Bytes> + Into<Vec<u8>>
}
assert_impl! { Utf8Bytes: TryFrom<Message, Error = BadMessage> }
assert_impl! { String: TryFrom<Message, Error = BadMessage> }
assert_impl! { Utf8Bytes: Borrow<str> + Ord + Hash + Into<String> + Into<axum::body::Bytes> }
assert_impl! { StatKind: Copy + Eq + Hash }
assert_impl! { CloseCode: From<u16> + Into<u16> + PartialEq<u16> + Copy }
assert_impl! {
    BadMessageKind, ClosedKind, ClusterRejectionKind, ConnectErrorKind, DescriptionErrorKind, QueryErrorKind, RoomErrorKind, SendErrorKind,
    SendJsonErrorKind, SubscribeErrorKind: Copy + Eq + Hash
}
assert_impl! {
    BadMessage, Closed, ClusterRejection, ConnectError, DescriptionError, InvalidId, QueryError, RoomError, SendError,
    SendJsonError, SubscribeError: Error + IntoResponse
}
assert_impl! { InvalidNodeId, InvalidPosition, InvalidSocketId: Error }
assert_impl! { History, Missed, Resumed: Copy + Eq + Hash }
assert_impl! { Kept: Clone + PartialEq }
assert_impl! { Position: Clone + Eq + Hash + Display + FromStr<Err = InvalidPosition> + Serialize + DeserializeOwned }
assert_impl! { Gaps: Stream<Item = Gap> }
assert_impl! { HealthChanges: Stream<Item = Health> }
assert_impl! { Moves: Stream<Item = Move> }
assert_impl! { NodeMessages: Stream<Item = NodeMessage> }
assert_impl! { Presence: Stream<Item = PresenceChange> }
assert_impl! { Subscription: Stream<Item = Message> }
assert_impl! { Socket: Stream<Item = Message> + Sink<Message, Error = Closed> }

fn send<F: Future + Send>(_: F) {}

/// Every future may move to another thread, with arguments of any kind.
#[test]
fn every_future_is_send() {
    let _never = |cluster: Cluster, broadcaster: Broadcaster, audience: Audience| {
        send(Cluster::connect("url"));
        send(Cluster::connect(&String::new()));
        send(cluster.ready());
        send(cluster.nodes());
        send(cluster.shutdown(Duration::ZERO));
        send(Broadcaster::connect("url"));
        send(Broadcaster::builder().connect());
        send(broadcaster.subscribe("alice"));
        send(broadcaster.subscribe_since("alice", None));
        send(broadcaster.to_nodes().send("text"));
        send(broadcaster.to_nodes().send_json(&[1]));
        send(broadcaster.is_online("alice"));
        send(broadcaster.which_online(["alice"]));
        send(audience.clone().send("text"));
        send(audience.clone().send_json(&[1]));
        send(audience.clone().close(Close::new(4001, "out")));
        send(audience.clone().join("lobby"));
        send(audience.clone().leave(RoomId::from(7)));
        send(audience.clone().history());
        send(audience.clone().sockets());
        send(audience.count());
    };
    let _never = |subscription: Subscription| {
        send(subscription.join("lobby"));
    };
    let _never = |mut events: Events| {
        send(events.send("text"));
        send(events.send_json(&[1]));
        send(events.closed());
        send(events.join("lobby"));
        send(events.close(Close::new(4001, "out")));
    };
    let _never = |mut socket: Socket| {
        send(socket.recv());
        send(socket.recv_json::<String>());
        send(socket.send("text"));
        send(socket.send_json(&[1]));
        send(socket.join("lobby"));
        send(socket.close(Close::new(4001, "out")));
    };
}

/// What names a user or a room.
#[tokio::test]
async fn a_room_is_named_as_a_user_is() {
    let cluster = Cluster::builder().start();
    let (to, text) = (cluster.broadcaster(), String::from("7"));
    let (room, user) = (RoomId::from("7"), UserId::from("7"));
    let rooms = [
        to.to_room("7"),
        to.to_room(&text),
        to.to_room(text.clone()),
        to.to_room(7),
        to.to_room(&room),
        to.to_room(room),
        to.to_rooms(["7"]),
    ];
    let users = [
        to.to_user("7"),
        to.to_user(&text),
        to.to_user(text),
        to.to_user(7),
        to.to_user(&user),
        to.to_user(user),
        to.to_users(["7"]),
    ];
    for audience in rooms.into_iter().chain(users) {
        let delivery = audience.send("x").await.unwrap();
        assert_eq!((delivery.local(), delivery.nodes()), (0, Some(0)));
    }
}
