//! Refaults: which written-back pages were wanted not long ago (`mm/workingset.c` in the kernel).
//!
//! "Not long" is a number of pages read back, about as many as are in memory: what came back after
//! fewer than that, an LRU of that many more pages would still have held. Such a page returns to
//! memory, and one that a scan comes by time and again does not. What a scan comes by soon after its
//! eviction looks like such a page here; only who reads it back can tell (`io/sequential.rs`). Time
//! goes in epochs, and each slot has room for the last digits of one, so this costs no memory.

use super::slot::ReadBackEpoch;

/// Epochs that are not long.
const WINDOW: u8 = 8;

/// Pages read back in the shortest epoch.
const MIN_EPOCH: u64 = 8;

/// The clock of a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RefaultClock {
    epoch: u64,
    /// Pages to read back until the next epoch.
    left: u64,
}

impl RefaultClock {
    /// The present epoch.
    pub(super) fn epoch(self) -> ReadBackEpoch {
        ReadBackEpoch::new(self.epoch)
    }

    /// Counts a page read back while so many are `resident`.
    pub(super) fn tick(&mut self, resident: u64) {
        if self.left == 0 {
            self.epoch += 1;
            self.left = (resident / u64::from(WINDOW)).max(MIN_EPOCH);
        }
        self.left -= 1;
    }

    /// Whether a page was last wanted not long ago. One that was wanted very long ago is taken for
    /// such a one now and then, when the epoch's digits have come round.
    pub(super) fn is_recent(self, epoch: ReadBackEpoch) -> bool {
        self.epoch().since(epoch) <= WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_about_as_many_pages_as_are_resident() {
        let mut clock = RefaultClock::default();
        clock.tick(8000);
        let then = clock.epoch();
        for _ in 0..7000 {
            clock.tick(8000);
            assert!(clock.is_recent(then));
        }
        for _ in 0..3000 {
            clock.tick(8000);
        }
        for _ in 0..50_000 {
            assert!(!clock.is_recent(then));
            clock.tick(8000);
        }
    }
}
