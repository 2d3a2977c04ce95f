//! What is known to be damaged in the backing, and how much of it is logged.

use std::collections::HashSet;
use std::time::Duration;

use crate::spill::RecordAddress;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::time::Instant;

/// Damaged records remembered, so that one that is found again is not counted again.
const REMEMBERED: usize = 1 << 16;

/// Lines about failures in a second.
const LINES: u32 = 4;

/// The damaged records. Its lock is a leaf, taken only when something is damaged.
#[derive(Debug, Default)]
pub(crate) struct Damage {
    count: AtomicU64,
    known: Mutex<HashSet<(RecordAddress, u64)>>,
}

impl Damage {
    /// Notes that the record at an address of the number `sequence` is damaged; returns whether
    /// that is news.
    pub(super) fn note(&self, record: RecordAddress, sequence: u64) -> bool {
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
    pub(super) fn reset(&self) {
        self.known.lock().clear();
        self.count.store(0, Relaxed);
    }
}

/// Keeps what clients can make happen at will from filling the log. Its lock is a leaf.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    state: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    second: Option<Instant>,
    /// Lines in the second that started then.
    count: u32,
    /// Lines left out since the last that was not.
    left_out: u64,
}

impl LogLimit {
    /// Whether a line may be logged now: if so, how it ends, which tells how many were not.
    pub(crate) fn admit(&self) -> Option<String> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<String> {
        let mut lines = self.state.lock();
        let over = |start| now.duration_since(start) >= Duration::from_secs(1);
        if lines.second.is_none_or(over) {
            lines.second = Some(now);
            lines.count = 0;
        }
        if lines.count == LINES {
            lines.left_out += 1;
            return None;
        }
        lines.count += 1;
        Some(match std::mem::take(&mut lines.left_out) {
            0 => String::new(),
            left_out => format!(" ({left_out} such lines were left out before this)"),
        })
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

    #[test]
    fn a_few_lines_a_second_and_a_count_of_the_others() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let admitted = (0..100).filter_map(|_| limit.admit_at(start));
        assert_eq!(admitted.count(), LINES as usize);
        let later = start + Duration::from_secs(1);
        let line = limit.admit_at(later).expect("a second is over");
        assert!(line.contains("96"), "{line}");
        assert_eq!(limit.admit_at(later).as_deref(), Some(""));
    }
}
