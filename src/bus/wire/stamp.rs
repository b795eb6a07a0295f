//! What stands before an envelope whose partition has moved from one primary to another: how often anything had, as its
//! node saw it when it published. See [`Eras`](crate::bus::eras::Eras).

use std::num::NonZeroU32;

use super::Garbage;

/// Where one stands, an envelope is that much longer.
pub(crate) const STAMP: usize = 5;

/// The first byte of a stamped envelope, in place of a version.
const STAMPED: u8 = 0;

pub(crate) fn stamp(era: NonZeroU32) -> [u8; STAMP] {
    let [a, b, c, d] = era.get().to_be_bytes();
    [STAMPED, a, b, c, d]
}

/// The era, 0 where none stands there, and the envelope.
pub(crate) fn unstamped(bytes: &[u8]) -> Result<(u32, &[u8]), Garbage> {
    match bytes {
        [STAMPED, rest @ ..] => {
            let (era, envelope) = rest.split_first_chunk().ok_or(Garbage)?;
            Ok((u32::from_be_bytes(*era), envelope))
        }
        envelope => Ok((0, envelope)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_stamped_is_read(era: NonZeroU32, envelope in "[1{].{0,20}") {
            let stamped = [&stamp(era)[..], envelope.as_bytes()].concat();
            prop_assert_eq!(unstamped(&stamped), Ok((era.get(), envelope.as_bytes())));
            prop_assert_eq!(unstamped(envelope.as_bytes()), Ok((0, envelope.as_bytes())));
            for cut in 1..STAMP {
                prop_assert_eq!(unstamped(&stamped[..cut]), Err(Garbage));
            }
        }
    }

    /// Byte for byte, as all that nodes say to one another.
    #[test]
    fn the_bytes_of_this_version_stay() {
        assert_eq!(
            stamp(NonZeroU32::new(0x0102_0304).unwrap()),
            [0, 1, 2, 3, 4]
        );
        assert_eq!(unstamped(b""), Ok((0, &b""[..])));
    }
}
