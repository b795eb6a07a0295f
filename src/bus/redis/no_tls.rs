//! What stands in the place of TLS where the crate is built without.

use std::io;

use tokio::net::TcpStream;

use super::explained::Explained;

/// There is none.
#[derive(Clone)]
pub(super) enum Tls {}

impl Tls {
    pub(super) fn new() -> Result<Self, String> {
        Err("the scheme `rediss` is TLS, without which axum-cluster was built: enable its feature `tls-ring` or \
             `tls-aws-lc`"
            .into())
    }

    pub(super) fn trust(&mut self, _pem: &[u8]) -> Result<(), String> {
        match *self {}
    }

    pub(super) fn identify(&mut self, _chain: &[u8], _key: &[u8]) -> Result<(), String> {
        match *self {}
    }

    pub(super) fn call(&mut self, _name: &str) -> Result<(), String> {
        match *self {}
    }

    pub(super) async fn secure(
        &self,
        _host: &str,
        _stream: TcpStream,
    ) -> io::Result<Explained<TcpStream>> {
        match *self {}
    }
}
