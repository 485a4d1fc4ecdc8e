//! What the scripts for files share: files in memory, registrars that remember, chance that replays.

use sip_registration::pjsip_conf::Files;
use std::io;
#[cfg(feature = "tokio")]
use std::time::Duration;

#[cfg(feature = "tokio")]
pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// A configuration of one file in memory
pub(crate) struct File(pub(crate) String);

impl Files for File {
    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        match path {
            "pjsip.conf" => Ok(self.0.clone().into_bytes()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// xorshift: the tests of a seed are the same every time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11).checked_rem(end).unwrap_or_default()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    /// An index below `end`; 0 where there is none.
    pub(crate) fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).unwrap_or_default()
    }
}
