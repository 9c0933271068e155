//! Small changes to bytes, the same in every run: for the seconds that a test has, and for who has no
//! fuzzer at hand.

/// A sequence of numbers that looks like none (xorshift, Marsaglia 2003).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap_or(0).checked_rem(bound).unwrap_or(0)
    }
}

/// What breaks readers of text.
const WORDS: [&[u8]; 16] = [
    b"",
    b"\0",
    b"\n",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"..",
    b"/etc/passwd",
    b"\"",
    b"{",
    b"[[[[[[[[[[[[[[[[",
    b"\xff\xfe",
    b"=",
    b"bystander",
    b"@STATE@/bystander/rw",
];

/// `seed`, changed in one to four places, perhaps with a piece of `other` in it.
pub fn mutate(dice: &mut Dice, seed: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        let end = (at + dice.below(24)).min(bytes.len());
        match dice.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
            1 if at < bytes.len() => bytes[at] = u8::try_from(dice.below(256)).unwrap_or(0),
            2 => drop(bytes.splice(at..end, WORDS[dice.below(WORDS.len())].iter().copied())),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let piece = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            5 => bytes.truncate(at),
            _ => {
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                drop(bytes.splice(at..end, other[from..to].iter().copied()));
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_changes() {
        let change = |seed| {
            let mut dice = Dice::new(seed);
            (0..100).map(|_| mutate(&mut dice, b"some bytes", b"and others")).collect::<Vec<_>>()
        };
        assert_eq!(change(7), change(7));
        assert_ne!(change(7), change(8));
        assert!(change(7).iter().filter(|bytes| *bytes != b"some bytes").count() > 80);
    }
}
