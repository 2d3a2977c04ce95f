//! What is asked ahead of a request: whether it would wait, and that a later one need not.

use std::ops::Range;

use super::core::Core;
use super::layout::Run;
use crate::error::Result;
use crate::shard::{SlotIndex, SlotState};
use crate::units::{PAGE_SHIFT, PAGE_SIZE, PageIndex};

/// Page frames that storing a page can take: a whole zspage, and it uses one object of it.
const FRAMES_A_PAGE: u64 = 8;

impl Core {
    /// Whether reading a range of bytes takes reading the backing or the image.
    pub(super) fn read_would_wait(&self, range: Range<u64>) -> bool {
        if !self.segments.any_live() && self.origin.image().is_none() {
            return false;
        }
        let end = range.end.div_ceil(PAGE_SIZE as u64);
        let mut at = range.start >> PAGE_SHIFT;
        while at < end {
            let run = self.layout.run(PageIndex(at as u32), end);
            if self.any_elsewhere(run) {
                return true;
            }
            at += u64::from(run.pages);
        }
        false
    }

    /// Whether writing to a range of bytes may take waiting for memory, for a save, or for the rest
    /// of a page at one of its ends.
    pub(super) fn write_would_wait(&self, range: Range<u64>) -> bool {
        let page = PAGE_SIZE as u64;
        let pages = range.end.div_ceil(page) - range.start / page;
        let room = self.budget.limit().saturating_sub(self.budget.used());
        if pages * FRAMES_A_PAGE > room || self.saves.any() {
            return true;
        }
        let is_part = |at: &u64| !at.is_multiple_of(page);
        let mut parts = [range.start, range.end].into_iter().filter(is_part);
        parts.any(|at| self.read_would_wait(at..at + 1))
    }

    /// Whether a page of the run is not in memory.
    fn any_elsewhere(&self, run: Run) -> bool {
        let empty_is_elsewhere = self.origin.image().is_some();
        let shard = self.shard(run.shard);
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
    pub(super) fn prefetch(&self, range: Range<u64>) -> Result<()> {
        let end = range.end.div_ceil(PAGE_SIZE as u64);
        if self.origin.home().is_some() {
            return self.prefetch_absent(range.start >> PAGE_SHIFT..end);
        }
        let high = self.watermarks().high;
        for page in range.start >> PAGE_SHIFT..end {
            if !self.segments.any_live() || self.budget.used() > high {
                break;
            }
            self.bring_back(PageIndex(page as u32))?;
        }
        Ok(())
    }
}
