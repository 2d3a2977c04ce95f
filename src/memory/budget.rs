//! A limit of page frames, shared by all who take some: the pools of a device, or its tables.

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::{Protection, without};
use crossbeam::utils::CachePadded;

/// How many page frames those who share it hold together, and may hold.
///
/// Invariant: `used` never grows past `limit`; it is above it only after `limit` was lowered, or what is there was
/// adopted.
/// The counters publish no other memory, so relaxed ordering is enough.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    used: CachePadded<AtomicU64>,
    limit: AtomicU64,
    max_used: AtomicU64,
}

impl FrameBudget {
    /// No limit.
    pub(crate) const UNLIMITED: u64 = u64::MAX;

    /// An unused budget of `limit` frames.
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            used: CachePadded::default(),
            limit: AtomicU64::new(limit),
            max_used: AtomicU64::new(0),
        }
    }

    /// Takes `frames`, or nothing if they do not fit under the limit.
    pub(crate) fn try_take(&self, frames: u64) -> bool {
        let limit = self.limit();
        let fits = |used: u64| used.checked_add(frames).filter(|&sum| sum <= limit);
        if without(Protection::BudgetTakenAtOnce) && fits(self.used()).is_some() {
            self.used.fetch_add(frames, Relaxed);
            return true;
        }
        let Ok(before) = self.used.fetch_update(Relaxed, Relaxed, fits) else {
            return false;
        };
        let now = before + frames;
        if now > self.max_used.load(Relaxed) {
            self.max_used.fetch_max(now, Relaxed);
        }
        true
    }

    /// Takes `frames` that are there already, whether they fit or not.
    pub(crate) fn take(&self, frames: u64) {
        let now = self.used.fetch_add(frames, Relaxed) + frames;
        self.max_used.fetch_max(now, Relaxed);
    }

    /// Gives `frames` back.
    pub(crate) fn give_back(&self, frames: u64) {
        let before = self.used.fetch_sub(frames, Relaxed);
        debug_assert!(before >= frames);
    }

    /// Whether another zspage would fit: it begins with one frame.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < self.limit()
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Relaxed)
    }

    pub(crate) fn set_limit(&self, frames: u64) {
        self.limit.store(frames, Relaxed);
    }

    /// Most frames ever used at a time, since the last [`FrameBudget::reset_max_used`].
    pub(crate) fn max_used(&self) -> u64 {
        self.max_used.load(Relaxed)
    }

    pub(crate) fn reset_max_used(&self) {
        self.max_used.store(self.used(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_passes_the_limit() {
        let budget = FrameBudget::new(10);
        assert!(budget.try_take(8) && !budget.try_take(3) && budget.try_take(2));
        budget.give_back(4);
        assert_eq!((budget.used(), budget.max_used()), (6, 10));
        budget.set_limit(5);
        assert!(!budget.try_take(1));
        budget.reset_max_used();
        assert_eq!(budget.max_used(), 6);
    }

    #[test]
    fn holds_with_many_takers() {
        let budget = FrameBudget::new(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in (1..=8).cycle().take(20_000) {
                        if budget.try_take(n) {
                            assert!(budget.used() <= 100);
                            budget.give_back(n);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.max_used() <= 100);
    }
}
