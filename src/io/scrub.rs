//! Scrubbing: reads all that is spilled and proves that it can be read back, a bounded number of
//! pages at a time. It holds no lock while it reads, and changes nothing but the count of damaged
//! records: whoever scrubs keeps the place to go on from, and may stop at any time.

use serde::{Deserialize, Serialize};

use super::Reader;
use super::found::SpilledPage;
use super::read_ahead::Place;
use crate::error::Error;
use crate::shard::{SLOTS_PER_BLOCK, SlotIndex};
use crate::spill::{BLOCK, BlockBuf, MAX_RECORD_LEN};
use crate::units::PageIndex;

/// Spilled pages that a step reads, about: at most 4 MiB.
const PAGES_AT_ONCE: usize = 1024;

/// Runs of pages that a step looks at.
const RUNS_AT_ONCE: u32 = 1 << 14;

/// Stripes, one block of slots in each shard, that a search for data looks at.
const STRIPES_AT_ONCE: u64 = 1024;

/// What a step of a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
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

impl Reader {
    /// Verifies spilled pages from page `from` on.
    pub(crate) fn scrub(&self, from: u64) -> Scrubbed {
        let end = self.engine.shards.layout.pages();
        let stripe_pages =
            self.engine.shards.layout.shards().count() as u64 * u64::from(SLOTS_PER_BLOCK);
        let mut at = from;
        let mut spilled = Vec::new();
        for _ in 0..RUNS_AT_ONCE {
            if at >= end || spilled.len() >= PAGES_AT_ONCE {
                break;
            }
            let window_end = at.saturating_add(STRIPES_AT_ONCE * stripe_pages).min(end);
            at = match self.engine.shards.first_used(at..window_end) {
                Some(used) => self.spilled_in_run(used, end, &mut spilled),
                None => window_end,
            };
        }
        let mut found = self.verify_all(&mut spilled);
        found.next = (at < end).then_some(at);
        found
    }

    /// Lists the spilled pages of the run that starts at page `first`; returns the page after it.
    fn spilled_in_run(&self, first: u64, end: u64, spilled: &mut Vec<SpilledPage>) -> u64 {
        let run = self.engine.shards.layout.run(PageIndex(first as u32), end);
        let shard = self.engine.shards.lock(run.shard);
        spilled.extend((0..run.pages).filter_map(|i| {
            let there = self.spilled(&shard, SlotIndex(run.slot.0 + i))?;
            Some((PageIndex(run.first.0 + i), there))
        }));
        first + u64::from(run.pages)
    }

    /// Reads pages in the order of their records, those that are near each other in one go.
    fn verify_all(&self, spilled: &mut [SpilledPage]) -> Scrubbed {
        spilled.sort_unstable_by_key(|(_, spilled)| spilled.record.0);
        let (mut found, mut bytes) = (Scrubbed::default(), BlockBuf::default());
        let mut rest = &*spilled;
        while let Some((place, group, others)) = self.first_group(rest) {
            self.verify_group(group, &place, &mut bytes, &mut found);
            rest = others;
        }
        found.damaged.sort_unstable();
        found.unreadable.sort_unstable();
        found
    }

    /// Reads pages whose records are all in one place.
    fn verify_group(
        &self,
        group: &[SpilledPage],
        place: &Place,
        bytes: &mut BlockBuf,
        found: &mut Scrubbed,
    ) {
        let start = place.bytes.start as usize / BLOCK * BLOCK;
        bytes.resize((place.bytes.end as usize - start).next_multiple_of(BLOCK));
        let read = self
            .engine
            .spilled
            .stores
            .of(place.segment)
            .is_some_and(|backing| {
                let at = place.segment.within_store().byte() + start as u64;
                backing.read_at(at, bytes).is_ok()
            });
        let mut scratch = [0; MAX_RECORD_LEN];
        for &(page, spilled) in group {
            let from = spilled.place(&self.engine.spilled.formats).bytes.start as usize - start;
            if read
                && spilled.is_in(
                    page,
                    &self.engine.spilled.formats,
                    &bytes[from..],
                    &mut scratch,
                )
            {
                found.intact += 1;
            } else {
                self.verify(page, found);
            }
        }
    }

    /// Reads a page back by itself, if it is still spilled: it may have moved meanwhile.
    fn verify(&self, page: PageIndex, found: &mut Scrubbed) {
        // What was read ahead may have been damaged since.
        self.read_ahead.forget();
        let run = self.engine.shards.layout.run_of(page);
        match self.fetch_if_written_back(run) {
            Ok(Some(_)) => found.intact += 1,
            Ok(None) => {}
            Err(Error::Unreadable { .. }) => found.unreadable.push(u64::from(page.0)),
            Err(_) => found.damaged.push(u64::from(page.0)),
        }
    }
}
