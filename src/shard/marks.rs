//! Which pages of a shard differ from the image that is their home.

use std::io;
use std::ops::Range;

use super::slot::{SLOTS_PER_BLOCK, SlotIndex};
use crate::memory::LazyTable;
use crate::sync::{Protection, without};

/// The page is not in the image as it is.
const DIRTY: u32 = 1;
/// It is being written home, and has not changed since.
const TAKEN: u32 = 2;
/// It is being written home, whether it has changed since or not: it may not be taken again.
const IN_BATCH: u32 = 4;
/// It was discarded: a hole is as good as zeroes.
const HOLE: u32 = 8;
/// How often the page left memory for the image, in the bits that are left.
const DEPARTURE: u32 = 16;

/// The marks of a shard, in four bytes a page.
///
/// Invariants: `dirty[b]` is the number of dirty slots in block `b`, and `total` that in all; what
/// is taken is dirty.
pub(super) struct HomeMarks {
    marks: LazyTable<u32>,
    dirty: LazyTable<u32>,
    total: u64,
}

impl HomeMarks {
    /// Marks for so many slots, none of them dirty.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn new(slots: u32) -> io::Result<Self> {
        Ok(Self {
            marks: LazyTable::new(slots as usize)?,
            dirty: LazyTable::new(slots.div_ceil(SLOTS_PER_BLOCK) as usize)?,
            total: 0,
        })
    }

    fn mark(&mut self, index: SlotIndex) -> &mut u32 {
        &mut self.marks[index.0 as usize]
    }

    /// Dirty slots.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn is_dirty(&self, index: SlotIndex) -> bool {
        self.marks[index.0 as usize] & DIRTY != 0
    }

    pub(super) fn is_hole(&self, index: SlotIndex) -> bool {
        self.marks[index.0 as usize] & HOLE != 0
    }

    /// Notes that a page has changed.
    pub(super) fn change(&mut self, index: SlotIndex, hole: bool) {
        let mark = self.mark(index);
        let was_dirty = *mark & DIRTY != 0;
        *mark = *mark & !(TAKEN | HOLE) | DIRTY | if hole { HOLE } else { 0 };
        if !was_dirty {
            self.dirty[(index.0 / SLOTS_PER_BLOCK) as usize] += 1;
            self.total += 1;
        }
    }

    /// Notes that a dirty page is being written home; returns whether it was not already, as it is
    /// or as it was: two writes of a page beside one another might end in either order.
    pub(super) fn take(&mut self, index: SlotIndex) -> bool {
        let mark = self.mark(index);
        debug_assert!(*mark & DIRTY != 0);
        if *mark & IN_BATCH != 0 && !without(Protection::OnceInABatch) {
            return false;
        }
        *mark |= TAKEN | IN_BATCH;
        true
    }

    /// Notes that writing a page home has ended, well or not; returns whether the page is clean by
    /// that: it is not if it has changed meanwhile.
    pub(super) fn land(&mut self, index: SlotIndex, written: bool) -> bool {
        let mark = self.mark(index);
        let is_unchanged = *mark & TAKEN != 0 || without(Protection::CleanIfUnchanged);
        let is_clean = written && is_unchanged;
        *mark &= !(TAKEN | IN_BATCH);
        if is_clean {
            *mark &= !(DIRTY | HOLE);
            self.dirty[(index.0 / SLOTS_PER_BLOCK) as usize] -= 1;
            self.total -= 1;
        }
        is_clean
    }

    /// How often the page has left memory. A reader of the image to whom this is the same before
    /// and after, with the slot empty at both times, has read while nothing was written there.
    pub(super) fn departures(&self, index: SlotIndex) -> u32 {
        self.marks[index.0 as usize] / DEPARTURE
    }

    /// Notes that a page, which is clean, leaves memory.
    pub(super) fn depart(&mut self, index: SlotIndex) {
        let mark = self.mark(index);
        debug_assert!(*mark & DIRTY == 0);
        *mark = mark.wrapping_add(DEPARTURE);
    }

    /// The first dirty slot of a range.
    pub(super) fn next_dirty(&self, range: Range<u32>) -> Option<SlotIndex> {
        let mut at = range.start;
        while at < range.end {
            if self.dirty[(at / SLOTS_PER_BLOCK) as usize] == 0 {
                at = (at / SLOTS_PER_BLOCK + 1) * SLOTS_PER_BLOCK;
                continue;
            }
            if self.is_dirty(SlotIndex(at)) {
                return Some(SlotIndex(at));
            }
            at += 1;
        }
        None
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        let mut total = 0;
        // A table of billions of slots is not read whole: most of it was never touched.
        let sparse = self.marks.len() > 1 << 24;
        for (block, &dirty) in self.dirty.iter().enumerate() {
            if sparse && dirty == 0 {
                continue;
            }
            let first = block * SLOTS_PER_BLOCK as usize;
            let end = (first + SLOTS_PER_BLOCK as usize).min(self.marks.len());
            let marks = &self.marks[first..end];
            let counted = marks.iter().filter(|&&mark| mark & DIRTY != 0).count();
            assert_eq!(dirty as usize, counted, "block {block}");
            assert!(marks.iter().all(|mark| mark & (DIRTY | TAKEN) != TAKEN));
            assert!(marks.iter().all(|mark| mark & (IN_BATCH | TAKEN) != TAKEN));
            total += u64::from(dirty);
        }
        assert_eq!(total, self.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: SlotIndex = SlotIndex(700);

    #[test]
    fn what_changes_on_its_way_home_stays_dirty() {
        let mut marks = HomeMarks::new(2000).expect("addresses");
        marks.change(AT, true);
        marks.change(AT, false);
        assert!(marks.take(AT) && !marks.take(AT));
        marks.change(AT, true);
        assert!(!marks.take(AT), "the other one is still under way");
        assert!(!marks.land(AT, true) && marks.is_dirty(AT) && marks.is_hole(AT));
        assert!(marks.take(AT) && !marks.land(AT, false) && marks.is_dirty(AT));
        assert_eq!(marks.total(), 1);
        assert!(marks.take(AT) && marks.land(AT, true));
        assert!(!marks.is_dirty(AT) && !marks.is_hole(AT));
        assert_eq!((marks.total(), marks.departures(AT)), (0, 0));
        marks.depart(AT);
        marks.change(AT, false);
        assert_eq!(marks.departures(AT), 1);
        marks.check();
    }

    #[test]
    fn what_is_dirty_is_found() {
        let mut marks = HomeMarks::new(10_000).expect("addresses");
        assert_eq!(marks.next_dirty(0..10_000), None);
        for at in [511, 7000, 9999] {
            marks.change(SlotIndex(at), false);
        }
        assert_eq!(marks.next_dirty(0..10_000), Some(SlotIndex(511)));
        assert_eq!(marks.next_dirty(512..7000), None);
        assert_eq!(marks.next_dirty(512..10_000), Some(SlotIndex(7000)));
        assert_eq!(marks.next_dirty(7001..10_000), Some(SlotIndex(9999)));
        marks.check();
    }
}
