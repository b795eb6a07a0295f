//! The WebSocket underneath: the handshake's rules and the engine that owns one upgraded stream.

pub(crate) mod handshake;
mod io;
mod stream;

pub(crate) use stream::{Frame, WsStream};
