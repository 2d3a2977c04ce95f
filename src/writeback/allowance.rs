//! What may still be written to the backing, as whoever runs the device allows.
//!
//! zram's `writeback_limit`: once it is enabled, each page that is written back takes one from it,
//! however it came to be chosen, and at zero nothing is written back until it is set anew. Records
//! that cleaning moves do not count, but cleaning rests too. Locks one mutex, and nothing under it.

use parking_lot::Mutex;

const PAGES_SPENT: &str = "the memory limit is reached and the writeback_limit is spent";

/// What an append may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) pages: u64,
}

#[derive(Debug, Default)]
struct State {
    limits_pages: bool,
    pages: u64,
    /// Pages on their way, which are taken from `pages` when they have arrived.
    pages_in_flight: u64,
}

/// The allowance of a device: at first without limits.
#[derive(Debug, Default)]
pub(crate) struct Allowance(Mutex<State>);

impl Allowance {
    /// What the next append may take: some of everything.
    ///
    /// # Errors
    /// What is spent, as a writer without room is told.
    pub(crate) fn left(&self) -> Result<Left, &'static str> {
        let state = self.0.lock();
        let pages = if state.limits_pages {
            state.pages.saturating_sub(state.pages_in_flight)
        } else {
            u64::MAX
        };
        if pages == 0 {
            return Err(PAGES_SPENT);
        }
        Ok(Left { pages })
    }

    /// An append of so many pages that leave memory begins.
    pub(super) fn begin(&self, pages: u64) {
        self.0.lock().pages_in_flight += pages;
    }

    /// An append that began has ended.
    pub(super) fn end(&self, pages: u64, written: bool) {
        let mut state = self.0.lock();
        state.pages_in_flight -= pages;
        if written && state.limits_pages {
            state.pages = state.pages.saturating_sub(pages);
        }
    }

    /// Pages that may be written back, if that is limited.
    pub(crate) fn pages(&self) -> u64 {
        self.0.lock().pages
    }

    pub(crate) fn set_pages(&self, pages: u64) {
        self.0.lock().pages = pages;
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

    #[test]
    fn pages_are_taken_once_written_and_never_promised_twice() {
        let allowance = Allowance::default();
        allowance.set_pages(10);
        assert_eq!(allowance.left(), Ok(Left { pages: u64::MAX }));
        allowance.begin(3);
        allowance.end(3, true);
        assert_eq!(allowance.pages(), 10, "not limited yet");
        allowance.limit_pages(true);
        allowance.begin(6);
        assert_eq!(allowance.left(), Ok(Left { pages: 4 }));
        allowance.begin(4);
        assert_eq!(allowance.left(), Err(PAGES_SPENT));
        allowance.end(6, false);
        assert_eq!(allowance.left(), Ok(Left { pages: 6 }));
        allowance.end(4, true);
        assert_eq!(allowance.pages(), 6);
        allowance.begin(6);
        allowance.set_pages(2);
        allowance.end(6, true);
        assert_eq!(allowance.pages(), 0);
        assert_eq!(allowance.left(), Err(PAGES_SPENT));
        allowance.limit_pages(false);
        assert!(allowance.left().is_ok());
    }
}
