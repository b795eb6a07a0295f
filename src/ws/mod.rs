//! The WebSocket underneath: the rules of handshake and frames, and the bytes of an upgraded request.

pub(crate) mod frame;
pub(crate) mod handshake;
mod io;

pub(crate) use io::{Io, Opened, SharedWriter, TaskWriter, lend_buffer};
