//! REGISTERs a second (D16): what goes out evenly never exceeds its number in any second.

use std::num::NonZeroU32;
use std::time::Duration;

/// From one request to the next; rounded up, so that `a_second` and one more never fit into a second.
pub(crate) fn interval(a_second: NonZeroU32) -> Duration {
    const SECOND: u64 = 1_000_000_000;
    Duration::from_nanos(SECOND.div_ceil(u64::from(a_second.get())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_and_one_more_take_a_second_at_least() {
        for number in [1, 3, 7, 50, 999, u32::MAX] {
            let a_second = NonZeroU32::new(number).expect("not 0");
            assert!(interval(a_second) * number >= Duration::from_secs(1));
            assert!(interval(a_second) <= Duration::from_secs(1));
        }
    }
}
