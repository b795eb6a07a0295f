//! What stands in the place of TLS where the crate is built without.

use std::io;

use tokio::net::TcpStream;

/// There is none.
pub(super) enum Tls {}

impl Tls {
    pub(super) fn new() -> Result<Self, String> {
        Err("the scheme `rediss` is TLS, without which axum-cluster was built: enable its feature `tls-ring` or \
             `tls-aws-lc`"
            .into())
    }

    pub(super) async fn secure(&self, _host: &str, _stream: TcpStream) -> io::Result<TcpStream> {
        match *self {}
    }
}
