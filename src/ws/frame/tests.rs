//! Compressed messages, written and read.

use http::HeaderMap;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::compression::Compression;

const LIMIT: usize = 1024 * 1024;

fn deflating() -> Deflating {
    Compression::default().min_size(1).into()
}

/// What is answered to an offer.
fn agreed(offer: &str) -> Agreed {
    let mut headers = HeaderMap::new();
    let offer = offer.parse().expect("a header");
    headers.append("sec-websocket-extensions", offer);
    deflating().agree(&headers)
}

fn all() -> Agreed {
    let agreed = agreed("permessage-deflate");
    assert!(agreed.inflates(), "control");
    agreed
}

/// A frame with a mask of zeros.
fn client(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Frame::new(first & 0x0f, &[payload]).as_bytes().to_vec();
    frame[0] = first;
    frame[1] |= MASKED;
    let header = frame.len() - payload.len();
    frame.splice(header..header, [0; 4]);
    frame
}

/// All that is heard when the input comes in these pieces, in as many turns as that takes.
fn hear_with(
    agreed: Agreed,
    limit: usize,
    input: &[u8],
    cuts: &[usize],
) -> (Vec<Heard>, Option<Violation>) {
    let mut decoder = Decoder::default();
    let (mut heard, mut start) = (Vec::new(), 0);
    for end in cuts.iter().copied().chain([input.len()]) {
        let mut piece = input[start..end].to_vec();
        while !piece.is_empty() {
            let mut allowance = Allowance::of(agreed, limit);
            let mut rest = &mut piece[..];
            while !rest.is_empty() && allowance.left() > 0 {
                match decoder.decode(rest, &mut allowance) {
                    Ok((used, said)) => {
                        heard.extend(said);
                        rest = &mut rest[used..];
                    }
                    Err(violation) => return (heard, Some(violation)),
                }
            }
            decoder.leave(rest);
            piece = decoder.take_left();
        }
        start = end;
    }
    (heard, None)
}

fn hear(input: &[u8]) -> (Vec<Heard>, Option<Violation>) {
    hear_with(all(), LIMIT, input, &[])
}

/// The payload of a compressed frame of this message.
fn deflated(message: &Message) -> Option<Vec<u8>> {
    let framed = Framed::new(Frame::message(message), Form::Any, deflating());
    let frame = framed.of(all());
    frame.is_deflated().then(|| frame.payload().to_vec())
}

fn repetitive() -> impl Strategy<Value = Vec<u8>> {
    (
        vec(any::<u8>(), 1..60),
        1..400usize,
        vec(any::<u8>(), 0..200),
    )
        .prop_map(|(word, times, end)| [word.repeat(times), end].concat())
}

proptest! {
    /// What one side compresses the other reads, in any fragments, with pings between, from any pieces.
    #[test]
    fn any_message_inflates_to_itself(
        bytes in repetitive(),
        is_text: bool,
        mut ends in vec(any::<prop::sample::Index>(), 0..5),
        cuts in vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let message = match is_text {
            true => Message::from(String::from_utf8_lossy(&bytes).into_owned()),
            false => Message::from(bytes),
        };
        let payload = deflated(&message);
        prop_assume!(payload.is_some());
        let payload = payload.unwrap();
        let mut ends: Vec<usize> = ends.drain(..).map(|end| end.index(payload.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(payload.len());
        let (mut input, mut expected, mut start) = (Vec::new(), Vec::new(), 0);
        for (n, end) in ends.iter().enumerate() {
            let opcode = match (n, is_text) {
                (0, true) => DEFLATED | TEXT,
                (0, false) => DEFLATED | BINARY,
                _ => CONTINUATION,
            };
            let is_last = n + 1 == ends.len();
            input.extend(client(opcode | if is_last { FIN } else { 0 }, &payload[start..*end]));
            start = *end;
            if !is_last {
                input.extend(client(FIN | PING, b"between"));
                expected.push(Heard::Ping(b"between".to_vec()));
            }
        }
        expected.push(Heard::Message(message));
        // And one that is not compressed.
        input.extend(client(FIN | TEXT, b"plain"));
        expected.push(Heard::Message("plain".into()));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len())).collect();
        cuts.sort_unstable();
        prop_assert_eq!(hear_with(all(), LIMIT, &input, &cuts), (expected, None));
    }

    #[test]
    fn any_bytes_are_inflated_or_refused_never_a_panic(bytes: Vec<u8>, cut: prop::sample::Index) {
        let input = client(DEFLATED | FIN | BINARY, &bytes);
        let cut = cut.index(input.len());
        prop_assert_eq!(hear_with(all(), 5_000, &input, &[cut]), hear_with(all(), 5_000, &input, &[]));
    }
}

