//! What is asked ahead of a request: whether it would wait, and that a later one need not.

use std::ops::Range;

use super::Reader;
use crate::engine::{RUN_PAGES, Run};
use crate::error::Result;
use crate::shard::{SlotIndex, SlotState};
use crate::units::{PAGE_SHIFT, PAGE_SIZE, PageIndex};

/// Page frames that storing a page can take: a whole zspage, and it uses one object of it.
const FRAMES_A_PAGE: u64 = 8;

impl Reader {
    /// Whether reading a range of bytes takes reading the backing or the image.
    pub(crate) fn read_would_block(&self, range: Range<u64>) -> bool {
        if !self.engine.spilled.segments.any_live() && self.engine.origin.image().is_none() {
            return false;
        }
        let end = range.end.div_ceil(PAGE_SIZE as u64);
        let mut at = range.start >> PAGE_SHIFT;
        while at < end {
            let run = self.engine.shards.layout.run(PageIndex(at as u32), end);
            if self.any_elsewhere(run) {
                return true;
            }
            at += u64::from(run.pages);
        }
        false
    }

    /// Whether writing to a range of bytes may take waiting for memory, for a save, or for the rest
    /// of a page at one of its ends.
    pub(crate) fn write_would_block(&self, range: Range<u64>) -> bool {
        let page = PAGE_SIZE as u64;
        let pages = range.end.div_ceil(page) - range.start / page;
        let room = self
            .engine
            .limit
            .budget
            .limit()
            .saturating_sub(self.engine.limit.budget.used());
        if pages * FRAMES_A_PAGE > room || self.engine.copy_before_write.any() {
            return true;
        }
        // Where tables have no room, that may take writing pages to the image.
        let runs = pages.div_ceil(u64::from(RUN_PAGES)) + 1;
        if self.engine.origin.destages() && !self.engine.tables.has_room_for(runs) {
            return true;
        }
        let is_part = |at: &u64| !at.is_multiple_of(page);
        let mut parts = [range.start, range.end].into_iter().filter(is_part);
        parts.any(|at| self.read_would_block(at..at + 1))
    }

    /// Whether a page of the run is not in memory.
    fn any_elsewhere(&self, run: Run) -> bool {
        let empty_is_elsewhere = self.engine.origin.image().is_some();
        let shard = self.engine.shards.lock(run.shard);
        (run.slot.0..run.slot.0 + run.pages).any(|index| {
            match shard.slot(SlotIndex(index)).state() {
                SlotState::WrittenBack { .. } => true,
                SlotState::Empty => empty_is_elsewhere,
                SlotState::SameFilled { .. } | SlotState::Resident { .. } => false,
            }
        })
    }

    /// Brings the pages of a range of bytes that are elsewhere to memory, until it is filled to the high
    /// watermark: what is there already is not driven out for what may be wanted.
    pub(crate) fn prefetch(&self, range: Range<u64>) -> Result<()> {
        let end = range.end.div_ceil(PAGE_SIZE as u64);
        if self.engine.origin.destages() {
            return self.prefetch_absent(range.start >> PAGE_SHIFT..end);
        }
        let high = self.engine.limit.watermarks().high;
        for page in range.start >> PAGE_SHIFT..end {
            if !self.engine.spilled.segments.any_live() || self.engine.limit.budget.used() > high {
                break;
            }
            self.fetch(PageIndex(page as u32))?;
        }
        Ok(())
    }
}
