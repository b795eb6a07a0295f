//! What a client offers: RFC 6455, section 9.1, and RFC 7692, sections 5 and 7.1.

use http::HeaderMap;
use http::header::SEC_WEBSOCKET_EXTENSIONS;

use super::Agreed;

/// Accepts the first offer that can be kept. One that makes no sense is declined, and the socket goes without.
pub(super) fn accept(headers: &HeaderMap) -> Agreed {
    let values = headers
        .get_all(SEC_WEBSOCKET_EXTENSIONS)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let mut offers = values.flat_map(|value| value.split(','));
    offers.find_map(read).unwrap_or(Agreed::NOTHING)
}

fn read(offer: &str) -> Option<Agreed> {
    let mut parts = offer.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case("permessage-deflate") {
        return None;
    }
    let (mut seen, mut server_bits) = ([false; PARAMETERS.len()], None);
    for part in parts {
        let (name, value) = match part.split_once('=') {
            None => (part, None),
            Some((name, value)) => (name.trim_end(), Some(unquoted(value.trim_start())?)),
        };
        let known = PARAMETERS.iter().position(|known| *known == name)?;
        if std::mem::replace(&mut seen[known], true) {
            return None;
        }
        match (name, value) {
            // Both are answered anyway.
            ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
            ("server_max_window_bits", Some(bits)) => server_bits = Some(window(bits)?),
            // What a client may say beside is its own affair: any window can be inflated here.
            ("client_max_window_bits", None) => {}
            ("client_max_window_bits", Some(bits)) => _ = window(bits)?,
            _ => return None,
        }
    }
    Some(Agreed::new(server_bits))
}

/// A value, or what is in its quotes; what needed to be escaped there would be no token.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        None => Some(value),
        Some(rest) => rest.strip_suffix('"'),
    }
}

/// 8 to 15, without a zero before it (section 7.1.2.1).
fn window(bits: &str) -> Option<u8> {
    let is_written_so = !bits.starts_with('0') && bits.bytes().all(|byte| byte.is_ascii_digit());
    let bits = bits.parse().ok().filter(|_| is_written_so);
    bits.filter(|bits| (8..=15).contains(bits))
}

/// Those of section 7.1; an offer with any other is declined.
const PARAMETERS: [&str; 4] = [
    "server_no_context_takeover",
    "client_no_context_takeover",
    "server_max_window_bits",
    "client_max_window_bits",
];

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn answered(offers: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for offer in offers {
            let value = HeaderValue::from_str(offer).unwrap();
            headers.append(SEC_WEBSOCKET_EXTENSIONS, value);
        }
        let answer = accept(&headers).header()?;
        let answer = answer.to_str().unwrap();
        let start = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        Some(answer.strip_prefix(start).unwrap().to_owned())
    }

    #[test]
    fn what_can_be_kept_is_accepted() {
        for (offer, more) in [
            ("permessage-deflate", ""),
            ("Permessage-Deflate", ""),
            ("permessage-deflate; client_max_window_bits", ""),
            ("permessage-deflate;client_max_window_bits=8", ""),
            ("permessage-deflate; client_max_window_bits=\"15\"", ""),
            ("permessage-deflate; server_no_context_takeover", ""),
            (
                "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
                "",
            ),
            (
                "permessage-deflate; server_max_window_bits=15",
                "; server_max_window_bits=15",
            ),
            (
                "permessage-deflate; server_max_window_bits = \"9\"",
                "; server_max_window_bits=9",
            ),
            (
                "permessage-deflate; server_max_window_bits=8; client_max_window_bits=10",
                "; server_max_window_bits=8",
            ),
            ("x-webkit-deflate-frame, permessage-deflate", ""),
            ("permessage-bzip2; level=9,permessage-deflate", ""),
        ] {
            assert_eq!(answered(&[offer]).as_deref(), Some(more), "{offer}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_declined() {
        for offer in [
            "",
            ",",
            ";",
            "permessage-deflates",
            "permessage-deflate;",
            "permessage-deflate; ",
            "permessage-deflate; level=9",
            "permessage-deflate; Server_no_context_takeover",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=999",
            "permessage-deflate; server_max_window_bits=\"9",
            "permessage-deflate; server_max_window_bits=\"1,0\"",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        ] {
            assert_eq!(answered(&[offer]), None, "{offer}");
        }
        assert_eq!(answered(&[]), None);
    }

    #[test]
    fn several_offers_are_tried_in_their_order() {
        let small = "permessage-deflate; server_max_window_bits=10";
        let wrong = "permessage-deflate; server_max_window_bits=77";
        let plain = "permessage-deflate";
        let together = [wrong, small, plain].join(", ");
        let named = Some("; server_max_window_bits=10".to_owned());
        assert_eq!(answered(&[&together]), named);
        assert_eq!(answered(&[wrong, small, plain]), named);
        assert_eq!(answered(&[plain, small]).as_deref(), Some(""));
    }

    #[test]
    fn a_small_window_gets_what_fits_into_it() {
        let small = Agreed::new(Some(9));
        assert!(small.inflates() && small.takes(512) && !small.takes(513));
        let whole = Agreed::new(None);
        assert!(whole.inflates() && whole.takes(usize::MAX));
        assert_eq!(
            Agreed::new(Some(15)).takes(usize::MAX),
            whole.takes(usize::MAX)
        );
        assert!(!Agreed::NOTHING.inflates() && !Agreed::NOTHING.takes(0));
        assert_eq!(std::mem::size_of::<Agreed>(), 2);
    }
}
