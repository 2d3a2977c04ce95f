//! The memory limit: how much is used, when eviction begins and ends, and who waits for it.

use std::sync::Arc;

use super::throttle::Throttle;
use crate::error::Result;
use crate::memory::FrameBudget;
use crate::spill::Stores;
use crate::waker::Waker;

/// Bounds between which the writeback thread works, in page frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// It stops when no more than this is used.
    pub(crate) low: u64,
    /// It starts when more than this is used.
    pub(crate) high: u64,
}

impl Watermarks {
    /// Without eviction there is only the limit.
    fn without_eviction(limit: u64) -> Self {
        Self {
            low: limit,
            high: limit,
        }
    }

    /// For a limit: what writers may take before eviction has freed anything is a sixteenth of
    /// it, at least a zspage and at most 8 MiB; eviction frees as much again.
    fn of(limit: u64) -> Self {
        if limit == FrameBudget::UNLIMITED {
            return Self::without_eviction(limit);
        }
        let reserve = (limit / 16).clamp(8, 2048);
        Self {
            low: limit.saturating_sub(2 * reserve),
            high: limit.saturating_sub(reserve),
        }
    }
}

/// The limit of a device's memory.
pub(crate) struct MemoryLimit {
    pub(crate) budget: Arc<FrameBudget>,
    pub(crate) throttle: Throttle,
    stores: Arc<Stores>,
    /// Whether pages can leave memory for the image.
    destages: bool,
    waker: Arc<Waker>,
}

impl MemoryLimit {
    /// A limit of what `budget` counts, for pages that leave memory for `stores` or, if so, the image;
    /// `waker` wakes the thread that evicts.
    pub(super) fn new(
        budget: Arc<FrameBudget>,
        stores: Arc<Stores>,
        destages: bool,
        waker: Arc<Waker>,
    ) -> Self {
        Self {
            budget,
            throttle: Throttle::new(),
            stores,
            destages,
            waker,
        }
    }

    /// Whether pages can leave memory, for a backing or the image.
    pub(crate) fn evicts(&self) -> bool {
        self.stores.spills() || self.destages
    }

    /// The bounds that memory is kept between now.
    pub(crate) fn watermarks(&self) -> Watermarks {
        let limit = self.budget.limit();
        if self.evicts() {
            Watermarks::of(limit)
        } else {
            Watermarks::without_eviction(limit)
        }
    }

    /// Whether eviction has something to do: more is used than the high watermark.
    pub(crate) fn is_short(&self) -> bool {
        self.budget.used() > self.watermarks().high
    }

    /// Wakes the thread that evicts if memory is short, or if the caller knows of `other_work`.
    pub(crate) fn wake_if_needed(&self, other_work: bool) {
        if other_work || self.is_short() {
            self.waker.wake();
        }
    }

    /// Waits until eviction has freed memory.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`]: it cannot.
    pub(crate) fn wait(&self) -> Result<()> {
        self.throttle.wait(|| self.waker.wake())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_leave_room_below_any_limit() {
        for limit in [8, 9, 100, 16384, 1 << 30] {
            let Watermarks { low, high } = Watermarks::of(limit);
            assert!(low <= high && high + 8 <= limit, "{limit}: {low}, {high}");
        }
        assert_eq!(
            Watermarks::of(16384),
            Watermarks {
                low: 14336,
                high: 15360
            }
        );
        assert_eq!(
            Watermarks::of(FrameBudget::UNLIMITED).high,
            FrameBudget::UNLIMITED
        );
    }
}
