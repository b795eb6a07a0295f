//! What a request to a dashboard is for.

use http::Method;
use percent_encoding::percent_decode_str;

use crate::model::id::{SocketId, UserId};

/// What somebody comes for.
#[derive(Debug, PartialEq)]
pub(super) enum Visit {
    Page,
    /// What happens, as it happens.
    Live,
    /// The sockets of a user.
    Devices(UserId),
    CloseUser(UserId),
    CloseSocket(SocketId),
}

/// Why it is for nothing that is here.
#[derive(Debug, PartialEq)]
pub(super) enum NoVisit {
    Unknown,
    /// The method that it takes.
    Method(&'static str),
    /// What the query had to be.
    Query(&'static str),
}

impl Visit {
    pub(super) fn of(method: &Method, path: &str, query: Option<&str>) -> Result<Self, NoVisit> {
        let query = query.unwrap_or_default();
        let reads = matches!(*method, Method::GET | Method::HEAD);
        match path {
            "" | "/" if reads => Ok(Self::Page),
            "/live" if *method == Method::GET => Ok(Self::Live),
            "/devices" if reads => {
                let user = named(query, "user").ok_or(NoVisit::Query("?user="))?;
                Ok(Self::Devices(user.into()))
            }
            "/close" if *method == Method::POST => {
                let wanted = NoVisit::Query("?user= or ?socket=");
                if let Some(user) = named(query, "user") {
                    return Ok(Self::CloseUser(user.into()));
                }
                let socket = named(query, "socket").and_then(|id| id.parse().ok());
                socket.map(Self::CloseSocket).ok_or(wanted)
            }
            "" | "/" | "/devices" => Err(NoVisit::Method("GET, HEAD")),
            "/live" => Err(NoVisit::Method("GET")),
            "/close" => Err(NoVisit::Method("POST")),
            _ => Err(NoVisit::Unknown),
        }
    }
}

/// The value of a query that has this name and no other.
fn named(query: &str, name: &str) -> Option<String> {
    let value = query.strip_prefix(name)?.strip_prefix('=')?;
    let value = value.split('&').next().filter(|it| *it == value)?;
    let decoded = percent_decode_str(value).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visit(method: Method, uri: &str) -> Result<Visit, NoVisit> {
        let (path, query) = match uri.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (uri, None),
        };
        Visit::of(&method, path, query)
    }

    #[test]
    fn every_view_and_action_has_its_path() {
        for (method, uri, wanted) in [
            (Method::GET, "/", Visit::Page),
            (Method::HEAD, "", Visit::Page),
            (Method::GET, "/live", Visit::Live),
            (
                Method::GET,
                "/devices?user=al%20ice%26+1",
                Visit::Devices("al ice&+1".into()),
            ),
            (
                Method::GET,
                "/devices?user=%3Cimg%20onerror%3E",
                Visit::Devices("<img onerror>".into()),
            ),
            (
                Method::POST,
                "/close?user=%C3%A9",
                Visit::CloseUser("\u{e9}".into()),
            ),
            (
                Method::POST,
                "/close?socket=0000000000000001-2",
                Visit::CloseSocket("0000000000000001-2".parse().unwrap()),
            ),
        ] {
            assert_eq!(visit(method, uri), Ok(wanted), "{uri}");
        }
    }

    #[test]
    fn whatever_else_comes_is_refused() {
        for (method, uri, refused) in [
            (Method::GET, "/other", NoVisit::Unknown),
            (Method::POST, "/", NoVisit::Method("GET, HEAD")),
            (Method::POST, "/live", NoVisit::Method("GET")),
            (Method::GET, "/close?user=a", NoVisit::Method("POST")),
            (
                Method::POST,
                "/devices?user=a",
                NoVisit::Method("GET, HEAD"),
            ),
            (Method::GET, "/devices", NoVisit::Query("?user=")),
            (Method::GET, "/devices?user=%ff", NoVisit::Query("?user=")),
            (
                Method::GET,
                "/devices?user=a&user=b",
                NoVisit::Query("?user="),
            ),
        ] {
            assert_eq!(visit(method, uri), Err(refused), "{uri}");
        }
        for query in [
            "",
            "?socket=1",
            "?user",
            "?user=a&socket=0000000000000001-2",
        ] {
            let refused = visit(Method::POST, &format!("/close{query}"));
            assert_eq!(
                refused,
                Err(NoVisit::Query("?user= or ?socket=")),
                "{query}"
            );
        }
    }
}
