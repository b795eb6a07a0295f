//! The opening handshake, as rules: RFC 6455, section 4.2 (HTTP/1.1) and RFC 8441 (HTTP/2).

use std::fmt;

use axum_core::body::Body;
use axum_core::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use hyper::ext::Protocol;
use sha1::{Digest, Sha1};

use super::{Agreed, Deflating};

/// Appended to the client's key (RFC 6455, section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A handshake that may be answered.
#[derive(Debug)]
pub(crate) struct HandshakeAnswer {
    /// `Sec-WebSocket-Accept`; HTTP/2 has none.
    accept: Option<HeaderValue>,
    protocol: Option<HeaderValue>,
    agreed: Agreed,
}

/// Why a request is no WebSocket handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    MethodNotGet,
    MethodNotConnect,
    OldHttp,
    NoUpgrade,
    WrongVersion,
    BadKey,
}

/// Whether the request asks for a WebSocket at all.
pub(crate) fn is_wanted(parts: &Parts) -> bool {
    if parts.version <= Version::HTTP_11 {
        has_token(&parts.headers, &UPGRADE, "websocket")
    } else {
        parts
            .extensions
            .get::<Protocol>()
            .is_some_and(|protocol| protocol.as_str() == "websocket")
    }
}

impl HandshakeAnswer {
    pub(crate) fn check(parts: &Parts) -> Result<Self, HandshakeError> {
        let http1 = parts.version <= Version::HTTP_11;
        if http1 && parts.method != Method::GET {
            return Err(HandshakeError::MethodNotGet);
        }
        if !http1 && parts.method != Method::CONNECT {
            return Err(HandshakeError::MethodNotConnect);
        }
        if parts.version < Version::HTTP_11 {
            return Err(HandshakeError::OldHttp);
        }
        if !is_wanted(parts) || http1 && !has_token(&parts.headers, &CONNECTION, "upgrade") {
            return Err(HandshakeError::NoUpgrade);
        }
        let version = parts.headers.get(SEC_WEBSOCKET_VERSION);
        if version.is_none_or(|version| version != "13") {
            return Err(HandshakeError::WrongVersion);
        }
        let accept = match http1 {
            true => Some(accept(&parts.headers).ok_or(HandshakeError::BadKey)?),
            false => None,
        };
        Ok(Self {
            accept,
            protocol: None,
            agreed: Agreed::NOTHING,
        })
    }

    /// Chooses the first of the server's protocols that the client offers. What the client offers
    /// besides is never echoed: it may be a token.
    pub(crate) fn choose_protocol<'a>(
        &mut self,
        headers: &HeaderMap,
        known: impl IntoIterator<Item = &'a str>,
    ) {
        let chosen = known.into_iter().find(|known| {
            tokens(headers, &SEC_WEBSOCKET_PROTOCOL).any(|offered| offered == *known)
        });
        self.protocol = chosen.and_then(|chosen| HeaderValue::from_str(chosen).ok());
    }

    /// Accepts one of the compressions that the client offers, if any. Offers that make no sense are declined.
    pub(crate) fn agree(&mut self, headers: &HeaderMap, deflating: Deflating) {
        self.agreed = deflating.agree(headers);
    }

    /// How messages may be compressed.
    pub(crate) fn agreed(&self) -> Agreed {
        self.agreed
    }

    pub(crate) fn protocol(&self) -> Option<&str> {
        self.protocol.as_ref()?.to_str().ok()
    }

    /// The status that begins the upgrade; HTTP/2 answers a CONNECT with 200 (RFC 8441, section 5).
    pub(crate) fn status(&self) -> StatusCode {
        if self.accept.is_some() {
            StatusCode::SWITCHING_PROTOCOLS
        } else {
            StatusCode::OK
        }
    }

    /// The answer that begins the upgrade.
    pub(crate) fn response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        if let Some(agreed) = self.agreed.header() {
            headers.insert(SEC_WEBSOCKET_EXTENSIONS, agreed);
        }
        if let Some(accept) = self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

/// Whether a name can be a subprotocol: a token of RFC 9110, section 5.6.2.
pub(crate) fn is_token(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(allowed)
}

