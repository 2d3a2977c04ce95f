//! What may still be written to the backing, as whoever runs the device allows.
//!
//! zram's `writeback_limit`: once it is enabled, each page that is written back takes one from it,
//! however it came to be chosen, and at zero nothing is written back until it is set anew. Records
//! that cleaning moves do not count, but cleaning rests too.
//!
//! And a limit of the bytes appended in a day, those that cleaning appends included, for flash that
//! wears out. The day is the last twenty-four hours: in no such time is more written. What was
//! written comes free again a day later, in quarters of an hour. What was written before there was
//! a limit counts, and so does what was written before a reset.
//!
//! Locks one mutex, and nothing under it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spill::{BLOCK, MIN_APPEND};
use crate::sync::Mutex;

const PAGES_SPENT: &str = "the memory limit is reached and the writeback_limit is spent";
const DAY_SPENT: &str = "the memory limit is reached and the day's writeback_daily_limit is spent";

/// Bytes that the shortest append may take. With less the day's limit is spent.
const LEAST: u64 = MIN_APPEND as u64 + BLOCK as u64;

/// What an append may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) pages: u64,
    /// A multiple of [`BLOCK`].
    pub(crate) bytes: u64,
}

/// What an append takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Pages that leave memory.
    pub(crate) pages: u64,
    /// Bytes with padding.
    pub(crate) bytes: u64,
}

/// Quarters of an hour that a day touches.
const QUARTERS: usize = 24 * 4 + 1;

/// What was written in each of the last quarters of an hour. Times are those of a
/// [`crate::time::Timepiece`].
#[derive(Debug)]
struct Day {
    /// Bytes, in the order of quarters modulo their number.
    written: [u64; QUARTERS],
    /// The quarter that was last looked at.
    now: u64,
}

impl Default for Day {
    fn default() -> Self {
        Self {
            written: [0; QUARTERS],
            now: 0,
        }
    }
}

impl Day {
    /// Forgets what is more than a day before `now`.
    fn advance(&mut self, now: Duration) {
        let now = now.as_secs() / (15 * 60);
        for quarter in (self.now + 1..=now).take(QUARTERS) {
            self.written[(quarter % QUARTERS as u64) as usize] = 0;
        }
        self.now = self.now.max(now);
    }

    fn add(&mut self, bytes: u64) {
        self.written[(self.now % QUARTERS as u64) as usize] += bytes;
    }

    fn written_in(&self, quarter: u64) -> u64 {
        self.written[(quarter % QUARTERS as u64) as usize]
    }

    /// Bytes written in the last day, and maybe in a quarter of an hour before.
    fn total(&self) -> u64 {
        self.written.iter().sum()
    }
}

#[derive(Debug, Default)]
struct State {
    limits_pages: bool,
    pages: u64,
    /// Pages on their way, which are taken from `pages` when they have arrived.
    pages_in_flight: u64,
    /// Most bytes to write in a day.
    daily_limit: Option<u64>,
    day: Day,
    /// Bytes on their way, which are not in `day` yet.
    bytes_in_flight: u64,
}

/// What a device remembers of its quota. What was on its way is taken for not written.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct QuotaRecord {
    limits_pages: bool,
    pages: u64,
    daily_limit: Option<u64>,
    /// Bytes by quarters of an hour, those of the last day that are not 0.
    written: Vec<(u64, u64)>,
}

/// The quota of a device: at first without limits.
#[derive(Debug, Default)]
pub(crate) struct Quota(Mutex<State>);

