//! Scrubbing: reads all that is spilled and proves that it can be read back, a bounded number of
//! pages at a time. It holds no lock while it reads, and changes nothing but the count of damaged
//! records: whoever scrubs keeps the place to go on from, and may stop at any time.

use serde::{Deserialize, Serialize};

use super::core::Core;
use crate::shard::{SLOTS_PER_BLOCK, SlotIndex, SlotState};
use crate::units::PageIndex;

/// Spilled pages that a step reads, about: at most 1 MiB.
const PAGES_AT_ONCE: u64 = 256;

/// Runs of pages that a step looks at.
const RUNS_AT_ONCE: u32 = 1 << 14;

/// Stripes, one block of slots in each shard, that a search for data looks at.
const STRIPES_AT_ONCE: u64 = 1024;

/// What a step of a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// The page to go on from; `None` at the end of the device.
    pub next: Option<u64>,
    /// Spilled pages read back as they were written.
    pub intact: u64,
    /// Pages that are lost: their records are damaged.
    pub damaged: Vec<u64>,
    /// Pages that could not be read: the backing fails.
    pub unreadable: Vec<u64>,
}

impl Core {
    /// Verifies spilled pages from page `from` on.
    pub(super) fn scrub(&self, from: u64) -> Scrubbed {
        // What was read earlier may have been damaged since.
        self.read_ahead.forget();
        let end = self.layout.pages();
        let stripe_pages = self.layout.shards().count() as u64 * u64::from(SLOTS_PER_BLOCK);
        let mut found = Scrubbed::default();
        let mut at = from;
        let mut spilled = Vec::new();
        for _ in 0..RUNS_AT_ONCE {
            let checked = found.intact + (found.damaged.len() + found.unreadable.len()) as u64;
            if at >= end || checked >= PAGES_AT_ONCE {
                break;
            }
            let window_end = at.saturating_add(STRIPES_AT_ONCE * stripe_pages).min(end);
            let Some(used) = self.first_used(at..window_end) else {
                at = window_end;
                continue;
            };
            at = self.spilled_in_run(used, end, &mut spilled);
            for &page in &spilled {
                self.verify(page, &mut found);
            }
        }
        found.next = (at < end).then_some(at);
        found
    }

    /// Lists the spilled pages of the run that starts at page `first`; returns the page after it.
    fn spilled_in_run(&self, first: u64, end: u64, spilled: &mut Vec<PageIndex>) -> u64 {
        let run = self.layout.run(PageIndex(first as u32), end);
        spilled.clear();
        let shard = self.shard(run.shard);
        spilled.extend((0..run.pages).filter_map(|i| {
            let slot = shard.slot(SlotIndex(run.slot.0 + i));
            let page = PageIndex(run.first.0 + i);
            matches!(slot.state(), SlotState::WrittenBack { .. }).then_some(page)
        }));
        first + u64::from(run.pages)
    }

    /// Reads a page back, if it is still spilled.
    fn verify(&self, page: PageIndex, found: &mut Scrubbed) {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        match self.fetch_if_written_back(run) {
            Ok(Some(_)) => found.intact += 1,
            Ok(None) => {}
            Err(crate::Error::Unreadable { .. }) => found.unreadable.push(u64::from(page.0)),
            Err(_) => found.damaged.push(u64::from(page.0)),
        }
    }
}
