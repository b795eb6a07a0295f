//! From a request for a stream of events to a registered socket.

mod body;
mod handler;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::SystemTime;

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::Response;
use futures::FutureExt;
use http::request::Parts;
use http::{HeaderName, Method};
use serde::Serialize;
use tokio::sync::oneshot;
use tracing::Instrument;

use self::body::Written;
pub use self::handler::Events;
use crate::config::Unauthenticated;
use crate::door::{self, Newcomer};
use crate::local::registry::Member;
use crate::local::socket::resuming::Telling;
use crate::local::socket::{HandlerEnd, span};
use crate::model::history::Resumed;
use crate::model::history::position::Position;
use crate::model::id::{RoomId, UserId};
use crate::node::Node;
use crate::rejection::{ClusterRejection, DoorKind, RejectionKind};
use crate::socket::Socket;
use crate::sse;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A request of a known user for server-sent events ([WHATWG HTML, section
/// 9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html)), for whom the cluster already listens; then
/// [`stream`](Self::stream) or [`on_open`](Self::on_open).
///
/// It is a socket whose client only listens: where a WebSocket does not get through, or is more than is needed. Everything
/// sent to the user, its rooms or all, from any node, comes as an event; rosters, presence, limits, seats and
/// [`Stats`](crate::Stats) count it, and it is closed by whoever closes a socket. The client is the browser's own
/// `EventSource`:
///
/// ```js
/// const events = new EventSource('/events');
/// events.onmessage = ({ data }) => console.log(data);
/// events.addEventListener('binary', ({ data }) => console.log(atob(data)));
/// events.addEventListener('close', ({ data }) => console.log(JSON.parse(data))); // {"code": 1012, "reason": ".."}
/// ```
///
/// ```
/// # use axum::{Router, response::Response, routing::get};
/// use axum_cluster::ClusterEvents;
///
/// async fn events(events: ClusterEvents) -> Response {
///     events.join("news").stream()
/// }
/// # let _app: Router = Router::new().route("/events", get(events));
/// ```
///
/// A text is an event without a name, in which every end of a line is a line feed, as the format has it; bytes are an event
/// `binary` in base64. A client that was silent gets a comment line every
/// [`ping_interval`](crate::ClusterBuilder::ping_interval). What waits for one that reads slowly is bounded as for sockets
/// (1013), beside what the server's HTTP keeps for it; one for which nothing is taken for
/// [`write_timeout`](crate::ClusterBuilder::write_timeout) is closed, and one that vanished without a word is found when the
/// kernel gives its connection up.
///
/// `EventSource` comes back by itself, after 1 to 5 s, so that a crash of a node is no herd at the others. It is told so anew by
/// a node that drains. It is kept from coming back by an end for good: 1000 (the handler returned) and 4400 to 4499 (the
/// identity expired, replaced by a newer one, your own). Then it comes once more, gets 204 and stops.
///
/// With a history ([`ClusterBuilder::user_history`](crate::ClusterBuilder::user_history)) each event has the position as its `id`, so that
/// a browser which comes back brings it along, and is sent what it missed; where that cannot be told, an event `missed` says
/// so, with the reason: `late`, `too-many`, `forgotten`, `foreign`.
///
/// Refusals, cheapest first: 500 without the layer, 405 for what is no GET, 204 after an end for good, 503 while shutting
/// down, 403 for a foreign origin, 204 without a user, or 401 as [`Unauthenticated::Reject`] says, 400 for an unusable user id, 429
/// or 503 at a limit. A client that had a stream before (`Last-Event-ID`) would stop for ever at a 429 or 503: in
/// place of those it gets a stream that ends at once and says when to come back. Each is counted and logged as for
/// [`ClusterSocket`](crate::ClusterSocket). Where other origins are allowed, `EventSource` needs the headers of CORS, too.
///
/// Dropping it gives the user's place back.
#[derive(Debug)]
#[must_use = "the request is answered by `stream` or `on_open`"]
pub struct ClusterEvents {
    newcomer: Newcomer,
}

impl ClusterEvents {
    /// Whose it will be.
    pub fn user(&self) -> &UserId {
        self.newcomer.user()
    }

    /// Where the client was when it left: its `Last-Event-ID`, or the position in the URL (`?since=`), or that of
    /// [`since`](Self::since).
    pub fn position(&self) -> Option<&Position> {
        self.newcomer.position()
    }

    /// Goes on from this position instead, or from none: [`ClusterSocket::since`](crate::ClusterSocket::since).
    pub fn since(mut self, position: Option<Position>) -> Self {
        self.newcomer.since(position);
        self
    }

    /// Ends the stream with 4401 when the identity expires: [`ClusterSocket::expires_at`](crate::ClusterSocket::expires_at).
    /// Default: never.
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.newcomer.expires_at(time);
        self
    }

    /// Says what kind of device this is, for [`Audience::sockets`](crate::Audience::sockets):
    /// [`ClusterSocket::describe`](crate::ClusterSocket::describe). Default: nothing.
    pub fn describe(mut self, description: impl Serialize) -> Self {
        self.newcomer.describe(description);
        self
    }

    /// Puts it into a room from its first moment: [`ClusterSocket::join`](crate::ClusterSocket::join). The stream begins, and
    /// the handler, when the room is heard, at the latest after `publish_timeout`; what comes meanwhile waits.
    pub fn join(mut self, room: impl Into<RoomId>) -> Self {
        self.newcomer.join(room.into());
        self
    }

    /// The stream, without a handler: it goes on until somebody closes it, or the client leaves. From this call on it is
    /// reached from every node. It has no task.
    #[must_use = "the returned response is the stream"]
    pub fn stream(self) -> Response {
        match self.open() {
            Ok(opened) => sse::response(Body::from_stream(opened.body)),
            Err(refusal) => *refusal,
        }
    }

    /// The stream, with a handler that joins rooms, sends to this client alone, or waits for the end. It begins when the
    /// client gets its answer.
    ///
    /// When it returns, the stream ends with 1000, and `EventSource` does not come back; when it panics, with 1011. When the client
    /// leaves, [`Events::closed`] returns and sends fail; the handler itself is not cancelled, as that of a socket is not.
    ///
    /// ```
    /// # use axum::{Router, response::Response, routing::get};
    /// use axum_cluster::ClusterEvents;
    ///
    /// async fn events(events: ClusterEvents) -> Response {
    ///     events.on_open(|mut events| async move {
    ///         if events.join("news").await.is_ok() && events.send("welcome").await.is_ok() {
    ///             events.closed().await;
    ///         }
    ///     })
    /// }
    /// # let _app: Router = Router::new().route("/events", get(events));
    /// ```
    #[must_use = "the returned response is the stream"]
    pub fn on_open<F, Fut>(self, handler: F) -> Response
    where
        F: FnOnce(Events) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let OpenedEvents {
            node,
            mut body,
            end,
        } = match self.open() {
            Ok(opened) => opened,
            Err(refusal) => return *refusal,
        };
        let events = Events::new(Socket::new(node.clone(), end), body.ending());
        let (begun, begins) = oneshot::channel();
        body.when_begun(begun);
        let span = span::of_socket(events.id(), events.user());
        let tasks = node.ground.home.tracker();
        tasks.spawn(run(begins, events, handler).instrument(span));
        sse::response(Body::from_stream(body))
    }

    fn open(self) -> Result<OpenedEvents, Box<Response>> {
        let ready = self.newcomer.ready()?;
        let (node, reservation) = (ready.node, ready.reservation);
        let holding = node.resumes().then_some(Telling::Told);
        let (streamed, end) =
            reservation.stream_to_client(ready.expiry, ready.description, holding);
        let sender = end.sender();
        let heard = node.local.begin_joins(&sender, &ready.rooms);
        let resumed = {
            let node = node.clone();
            async move {
                heard.await;
                node.resumed(&sender, holding, &ready.rooms, ready.position)
                    .await
            }
        };
        let body = Written::new(
            streamed,
            resumed.boxed(),
            holding.is_some(),
            node.ground.home.tracker(),
        );
        Ok(OpenedEvents { node, body, end })
    }
}