/// The examples of RFC 7692, section 7.2.3.
#[test]
fn the_examples_of_the_rfc_are_read() {
    let hello = || (vec![Heard::Message("Hello".into())], None);
    for payload in [
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
        // A block that is not compressed.
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
        // A last block.
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        // Two blocks.
        &[
            0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
        ],
    ] {
        assert_eq!(hear(&client(DEFLATED | FIN | TEXT, payload)), hello());
    }
    let mut fragments = client(DEFLATED | TEXT, &[0xf2, 0x48, 0xcd]);
    fragments.extend(client(FIN | CONTINUATION, &[0xc9, 0xc9, 0x07, 0x00]));
    assert_eq!(hear(&fragments), hello());
    // Nothing is remembered: what refers to the message before does not find it.
    fragments.extend(client(
        DEFLATED | FIN | TEXT,
        &[0xf2, 0x00, 0x11, 0x00, 0x00],
    ));
    let (heard, _) = hear(&fragments);
    assert_ne!(heard.get(1), Some(&Heard::Message("Hello".into())));
}

#[test]
fn an_empty_message_and_one_that_ends_with_an_empty_frame_are_read() {
    assert_eq!(
        hear(&client(DEFLATED | FIN | TEXT, &[0])),
        (vec![Heard::Message("".into())], None)
    );
    assert_eq!(
        hear(&client(DEFLATED | FIN | TEXT, &[])),
        (vec![Heard::Message("".into())], None)
    );
    let mut input = client(DEFLATED | TEXT, &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00]);
    input.extend(client(FIN | CONTINUATION, &[]));
    assert_eq!(hear(&input), (vec![Heard::Message("Hello".into())], None));
}

#[test]
fn what_may_not_be_compressed_is_a_breach() {
    let breach = (vec![], Some(Violation::Protocol));
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let message = client(DEFLATED | FIN | TEXT, &hello);
    assert_eq!(
        hear_with(Agreed::NOTHING, LIMIT, &message, &[]),
        breach,
        "it was not agreed on"
    );
    for first in [FIN | PING, FIN | PONG, FIN | CLOSE] {
        assert_eq!(
            hear(&client(DEFLATED | first, &[])),
            breach,
            "a control frame"
        );
    }
    let mut late = client(TEXT, b"plain");
    late.extend(client(DEFLATED | FIN | CONTINUATION, &hello));
    assert_eq!(hear(&late), breach, "not the first frame");
    let mut twice = client(DEFLATED | TEXT, &hello);
    twice.extend(client(DEFLATED | FIN | CONTINUATION, &hello));
    assert_eq!(hear(&twice), breach, "the first alone says so");
    for bit in [0x20, 0x10] {
        assert_eq!(
            hear(&client(bit | DEFLATED | FIN | TEXT, &hello)),
            breach,
            "another bit"
        );
    }
}

#[test]
fn what_is_broken_and_bad_text_are_refused_as_soon_as_they_are_certain() {
    let broken = client(DEFLATED | BINARY, &[0xff; 8]);
    assert_eq!(hear(&broken), (vec![], Some(Violation::NotDeflate)));
    let text = [b"ok ".repeat(100), b"\xff".to_vec(), b"ok ".repeat(100)].concat();
    let payload = deflated(&Message::from(text)).unwrap();
    let begun = client(DEFLATED | TEXT, &payload);
    assert_eq!(
        hear(&begun),
        (vec![], Some(Violation::NotUtf8)),
        "before its end"
    );
    let binary = client(DEFLATED | FIN | BINARY, &payload);
    assert_eq!(hear(&binary).0.len(), 1, "control");
}

/// A MiB of zeros as one part of a stream, that may be repeated.
fn megabyte() -> Vec<u8> {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), false);
    let mut part = Vec::with_capacity(1 << 16);
    compress
        .compress_vec(&vec![0; 1 << 20], &mut part, flate2::FlushCompress::Full)
        .expect("there is room");
    assert!(part.len() < 1 << 11, "control: {}", part.len());
    part
}

/// As much of it as was inflated when it is refused, and the memory that this took.
fn largest_of_a_bomb(limit: usize) -> (usize, usize) {
    let part = megabyte();
    let mut decoder = Decoder::default();
    let mut first = DEFLATED | BINARY;
    // 10 GiB.
    for _ in 0..10 * 1024 {
        let mut frame = client(first, &part);
        let mut rest = &mut frame[..];
        while !rest.is_empty() {
            let before = decoder.begun_data();
            match decoder.decode(rest, &mut Allowance::of(all(), limit)) {
                Ok((used, _)) => rest = &mut rest[used..],
                Err(violation) => {
                    assert_eq!(violation, Violation::TooBig);
                    return before;
                }
            }
            let (length, capacity) = decoder.begun_data();
            let limit = limit.min(64 << 20);
            assert!(
                length <= limit && capacity <= limit + 1,
                "{length}, {capacity}"
            );
        }
        first = CONTINUATION;
    }
    panic!("10 GiB were taken");
}

#[test]
fn a_bomb_takes_no_more_than_a_message_may() {
    let limit = 1_000_000;
    let (length, capacity) = largest_of_a_bomb(limit);
    assert!(
        length > limit / 2 && capacity <= limit + 1,
        "{length}, {capacity}"
    );
}

#[test]
fn where_messages_may_be_huge_a_bomb_is_known_by_its_ratio() {
    let (length, _) = largest_of_a_bomb(1 << 40);
    assert!(length < 1 << 22, "{length}");
}