impl Quota {
    /// What the next append may take: some of everything.
    ///
    /// # Errors
    /// What is spent, as a writer without room is told.
    pub(crate) fn left(&self, now: Duration) -> Result<Left, &'static str> {
        let mut state = self.0.lock();
        state.day.advance(now);
        let pages = if state.limits_pages {
            state.pages.saturating_sub(state.pages_in_flight)
        } else {
            u64::MAX
        };
        if pages == 0 {
            return Err(PAGES_SPENT);
        }
        let limit = state.daily_limit.unwrap_or(u64::MAX);
        let bytes = limit.saturating_sub(state.day.total() + state.bytes_in_flight);
        if bytes < LEAST {
            return Err(DAY_SPENT);
        }
        let bytes = bytes / BLOCK as u64 * BLOCK as u64;
        Ok(Left { pages, bytes })
    }

    /// An append begins.
    pub(crate) fn begin(&self, taken: Taken) {
        let mut state = self.0.lock();
        state.pages_in_flight += taken.pages;
        state.bytes_in_flight += taken.bytes;
    }

    /// An append that began has ended.
    pub(crate) fn end(&self, taken: Taken, written: bool, now: Duration) {
        let mut state = self.0.lock();
        state.day.advance(now);
        state.pages_in_flight -= taken.pages;
        state.bytes_in_flight -= taken.bytes;
        if !written {
            return;
        }
        state.day.add(taken.bytes);
        if state.limits_pages {
            state.pages = state.pages.saturating_sub(taken.pages);
        }
    }

    pub(super) fn record(&self) -> QuotaRecord {
        let state = self.0.lock();
        let last = state.day.now;
        let quarters = last.saturating_sub(QUARTERS as u64 - 1)..=last;
        let written = quarters.map(|quarter| (quarter, state.day.written_in(quarter)));
        QuotaRecord {
            limits_pages: state.limits_pages,
            pages: state.pages,
            daily_limit: state.daily_limit,
            written: written.filter(|&(_, bytes)| bytes > 0).collect(),
        }
    }

    pub(super) fn adopt(&self, record: QuotaRecord) {
        let mut state = self.0.lock();
        state.limits_pages = record.limits_pages;
        state.pages = record.pages;
        state.daily_limit = record.daily_limit;
        for (quarter, bytes) in record.written {
            state.day.advance(Duration::from_secs(quarter * 15 * 60));
            state.day.add(bytes);
        }
    }

    /// Bytes written in the last day.
    pub(crate) fn bytes_in_day(&self, now: Duration) -> u64 {
        let mut state = self.0.lock();
        state.day.advance(now);
        state.day.total()
    }

    /// Most bytes to write in a day.
    pub(crate) fn daily_limit(&self) -> Option<u64> {
        self.0.lock().daily_limit
    }

    pub(crate) fn limit_daily(&self, bytes: Option<u64>) {
        self.0.lock().daily_limit = bytes;
    }

    /// Pages that may be written back, if that is limited.
    pub(crate) fn pages(&self) -> u64 {
        self.0.lock().pages
    }

    pub(crate) fn set_pages(&self, pages: u64) {
        self.0.lock().pages = pages;
    }

    /// Whether there is a limit.
    pub(crate) fn is_limited(&self) -> bool {
        let state = self.0.lock();
        state.limits_pages || state.daily_limit.is_some()
    }

    /// Whether the pages written back are limited.
    pub(crate) fn limits_pages(&self) -> bool {
        self.0.lock().limits_pages
    }

    pub(crate) fn limit_pages(&self, limit: bool) {
        self.0.lock().limits_pages = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use support::Random;

    const NOW: Duration = Duration::from_secs(1_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const MIB: u64 = 1 << 20;

    fn pages(pages: u64) -> Taken {
        Taken { pages, bytes: 0 }
    }

    fn bytes(bytes: u64) -> Taken {
        Taken { pages: 0, bytes }
    }

    #[test]
    fn pages_are_taken_once_written_and_never_promised_twice() {
        let quota = Quota::default();
        let left = || quota.left(NOW).map(|left| left.pages);
        quota.set_pages(10);
        assert_eq!(left(), Ok(u64::MAX));
        quota.begin(pages(3));
        quota.end(pages(3), true, NOW);
        assert_eq!(quota.pages(), 10, "not limited yet");
        quota.limit_pages(true);
        quota.begin(pages(6));
        assert_eq!(left(), Ok(4));
        quota.begin(pages(4));
        assert_eq!(left(), Err(PAGES_SPENT));
        quota.end(pages(6), false, NOW);
        assert_eq!(left(), Ok(6));
        quota.end(pages(4), true, NOW);
        assert_eq!(quota.pages(), 6);
        quota.begin(pages(6));
        quota.set_pages(2);
        quota.end(pages(6), true, NOW);
        assert_eq!((quota.pages(), left()), (0, Err(PAGES_SPENT)));
        quota.limit_pages(false);
        assert!(left().is_ok());
    }

    #[test]
    fn a_days_bytes_come_free_a_day_later() {
        let quota = Quota::default();
        let left = |now| quota.left(now).map(|left| left.bytes);
        let write = |taken, now| {
            quota.begin(bytes(taken));
            quota.end(bytes(taken), true, now);
        };
        write(3 * MIB, NOW);
        quota.limit_daily(Some(10 * MIB));
        assert_eq!(left(NOW), Ok(7 * MIB), "what was before counts");
        quota.begin(bytes(2 * MIB));
        assert_eq!(left(NOW), Ok(5 * MIB));
        quota.end(bytes(2 * MIB), false, NOW);
        write(7 * MIB - 4096, NOW + 6 * HOUR);
        assert_eq!(left(NOW + 6 * HOUR), Err(DAY_SPENT));
        assert_eq!(left(NOW + 24 * HOUR), Err(DAY_SPENT));
        assert_eq!(left(NOW + 24 * HOUR + HOUR / 4), Ok(3 * MIB + 4096));
        assert_eq!(left(NOW + 31 * HOUR), Ok(10 * MIB));
        assert_eq!(quota.bytes_in_day(NOW + 31 * HOUR), 0);
        write(MIB, NOW + 1000 * HOUR);
        assert_eq!(left(NOW + 1001 * HOUR), Ok(9 * MIB));
        // A clock that goes back gains nothing.
        assert_eq!(left(NOW), Ok(9 * MIB));
    }

    #[test]
    fn in_no_day_is_more_written_than_its_limit() {
        const LIMIT: u64 = 50 * MIB;
        let quota = Quota::default();
        quota.limit_daily(Some(LIMIT));
        let (mut now, mut written, mut random) = (NOW, Vec::new(), Random(1));
        for _ in 0..5000 {
            let state = random.next();
            now += Duration::from_secs(state >> 33 & 2047);
            if let Ok(left) = quota.left(now) {
                let taken = left.bytes.min(4096 * (1 + (state >> 50 & 1023)));
                quota.begin(bytes(taken));
                quota.end(bytes(taken), true, now);
                written.push((now, taken));
            }
        }
        for &(start, _) in &written {
            let day = start..start + 24 * HOUR;
            let of_day = written.iter().filter(|(at, _)| day.contains(at));
            assert!(of_day.map(|(_, bytes)| bytes).sum::<u64>() <= LIMIT);
        }
        let total: u64 = written.iter().map(|(_, bytes)| bytes).sum();
        let days = (now - NOW).as_secs() / (24 * 3600);
        assert!(total > LIMIT * days * 9 / 10, "{total} in {days} days");
    }
}
