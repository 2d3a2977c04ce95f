//! What a range of the device holds, page state by page state.

use std::ops::{ControlFlow, Range};

use super::Reader;
use crate::engine::RUN_PAGES;
use crate::origin::Image;
use crate::shard::{SLOTS_PER_BLOCK, Shard, SlotIndex, SlotState};
use crate::units::{Extent, PAGE_SHIFT, PageState};

/// Stripes that a search for data looks at while it holds a lock.
const STRIPES_AT_ONCE: u64 = 1024;

/// Joins neighbours of one state into extents, clipped to a range of bytes.
struct Coalescer<'a> {
    /// What absent pages are in: its holes are empty ones.
    image: Option<&'a dyn Image>,
    range: Range<u64>,
    pending: Option<Extent>,
    visit: &'a mut dyn FnMut(Extent) -> ControlFlow<()>,
}

impl Coalescer<'_> {
    /// Adds pages, which may be none.
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
                    Some(done) => self.emit(done),
                    None => ControlFlow::Continue(()),
                }
            }
        }
    }

    fn emit(&mut self, extent: Extent) -> ControlFlow<()> {
        match (self.image, extent.state) {
            (Some(image), PageState::Absent) => self.emit_absent(image, extent),
            _ => (self.visit)(extent),
        }
    }

    /// Tells the data of the image in an extent of absent pages from its holes.
    ///
    /// The image is asked after the slots: a page that has come to it meanwhile is data there.
    fn emit_absent(&mut self, image: &dyn Image, extent: Extent) -> ControlFlow<()> {
        let (mut at, end) = (extent.offset, extent.offset + extent.len);
        let mut emit = |from: u64, to: u64, state| match from < to {
            true => (self.visit)(Extent {
                offset: from,
                len: to - from,
                state,
            }),
            false => ControlFlow::Continue(()),
        };
        let mut next = image.next_data(at);
        while at < end {
            // Whatever an image says, this comes to an end.
            let mut data = if next.end > at { next } else { at..end };
            next = image.next_data(data.end.min(end));
            // What ends and begins in one page.
            while data.end < end && next.start <= data.end && next.end > data.end {
                data.end = next.end;
                next = image.next_data(data.end.min(end));
            }
            emit(at, data.start.min(end), PageState::Empty)?;
            emit(data.start, data.end.min(end), PageState::Absent)?;
            at = data.end;
        }
        ControlFlow::Continue(())
    }

    fn finish(mut self) {
        if let Some(last) = self.pending.take() {
            // Whether to go on no longer matters.
            let _ = self.emit(last);
        }
    }
}

impl Reader {
    /// Visits the extents of a range of bytes in order.
    ///
    /// The device is walked in stripes, which are one block of slots in each shard, so that each
    /// lock is taken once a stripe; empty stripes are passed over many at a time.
    pub(crate) fn extents(
        &self,
        range: Range<u64>,
        visit: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) {
        let shards = self.engine.shards.layout.shards().count() as u64;
        let stripe_pages = shards * u64::from(SLOTS_PER_BLOCK);
        let end_page = range.end.div_ceil(1 << PAGE_SHIFT);
        let mut first = range.start >> PAGE_SHIFT;
        let image = self.engine.origin.image();
        let mut out = Coalescer {
            image,
            range,
            pending: None,
            visit,
        };
        let empty = match image {
            Some(_) => PageState::Absent,
            None => PageState::Empty,
        };
        let mut states = Vec::new();
        while first < end_page {
            let window_end = (first + STRIPES_AT_ONCE * stripe_pages).min(end_page);
            let used = self
                .engine
                .shards
                .first_used(first..window_end)
                .unwrap_or(window_end);
            if out.pages(first, used - first, empty).is_break() {
                return;
            }
            first = ((used / stripe_pages + 1) * stripe_pages).min(window_end);
            self.stripe_states(used..first, empty, &mut states);
            for (page, &state) in (used..first).zip(&states) {
                if out.pages(page, 1, state).is_break() {
                    return;
                }
            }
        }
        out.finish();
    }

    /// Looks up the state of each page of part of a stripe, `empty` for those without a slot in use.
    fn stripe_states(&self, pages: Range<u64>, empty: PageState, states: &mut Vec<PageState>) {
        states.clear();
        states.resize((pages.end - pages.start) as usize, empty);
        for index in self.engine.shards.layout.shards() {
            let slots = self.engine.shards.layout.slots_of(index, pages.clone());
            let shard = self.engine.shards.lock(index);
            let mut at = slots.start;
            while let Some(used) = shard.next_used(at..slots.end) {
                let page = u64::from(self.engine.shards.layout.page(index, used).0);
                states[(page - pages.start) as usize] = state_of(&shard, used);
                at = used.0 + 1;
            }
        }
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