#[test]
fn a_few_bytes_are_not_worked_off_in_one_turn() {
    let part = megabyte();
    // The same for many streams, one after the other, which inflate to nothing.
    let streams = [0x03, 0x00].repeat(30_000);
    for payload in [&part, &streams] {
        let mut input = client(DEFLATED | FIN | BINARY, payload);
        let mut decoder = Decoder::default();
        let mut allowance = Allowance::of(all(), 2 << 20);
        let (used, heard) = decoder.decode(&mut input, &mut allowance).unwrap();
        assert_eq!((heard, allowance.left()), (None, 0));
        assert!(used < input.len() / 2, "{used}");
        let (length, _) = decoder.begun_data();
        assert!(length <= 800 * 1024, "{length}");
        assert_eq!(
            hear_with(
                all(),
                2 << 20,
                &client(DEFLATED | FIN | BINARY, payload),
                &[]
            )
            .0
            .len(),
            1
        );
    }
}

#[test]
fn a_compressed_form_that_is_longer_than_its_message_is_refused_by_its_header() {
    let endless = vec![0x82 | DEFLATED, 0xff, 0, 0, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0];
    assert_eq!(hear(&endless), (vec![], Some(Violation::TooBig)));
    // Empty blocks without end.
    let mut input = client(
        DEFLATED | BINARY,
        &[0x00, 0x00, 0x00, 0xff, 0xff].repeat(13_000),
    );
    for _ in 0..30 {
        input.extend(client(
            CONTINUATION,
            &[0x00, 0x00, 0x00, 0xff, 0xff].repeat(13_000),
        ));
    }
    assert_eq!(hear(&input), (vec![], Some(Violation::TooBig)));
}

#[test]
fn nothing_is_there_between_compressed_messages() {
    let mut decoder = Decoder::default();
    let mut input = client(
        DEFLATED | FIN | TEXT,
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
    );
    assert!(
        decoder
            .decode(&mut input, &mut Allowance::of(all(), LIMIT))
            .unwrap()
            .1
            .is_some()
    );
    assert!(decoder.is_idle());
}

#[test]
fn a_message_is_compressed_once_for_all_who_take_it() {
    let text = "the same again and again, ".repeat(40);
    let framed = |form, deflating| Framed::new(Frame::text(&text), form, deflating);
    let shared = framed(Form::Any, deflating());
    assert!(!shared.was_deflated(), "not before somebody takes it");
    assert_eq!(shared.of(Agreed::NOTHING), &Frame::text(&text));
    assert!(!shared.was_deflated());
    let [first, second] = [shared.of(all()), shared.of(all())];
    assert!(std::ptr::eq(first.as_bytes(), second.as_bytes()));
    assert!(first.is_deflated() && shared.was_deflated());
    assert_eq!(
        shared.saved_by(first),
        Frame::text(&text).len() - first.len()
    );
    let small = agreed("permessage-deflate; server_max_window_bits=9");
    assert!(text.len() > 512 && !shared.of(small).is_deflated());
    assert!(
        Framed::new(Frame::text(&text[..512]), Form::Any, deflating())
            .of(small)
            .is_deflated()
    );

    for (what, framed) in [
        ("a secret", framed(Form::Plain, deflating())),
        ("no compression", framed(Form::Any, Deflating::OFF)),
        (
            "small",
            framed(
                Form::Any,
                Compression::default().min_size(text.len() + 1).into(),
            ),
        ),
    ] {
        assert!(!framed.of(all()).is_deflated(), "{what}");
        assert!(!framed.was_deflated(), "{what}");
    }
}

#[test]
fn what_gets_no_smaller_and_what_is_told_apart_goes_as_it_is() {
    let random: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
        .take(1000)
        .collect();
    let huge = "a".repeat((1 << 20) + 1);
    let marked = format!("{MARK}{}", "a".repeat(1000));
    for message in [
        Message::from(random),
        Message::from(huge),
        Message::from(marked.clone()),
        Message::from(""),
    ] {
        let frame = Frame::message(&message);
        let framed = Framed::new(frame.clone(), Form::Any, deflating());
        assert_eq!(framed.of(all()), &frame, "{message:?}");
    }
    assert!(
        deflated(&Message::from(marked.into_bytes())).is_some(),
        "control"
    );
    let largest = Message::from("a".repeat(1 << 20));
    assert!(deflated(&largest).is_some(), "control");
}

#[test]
fn all_levels_write_what_can_be_read() {
    let text =
        serde_json::json!({ "orders": (0..99).map(|n| n * n).collect::<Vec<u64>>() }).to_string();
    let mut sizes = Vec::new();
    for level in 1..=9 {
        let deflating = Deflating::from(Compression::default().level(level));
        let framed = Framed::new(Frame::text(&text), Form::Any, deflating);
        let frame = framed.of(all());
        let payload = frame.payload();
        sizes.push(payload.len());
        let heard = hear(&client(DEFLATED | FIN | TEXT, payload));
        assert_eq!(
            heard,
            (vec![Heard::Message(text.as_str().into())], None),
            "{level}"
        );
    }
    assert!(sizes.iter().all(|size| *size < text.len()), "{sizes:?}");
}
