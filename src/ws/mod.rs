//! The WebSocket underneath: the rules of handshake and frames, how messages are compressed, and the bytes of an upgraded
//! request.

#[cfg(feature = "deflate")]
mod deflate;
#[cfg(not(feature = "deflate"))]
#[path = "no_deflate.rs"]
mod deflate;
pub(crate) mod frame;
pub(crate) mod handshake;
mod io;

pub(crate) use deflate::{Agreed, Deflating};
pub(crate) use io::{Io, OpenedIo, SharedWriter, TaskWriter, lend_buffer};