/// Answers the key, which must be 16 bytes in base64.
pub(crate) fn accept(headers: &HeaderMap) -> Option<HeaderValue> {
    let key = headers.get(SEC_WEBSOCKET_KEY)?.as_bytes();
    if BASE64_STANDARD.decode(key).ok()?.len() != 16 {
        return None;
    }
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    HeaderValue::from_str(&BASE64_STANDARD.encode(digest)).ok()
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// The comma-separated values of a header that may appear several times.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

impl HandshakeError {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::MethodNotGet | Self::MethodNotConnect => StatusCode::METHOD_NOT_ALLOWED,
            Self::OldHttp | Self::NoUpgrade | Self::WrongVersion => StatusCode::UPGRADE_REQUIRED,
            Self::BadKey => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MethodNotGet => "a WebSocket handshake must be a GET request",
            Self::MethodNotConnect => "a WebSocket handshake over HTTP/2 must be a CONNECT request",
            Self::OldHttp => {
                "a WebSocket needs HTTP/1.1, and this request came as HTTP/1.0: an nginx in front needs \
                 `proxy_http_version 1.1;`, and must hand `Upgrade` and `Connection` on"
            }
            Self::NoUpgrade => {
                "this is a WebSocket endpoint: `Connection: upgrade` and `Upgrade: websocket` are needed, \
                 and a proxy in front must hand them on"
            }
            Self::WrongVersion => "`Sec-WebSocket-Version` must be 13",
            Self::BadKey => "`Sec-WebSocket-Key` must be 16 bytes in base64",
        })
    }
}

impl IntoResponse for HandshakeError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), self.to_string()).into_response();
        let headers = response.headers_mut();
        match self {
            Self::OldHttp | Self::NoUpgrade | Self::WrongVersion => {
                headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::MethodNotGet => {
                headers.insert(http::header::ALLOW, HeaderValue::from_static("GET"));
            }
            Self::MethodNotConnect | Self::BadKey => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(method: Method, headers: &[(&'static str, &'static str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/ws");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    /// The good handshake with one header changed, or left out.
    fn changed(name: &str, value: &'static str) -> Result<HandshakeAnswer, HandshakeError> {
        let headers = GOOD.map(|(n, v)| (n, if n == name { value } else { v }));
        let headers: Vec<_> = headers.into_iter().filter(|(_, v)| !v.is_empty()).collect();
        HandshakeAnswer::check(&request(Method::GET, &headers))
    }

    #[test]
    fn the_example_of_the_rfc_is_answered_as_there() {
        let mut parts = request(Method::GET, &GOOD);
        parts.headers.append(
            "sec-websocket-protocol",
            HeaderValue::from_static("chat, bearer.secret"),
        );
        let mut handshake = HandshakeAnswer::check(&parts).unwrap();
        handshake.choose_protocol(&parts.headers, ["superchat", "chat"]);
        assert_eq!(handshake.protocol(), Some("chat"));
        let response = handshake.response();
        assert_eq!(response.status(), 101);
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    }

    #[test]
    fn a_protocol_nobody_offered_is_not_named() {
        let parts = request(Method::GET, &GOOD);
        let mut handshake = HandshakeAnswer::check(&parts).unwrap();
        handshake.choose_protocol(&parts.headers, ["chat"]);
        assert_eq!(handshake.protocol(), None);
        assert!(
            !handshake
                .response()
                .headers()
                .contains_key("sec-websocket-protocol")
        );
    }

    #[test]
    fn every_defect_has_its_status() {
        let status = |result: Result<HandshakeAnswer, HandshakeError>| {
            result.map_or_else(|error| error.into_response().status().as_u16(), |_| 101)
        };
        assert_eq!(status(changed("", "")), 101);
        for (name, value, expected) in [
            ("connection", "keep-alive", 426),
            ("connection", "", 426),
            ("upgrade", "h2c", 426),
            ("upgrade", "", 426),
            ("sec-websocket-version", "8", 426),
            ("sec-websocket-version", "", 426),
            ("sec-websocket-key", "c2hvcnQ=", 400),
            ("sec-websocket-key", "not base64!", 400),
            ("sec-websocket-key", "", 400),
        ] {
            assert_eq!(status(changed(name, value)), expected, "{name}: {value}");
        }
        assert_eq!(
            status(HandshakeAnswer::check(&request(Method::POST, &GOOD))),
            405
        );
        let mut old = request(Method::GET, &GOOD);
        old.version = Version::HTTP_10;
        assert_eq!(status(HandshakeAnswer::check(&old)), 426);
        let refusal = HandshakeError::WrongVersion.into_response();
        assert_eq!(refusal.headers()["sec-websocket-version"], "13");
    }

    #[test]
    fn http2_connects() {
        let mut parts = request(Method::CONNECT, &[("sec-websocket-version", "13")]);
        parts.version = Version::HTTP_2;
        assert_eq!(
            HandshakeAnswer::check(&parts).unwrap_err(),
            HandshakeError::NoUpgrade
        );
        parts.extensions.insert(Protocol::from_static("websocket"));
        assert_eq!(
            HandshakeAnswer::check(&parts).unwrap().response().status(),
            200
        );
        parts.method = Method::GET;
        assert_eq!(
            HandshakeAnswer::check(&parts).unwrap_err(),
            HandshakeError::MethodNotConnect
        );
    }
}
