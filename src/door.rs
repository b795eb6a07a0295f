//! The door, for whatever becomes a socket: who may enter, and what an app still says of a newcomer.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use axum_core::response::{IntoResponse, Response};
use http::Uri;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::broadcast::Broadcaster;
use crate::counts::Counted;
use crate::local::admission::{RefusedSocket, Reservation};
use crate::local::expiry::{Expiry, Times};
use crate::model::description::Description;
use crate::model::error::{DescriptionError, RoomError};
use crate::model::history::position::Position;
use crate::model::id::{RoomId, UserId};
use crate::model::topic::Topic;
use crate::node::Node;
use crate::rejection::{ClusterRejection, RejectionKind};

/// The node whose layer the request came through.
pub(crate) fn node_of(parts: &Parts) -> Result<&Arc<Node>, ClusterRejection> {
    let broadcaster: Option<&Broadcaster> = parts.extensions.get();
    // A worker's is no layer's: nobody would miss its sockets.
    let node = broadcaster.map(Broadcaster::node);
    let node = node.filter(|node| !node.config.worker);
    node.ok_or_else(ClusterRejection::no_layer)
}

/// What costs nothing to refuse.
pub(crate) fn check(node: &Node, parts: &Parts) -> Result<(), RejectionKind> {
    if node.local.is_draining() {
        return Err(RefusedSocket::Draining.into());
    }
    let admitted = node.config.origins.check(&parts.headers, &parts.uri);
    admitted.map_err(RejectionKind::Origin)
}

/// The position in the URL, `?since=`. What is none is one that nobody wrote.
pub(crate) fn position_in(uri: &Uri) -> Option<Position> {
    let mut pairs = uri.query()?.split('&');
    let since = pairs.find_map(|pair| pair.strip_prefix("since="))?;
    let since = percent_decode_str(since).decode_utf8().ok();
    let position = since.and_then(|since| since.parse().ok());
    Some(position.unwrap_or_else(Position::nothing))
}

/// Who was let in, and is no socket yet. Dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct Newcomer {
    node: Arc<Node>,
    reservation: Reservation,
    expires_at: Option<SystemTime>,
    description: Option<Result<Description, DescriptionError>>,
    rooms: Vec<RoomId>,
    /// Where its client was.
    position: Option<Position>,
}

/// A newcomer of whom all is said.
#[derive(Debug)]
pub(crate) struct Ready {
    pub(crate) node: Arc<Node>,
    pub(crate) reservation: Reservation,
    pub(crate) expiry: Option<Expiry>,
    pub(crate) description: Option<Description>,
    pub(crate) rooms: Vec<Topic>,
    pub(crate) position: Option<Position>,
}

impl Newcomer {
    /// Takes a place for a socket of this user.
    pub(crate) async fn of(
        node: &Arc<Node>,
        user: UserId,
        position: Option<Position>,
    ) -> Result<Self, RejectionKind> {
        Ok(Self {
            node: node.clone(),
            reservation: node.reserve(user).await?,
            expires_at: None,
            description: None,
            rooms: Vec::new(),
            position,
        })
    }

    pub(crate) fn user(&self) -> &UserId {
        self.reservation.user()
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    pub(crate) fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    pub(crate) fn since(&mut self, position: Option<Position>) {
        self.position = position;
    }

    pub(crate) fn expires_at(&mut self, time: SystemTime) {
        self.expires_at = Some(time);
    }

    pub(crate) fn describe(&mut self, description: impl Serialize) {
        self.description = Some(Description::of(&description));
    }

    pub(crate) fn join(&mut self, room: RoomId) {
        self.rooms.push(room);
    }

    /// What it is registered with; else the answer that refuses it.
    pub(crate) fn ready(self) -> Result<Ready, Box<Response>> {
        let node = self.node;
        let description = self.description.transpose();
        let description =
            description.map_err(|problem| refused(&node, Counted::Upgrade, problem))?;
        let rooms = self.rooms.iter().map(|room| Topic::room(room.as_str()));
        let rooms: Result<Vec<Topic>, _> = rooms.collect();
        let rooms = rooms.map_err(|id| refused(&node, Counted::Id, RoomError::invalid(id)))?;
        Ok(Ready {
            node,
            reservation: self.reservation,
            expiry: self.expires_at.map(|time| Expiry::at(time, Times::now())),
            description,
            rooms,
            position: self.position,
        })
    }
}

/// What the app said makes no sense.
fn refused(
    node: &Node,
    counted: Counted,
    problem: impl IntoResponse + fmt::Display,
) -> Box<Response> {
    node.ground.counters.record_refusal(counted);
    let said = problem.to_string();
    let response = problem.into_response();
    let status = response.status().as_u16();
    match counted {
        Counted::Upgrade => tracing::error!(problem = said, status, "upgrade refused"),
        _ => tracing::debug!(problem = said, status, "upgrade refused"),
    }
    Box::new(response)
}
