//! Frames from the client's side, by the code of the server's: a mask is all that differs (RFC 6455, section 5.3).

use bytes::{Buf, BytesMut};

use crate::ws::Agreed;
use crate::ws::frame::{Allowance, Decoder, Frame, Heard};

const MASKED: u8 = 0x80;

/// As a client sends it.
pub(super) fn masked(frame: &Frame) -> Vec<u8> {
    let frame = frame.as_bytes();
    let (header, payload) = frame.split_at(header_length(frame[1]));
    let mask = fastrand::u32(..).to_ne_bytes();
    let mut masked = header.to_vec();
    masked[1] |= MASKED;
    masked.extend(mask);
    let payload = payload.iter().zip(mask.iter().cycle());
    masked.extend(payload.map(|(byte, mask)| byte ^ mask));
    masked
}

/// Reads a server's frames: with a mask of zeros they are a client's.
#[derive(Debug)]
pub(super) struct FrameReader {
    pub(super) buffer: BytesMut,
    decoder: Decoder,
}

impl FrameReader {
    pub(super) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
        }
    }

    /// The next thing that was said, if all of it is here; an error is what the server did wrong.
    pub(super) fn next(&mut self) -> Result<Option<Heard>, String> {
        while let Some(mut frame) = self.take_frame()? {
            let (_, heard) = self
                .decoder
                .decode(&mut frame, &mut Allowance::of(Agreed::NOTHING, usize::MAX))
                .map_err(|violation| violation.close().to_string())?;
            if heard.is_some() {
                return Ok(heard);
            }
        }
        Ok(None)
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(second) = self.buffer.get(1).copied() else {
            return Ok(None);
        };
        if second & MASKED != 0 {
            return Err("a server must not mask its frames".to_owned());
        }
        let header = header_length(second);
        let Some(length) = self.buffer.get(2..header) else {
            return Ok(None);
        };
        let length = match length {
            [] => usize::from(second),
            bytes => bytes
                .iter()
                .fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        if self.buffer.len() - header < length {
            return Ok(None);
        }
        let mut frame = self.buffer[..header].to_vec();
        frame[1] |= MASKED;
        frame.extend([0; 4]);
        frame.extend(&self.buffer[header..header + length]);
        self.buffer.advance(header + length);
        Ok(Some(frame))
    }
}

/// Of a frame without a mask, by its second byte.
fn header_length(second: u8) -> usize {
    match second & !MASKED {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::close::Close;
    use crate::model::message::Message;

    proptest! {
        /// What either side writes the other reads, whatever its length and however it is cut.
        #[test]
        fn both_sides_understand_each_other(
            lengths in proptest::collection::vec(prop_oneof![0..200usize, 65_500..65_600usize], 1..4),
            cut in 1usize..5000,
        ) {
            let messages = lengths.iter().map(|length| Message::Binary(Bytes::from(vec![7; *length])));
            let messages: Vec<Message> = messages.collect();
            let close = Close::new(4001, "out");
            let frames = messages.iter().map(Frame::message).chain([Frame::close(&close)]);
            let frames: Vec<Frame> = frames.collect();
            let mut expected: Vec<Heard> = messages.into_iter().map(Heard::Message).collect();
            expected.push(Heard::Close(close));

            let mut reader = FrameReader::new();
            let mut heard = Vec::new();
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.as_bytes().to_vec()).collect();
            for piece in bytes.chunks(cut) {
                reader.buffer.extend_from_slice(piece);
                while let Some(said) = reader.next().unwrap() {
                    heard.push(said);
                }
            }
            prop_assert_eq!(&heard, &expected);

            let mut server = Decoder::default();
            let mut heard = Vec::new();
            for frame in &frames {
                let mut bytes = masked(frame);
                let (used, said) = server.decode(&mut bytes, &mut Allowance::of(Agreed::NOTHING, usize::MAX)).unwrap();
                prop_assert_eq!(used, bytes.len());
                heard.extend(said);
            }
            prop_assert_eq!(heard, expected);
        }
    }

    #[test]
    fn a_masked_frame_is_the_server_s_mistake() {
        let mut reader = FrameReader::new();
        reader.buffer.extend_from_slice(&masked(&Frame::ping()));
        assert!(reader.next().is_err());
    }
}
