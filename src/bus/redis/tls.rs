//! TLS: whom to believe, who we are, and by whose cryptography.

use std::io;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
#[cfg(feature = "tls-aws-lc")]
use tokio_rustls::rustls::crypto::aws_lc_rs as provider;
#[cfg(not(feature = "tls-aws-lc"))]
use tokio_rustls::rustls::crypto::ring as provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Says how a connection is made safe, once the first is opened.
#[derive(Clone, Default)]
pub(super) struct Tls {
    /// The system's, where none are given.
    roots: Option<Arc<RootCertStore>>,
    identity: Option<Arc<SingleCertAndKey>>,
    /// Whom a server has to be, whatever it is reached by.
    name: Option<ServerName<'static>>,
    connector: OnceCell<TlsConnector>,
}

impl Tls {
    pub(super) fn new() -> Result<Self, String> {
        Ok(Self::default())
    }

    /// Believes these authorities, and no others.
    pub(super) fn trust(&mut self, pem: &[u8]) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(pem)? {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
        self.roots = Some(Arc::new(roots));
        Ok(())
    }

    /// Shows this to who asks.
    pub(super) fn identify(&mut self, chain: &[u8], key: &[u8]) -> Result<(), String> {
        let chain = certificates(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            "there is no private key in it: PEM begins with -----BEGIN PRIVATE KEY-----".to_owned()
        })?;
        let pair = CertifiedKey::from_der(chain, key, &provider::default_provider());
        let pair = pair.map_err(|error| format!("certificate and key do not fit: {error}"))?;
        self.identity = Some(Arc::new(pair.into()));
        Ok(())
    }

    pub(super) fn call(&mut self, name: &str) -> Result<(), String> {
        let name = ServerName::try_from(name.to_owned());
        self.name = Some(name.map_err(|_| "it is neither a host name nor an IP address")?);
        Ok(())
    }

    /// Never falls back to plain.
    pub(super) async fn secure(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        // Reads files; only success is kept, since they may be there next time.
        let connector = self.connector.get_or_try_init(async || {
            let (roots, identity) = (self.roots.clone(), self.identity.clone());
            let made = spawn_blocking(move || connector(roots, identity)).await;
            made.map_err(io::Error::other)?.map_err(io::Error::other)
        });
        connector.await?.connect(name, stream).await
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => {
            Err("there is no certificate in it: PEM begins with -----BEGIN CERTIFICATE-----".into())
        }
    }
}

/// The provider is named, since rustls panics when a program brings none or two of its own.
fn connector(
    roots: Option<Arc<RootCertStore>>,
    identity: Option<Arc<SingleCertAndKey>>,
) -> Result<TlsConnector, String> {
    let roots = match roots {
        Some(roots) => roots,
        None => Arc::new(of_the_system()?),
    };
    let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match identity {
        Some(identity) => config.with_client_cert_resolver(identity),
        None => config.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

fn of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(
            "no trusted certificates on this system: install ca-certificates or set SSL_CERT_FILE"
                .into(),
        ),
        _ => Ok(roots),
    }
}
