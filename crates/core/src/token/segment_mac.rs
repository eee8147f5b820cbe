//! The MAC of a segment of a checkpoint: what a verifier has written of its index is its own, whole and in order.

use super::{PepperId, Peppers};

const DOMAIN: &[u8] = b"tokenward/checkpoint/v1";

/// A segment, and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The header of the checkpoint, which no other one has.
    pub header: &'a [u8],
    /// Counted from 0.
    pub number: u64,
    pub is_last: bool,
    pub body: &'a [u8],
}

impl Segment<'_> {
    /// The MAC under a pepper. `None`: there is no pepper of this id.
    pub fn mac(&self, peppers: &Peppers, pepper: &PepperId) -> Option<[u8; 32]> {
        let (number, is_last) = (self.number.to_be_bytes(), [u8::from(self.is_last)]);
        peppers.mac(pepper, DOMAIN, &[self.header, &number, &is_last, self.body])
    }

    /// Whether `mac` is the MAC under any of the peppers, in constant time.
    pub fn verify(&self, peppers: &Peppers, mac: &[u8; 32]) -> bool {
        let (number, is_last) = (self.number.to_be_bytes(), [u8::from(self.is_last)]);
        peppers.verify_mac(DOMAIN, &[self.header, &number, &is_last, self.body], mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_authenticates_a_segment_and_its_place() {
        let peppers = |byte| Peppers::from_data(&Peppers::new_data(&[byte; 32])).expect("peppers");
        let segment = Segment { header: b"ab", number: 1, is_last: false, body: b"c" };
        let mac = segment.mac(&peppers(1), &peppers(1).current()).expect("a MAC");
        assert!(segment.verify(&peppers(1), &mac));
        assert!(!segment.verify(&peppers(2), &mac));
        assert_eq!(segment.mac(&peppers(1), &peppers(2).current()), None);
        for other in [
            Segment { header: b"a", body: b"bc", ..segment },
            Segment { number: 2, ..segment },
            Segment { is_last: true, ..segment },
            Segment { body: b"d", ..segment },
        ] {
            assert!(!other.verify(&peppers(1), &mac), "{other:?}");
        }
    }
}
