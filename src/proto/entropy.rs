//! The only source of randomness in the pure core.

use rand::rngs::ChaCha12Rng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Randomness as an input: the same seed replays the same branches, tags, nonces and jitter
///
/// ChaCha12 by name, so that a seed written down with a bug report still replays after an upgrade of `rand`.
pub struct Entropy(ChaCha12Rng);

impl Entropy {
    /// A source that yields the same values for the same `seed`.
    ///
    /// A program takes the seed from the operating system (the agent does); a test writes it down.
    #[must_use]
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha12Rng::from_seed(seed))
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }

    /// A random 32-bit number.
    pub fn u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A random 64-bit number.
    pub fn u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from `low` up to `high`, evenly spread.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        // 53 random bits are what an f64 can hold.
        let unit = (self.u64() >> 11) as f64 / (1u64 << 53) as f64;
        low + (high - low) * unit
    }

    /// A whole number from 0 up to but not including `below`; 0 where `below` is 0.
    pub fn below(&mut self, below: u64) -> u64 {
        // The bias of the remainder is below 2^-32 for everything that is drawn here.
        if below == 0 { 0 } else { self.u64() % below }
    }

    /// A duration from nothing up to `longest`, evenly spread.
    pub fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.between(0.0, 1.0))
    }

    /// `bytes` random bytes as lower-case hexadecimal text.
    pub fn hex(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes * 2);
        for _ in 0..bytes {
            let byte = self.u32() as u8;
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        text
    }

    /// `count` random lower-case letters, the form of the reference's `line` token.
    pub fn letters(&mut self, count: usize) -> String {
        (0..count)
            .map(|_| char::from(b'a' + self.below(26) as u8))
            .collect()
    }
}

impl std::fmt::Debug for Entropy {
    /// Shows nothing: the state would tell what comes next.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy(..)")
    }
}