/// It is registered, and has no answer yet.
struct OpenedEvents {
    node: Arc<Node>,
    body: Written,
    end: HandlerEnd,
}

/// Runs the handler, if the client gets its answer.
async fn run<F, Fut>(begins: oneshot::Receiver<Resumed>, mut events: Events, handler: F)
where
    F: FnOnce(Events) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let Ok(resumed) = begins.await else {
        return;
    };
    events.came_back(resumed);
    let sender = events.sender();
    let handled = match catch_unwind(AssertUnwindSafe(|| handler(events))) {
        Ok(handling) => AssertUnwindSafe(handling).catch_unwind().await,
        Err(panic) => Err(panic),
    };
    if handled.is_err() {
        span::record_panic(sender.id(), sender.user());
    }
    if let Some(close) = sender.close_reason() {
        span::record_end(&close);
    }
}

impl<S: Sync> FromRequestParts<S> for ClusterEvents {
    type Rejection = ClusterRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ClusterRejection> {
        let node = door::node_of(parts)?.clone();
        let admitted = Self::admit(&node, parts).await;
        admitted.map_err(|kind| {
            let comes_back = parts.headers.contains_key(LAST_EVENT_ID);
            let kind = if comes_back { kind.later() } else { kind };
            ClusterRejection::noted(kind, DoorKind::Events, &node)
        })
    }
}

impl ClusterEvents {
    async fn admit(node: &Arc<Node>, parts: &Parts) -> Result<Self, RejectionKind> {
        if parts.method != Method::GET {
            return Err(RejectionKind::MethodNotGet);
        }
        let last = parts.headers.get(LAST_EVENT_ID);
        let last = last.and_then(|last| last.to_str().ok());
        if last.is_some_and(sse::is_over) {
            return Err(RejectionKind::Over);
        }
        door::check(node, parts)?;
        let user = node.config.identify.user(&parts.extensions);
        let user = user.map_err(|missing| match node.config.unauthenticated {
            Unauthenticated::Reject => RejectionKind::Unauthenticated(missing),
            Unauthenticated::Close | Unauthenticated::CloseWith(_) => {
                RejectionKind::Nobody(missing)
            }
        })?;
        let position = match last {
            Some(last) if !sse::is_no_position(last) => {
                Some(last.parse().unwrap_or_else(|_| Position::nothing()))
            }
            Some(_) => None,
            None => door::position_in(&parts.uri),
        };
        let newcomer = Newcomer::of(node, user, position).await?;
        Ok(Self { newcomer })
    }
}
