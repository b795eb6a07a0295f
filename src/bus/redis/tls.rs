//! TLS: whom to believe, who we are, and by whose cryptography.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
#[cfg(feature = "tls-aws-lc")]
use tokio_rustls::rustls::crypto::aws_lc_rs as provider;
#[cfg(not(feature = "tls-aws-lc"))]
use tokio_rustls::rustls::crypto::ring as provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore,
};

use super::explained::{Explained, explain, is_end};

/// The longest that a handshake may take: two round trips of 2 s, so that whoever asks hears of it within its own 5 s. A
/// port that speaks plainly often waits for the end of the line.
const HANDSHAKE: Duration = Duration::from_secs(4);

const MAYBE_PLAIN: &str = "does this port speak TLS? A plain one is named as redis://, redis-sentinel:// or redis-cluster://, \
     sentinels alone by sentinelTls=false";
const UNBELIEVED: &str =
    "its authority is not believed: name it by Redis::root_certificates or SSL_CERT_FILE";
const MISNAMED: &str =
    "the certificate is for another name: write that in the URL, or give it to Redis::server_name";
const OUTDATED: &str = "renew the server's certificate, or set the clocks right";
const UNUSABLE: &str = "have the server's certificate issued anew";
const UNACCEPTED: &str = "it may want a certificate, or another one, by Redis::client_certificate";

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
    ) -> io::Result<Explained<TlsStream<TcpStream>>> {
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
        let connector = connector.await?;
        match timeout(HANDSHAKE, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Explained::by(stream, fix)),
            Ok(Err(error)) if is_end(&error) => Err(explain(error, Some(MAYBE_PLAIN))),
            Ok(Err(error)) => {
                let fix = fix(&error, false);
                Err(explain(error, fix))
            }
            Err(_) => {
                let late = "it does not answer the TLS handshake in time";
                let late = io::Error::new(io::ErrorKind::TimedOut, late);
                Err(explain(late, Some(MAYBE_PLAIN)))
            }
        }
    }
}

/// What to do about a failure. That what we show is not accepted is told behind the handshake, by an alert, which is lost
/// where what we say meets the end before.
fn fix(error: &io::Error, is_unheard: bool) -> Option<&'static str> {
    let said = error.get_ref().and_then(|said| said.downcast_ref());
    match said {
        Some(Error::InvalidMessage(_)) => Some(MAYBE_PLAIN),
        Some(Error::InvalidCertificate(why)) => Some(match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => UNBELIEVED,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                MISNAMED
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => OUTDATED,
            _ => UNUSABLE,
        }),
        Some(Error::AlertReceived(alert)) => match alert {
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::AccessDenied
            | AlertDescription::UnknownCA => Some(UNACCEPTED),
            _ => None,
        },
        _ => (is_unheard && is_end(error)).then_some(UNACCEPTED),
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

#[cfg(test)]
mod tests {
    use futures::future::join;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// What becomes of a handshake with a server that does this.
    async fn refused(server: impl AsyncFnOnce(TcpStream) -> Option<TcpStream>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (accepted, _) = listener.accept().await.unwrap();
        let mut tls = Tls::new().unwrap();
        tls.roots = Some(Arc::new(RootCertStore::empty()));
        let securing = tls.secure("localhost", stream.unwrap());
        let (secured, _open) = join(securing, server(accepted)).await;
        secured.err().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_port_that_answers_plainly_or_ends_is_named_with_the_fix() {
        let answers = refused(async |mut stream| {
            let said = stream.write_all(b"-ERR unknown command\r\n").await;
            said.is_ok().then_some(stream)
        });
        let ends = refused(async |_| None);
        for reason in [answers.await, ends.await] {
            assert!(reason.contains(MAYBE_PLAIN), "{reason}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_silent_is_named_with_the_fix() {
        let reason = refused(async |stream| Some(stream)).await;
        assert!(reason.contains(MAYBE_PLAIN), "{reason}");
    }

    #[test]
    fn an_end_before_the_first_word_may_be_about_what_was_shown() {
        let end = io::Error::from(io::ErrorKind::ConnectionReset);
        let fixes = [true, false].map(|is_unheard| fix(&end, is_unheard));
        assert_eq!(fixes, [Some(UNACCEPTED), None]);
    }
}
