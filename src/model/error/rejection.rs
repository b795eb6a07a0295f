//! What kinds of refusals there are.

/// What kind of refusal a [`ClusterRejection`](crate::ClusterRejection) is. The client of a stream of events that comes back is
/// told by a 200 where it may enter later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ClusterRejectionKind {
    /// 500: no [`ClusterLayer`](crate::ClusterLayer) is around the route.
    NoLayer,
    /// 500: the server does not do upgrades, or another extractor took the upgrade.
    NoUpgrade,
    /// 400, 405, 426: it is no handshake of a WebSocket, or no GET for a stream of events.
    Handshake,
    /// 403: a page of another origin.
    Origin,
    /// 401, an upgrade that closes with 4403, or a 204 for a stream of events: nobody is logged in.
    Unauthenticated,
    /// 400: the user's id cannot be used; the source is an [`InvalidId`](crate::InvalidId).
    InvalidId,
    /// 503: the cluster is being shut down, or was.
    Draining,
    /// 503: the runtime on which the cluster was started has ended, or does not run.
    RuntimeEnded,
    /// 503: the node holds [`max_sockets`](crate::ClusterBuilder::max_sockets).
    NodeFull,
    /// 429: the user has [`max_sockets_per_user`](crate::ClusterBuilder::max_sockets_per_user), or
    /// [`max_sockets_per_user_in_cluster`](crate::ClusterBuilder::max_sockets_per_user_in_cluster).
    UserFull,
    /// 204: the client of a stream of events comes back after it was told not to.
    Over,
}
