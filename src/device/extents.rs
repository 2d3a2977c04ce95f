//! What a range of the device holds, page state by page state.

use std::ops::{ControlFlow, Range};

use super::core::Core;
use super::layout::RUN_PAGES;
use crate::shard::{SLOTS_PER_BLOCK, Shard, SlotIndex, SlotState};
use crate::units::{Extent, PAGE_SHIFT, PageState};

/// Joins neighbours of one state into extents, clipped to a range of bytes.
struct Coalescer<'a> {
    range: Range<u64>,
    pending: Option<Extent>,
    visit: &'a mut dyn FnMut(Extent) -> ControlFlow<()>,
}

impl Coalescer<'_> {
    fn pages(&mut self, first: u64, pages: u64, state: PageState) -> ControlFlow<()> {
        let start = (first << PAGE_SHIFT).max(self.range.start);
        let end = ((first + pages) << PAGE_SHIFT).min(self.range.end);
        if start >= end {
            return ControlFlow::Continue(());
        }
        match &mut self.pending {
            Some(pending) if pending.state == state => {
                pending.len = end - pending.offset;
                ControlFlow::Continue(())
            }
            _ => {
                let next = Extent {
                    offset: start,
                    len: end - start,
                    state,
                };
                match self.pending.replace(next) {
                    Some(done) => (self.visit)(done),
                    None => ControlFlow::Continue(()),
                }
            }
        }
    }

    fn finish(self) {
        if let Some(last) = self.pending {
            // Whether to go on no longer matters.
            let _ = (self.visit)(last);
        }
    }
}

impl Core {
    /// Visits the extents of a range of bytes in order.
    ///
    /// The device is walked in stripes, which are one block of slots in each shard, so that each
    /// lock is taken once a stripe and empty stripes are passed over as a whole.
    pub(super) fn extents(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) {
        let shards = self.layout.shards().count() as u64;
        let stripe_pages = shards * u64::from(SLOTS_PER_BLOCK);
        let end_page = range.end.div_ceil(1 << PAGE_SHIFT);
        let mut first = range.start >> PAGE_SHIFT;
        let mut out = Coalescer {
            range,
            pending: None,
            visit,
        };
        let mut states = Vec::new();
        while first < end_page {
            let end = ((first / stripe_pages + 1) * stripe_pages).min(end_page);
            let walked = if self.stripe_states(first..end, &mut states) {
                (first..)
                    .zip(&states)
                    .try_for_each(|(page, &state)| out.pages(page, 1, state))
            } else {
                out.pages(first, end - first, PageState::Empty)
            };
            if walked.is_break() {
                return;
            }
            first = end;
        }
        out.finish();
    }

    /// Looks up the state of each page of part of a stripe; returns false if all are empty.
    fn stripe_states(&self, pages: Range<u64>, states: &mut Vec<PageState>) -> bool {
        states.clear();
        states.resize((pages.end - pages.start) as usize, PageState::Empty);
        let mut any = false;
        for index in self.layout.shards() {
            let slots = self.layout.slots_of(index, pages.clone());
            let shard = self.shard(index);
            let mut at = slots.start;
            while let Some(used) = shard.next_used(at..slots.end) {
                let page = u64::from(self.layout.page(index, used).0);
                states[(page - pages.start) as usize] = state_of(&shard, used);
                any = true;
                at = used.0 + 1;
            }
        }
        any
    }
}

fn state_of(shard: &Shard, index: SlotIndex) -> PageState {
    match shard.slot(index).state() {
        SlotState::Empty => PageState::Empty,
        SlotState::SameFilled { pattern: 0 } => PageState::Zero,
        SlotState::SameFilled { .. } => PageState::SameFilled,
        SlotState::Resident { .. } => PageState::Resident,
        SlotState::WrittenBack { .. } => PageState::WrittenBack,
    }
}

// A stripe is a whole number of runs of pages.
const _: () = assert!(SLOTS_PER_BLOCK.is_multiple_of(RUN_PAGES));
