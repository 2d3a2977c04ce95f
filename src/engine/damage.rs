//! What is known to be damaged in the backing.

use std::collections::HashSet;

use crate::spill::RecordAddress;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Damaged records remembered, so that one that is found again is not counted again.
const REMEMBERED: usize = 1 << 16;

/// The damaged records. Its lock is a leaf, taken only when something is damaged.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    count: AtomicU64,
    known: Mutex<HashSet<(RecordAddress, u64)>>,
}

impl Damage {
    /// Notes that the record at an address of the number `sequence` is damaged; returns whether
    /// that is news.
    pub(crate) fn note(&self, record: RecordAddress, sequence: u64) -> bool {
        let mut known = self.known.lock();
        if known.contains(&(record, sequence)) {
            return false;
        }
        if known.len() == REMEMBERED {
            known.clear();
        }
        known.insert((record, sequence));
        self.count.fetch_add(1, Relaxed);
        true
    }

    /// Records found to be damaged. Each counts once, unless so many others were found meanwhile
    /// that it was forgotten.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Starts again.
    pub(crate) fn reset(&self) {
        self.known.lock().clear();
        self.count.store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_once_in_each_use_of_its_place() {
        let damage = Damage::default();
        assert!(damage.note(RecordAddress(1), 7));
        assert!(!damage.note(RecordAddress(1), 7));
        assert!(damage.note(RecordAddress(1), 8) && damage.note(RecordAddress(2), 7));
        assert_eq!(damage.count(), 3);
        damage.reset();
        assert!(damage.note(RecordAddress(1), 7));
        assert_eq!(damage.count(), 1);
    }
}
