//! Which pages of a shard differ from the image beneath.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::slot::SlotIndex;
use super::table_pages::TablePages;
use crate::memory::{FrameBudget, IdlePages, LazyTable, MemorySource, Publish};
use crate::pool::NoRoom;
use crate::sync::{Protection, without};

/// The page is not in the image as it is.
const DIRTY: u32 = 1;
/// It is being destaged, and has not changed since.
const TAKEN: u32 = 2;
/// It is being destaged, whether it has changed since or not: it may not be taken again.
const IN_BATCH: u32 = 4;
/// It was discarded: a hole is as good as zeroes.
const HOLE: u32 = 8;
/// How often the page left memory for the image, in the bits that are left.
const EVICTION: u32 = 16;

/// Marks whose use is counted together: a page frame of them.
const ENTRIES_PER_BLOCK: u32 = 1024;

fn block_of(index: SlotIndex) -> u32 {
    index.0 / ENTRIES_PER_BLOCK
}

/// How often a page has left memory for its image, or at least a number that is another one each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EvictionGeneration(pub(crate) u64);

/// The marks of a shard, in four bytes a page.
///
/// Invariants: `dirty` counts the dirty slots of each block, and `total` those in all; what is taken,
/// in a batch or a hole is dirty.
pub(super) struct DirtyMap {
    entries: LazyTable<AtomicU32>,
    dirty: TablePages,
    total: u64,
    /// By block, how often evictions were counted for all of its pages together: when its marks went back
    /// to the kernel, and with them how often each page had left, and for any that left while there
    /// were no marks.
    eviction_generation: LazyTable<u32>,
}

impl DirtyMap {
    /// Marks for so many slots, none of them dirty.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn new(
        slots: u32,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        let blocks = slots.div_ceil(ENTRIES_PER_BLOCK);
        Ok(Self {
            entries: LazyTable::new_in(slots as usize, memory)?,
            dirty: TablePages::new(blocks, budget, memory)?,
            total: 0,
            eviction_generation: LazyTable::new(blocks as usize)?,
        })
    }

    /// Sees to it that a page can be marked as dirty. If it is not, [`DirtyMap::abandon`] has to
    /// follow.
    ///
    /// # Errors
    /// Those of [`TablePages::reserve`].
    pub(super) fn reserve(&mut self, index: SlotIndex) -> Result<(), NoRoom> {
        self.dirty.reserve(block_of(index))
    }

    pub(super) fn abandon(&mut self, index: SlotIndex) {
        self.dirty.abandon(block_of(index));
    }

    pub(super) fn pages(&self) -> &TablePages {
        &self.dirty
    }

    /// Takes blocks without a mark out to be released, as [`TablePages::take_out`] does.
    pub(super) fn take_out(&mut self, keep: usize, most: usize) -> IdlePages {
        let out = self.dirty.take_out(keep, most);
        for &block in &out {
            for at in self.entries_of(block) {
                self.entries[at].publish(0);
            }
            self.count_eviction_of(block);
        }
        self.entries.lend_out(out)
    }

    /// Takes them back; returns how many the kernel has.
    pub(super) fn take_back(&mut self, idle: IdlePages) -> u64 {
        self.dirty.take_back(idle)
    }

    fn count_eviction_of(&mut self, block: u32) {
        let eviction_generation = &mut self.eviction_generation[block as usize];
        *eviction_generation = eviction_generation.wrapping_add(1);
    }

    /// Where the entries of a block are.
    fn entries_of(&self, block: u32) -> Range<usize> {
        let first = (block * ENTRIES_PER_BLOCK) as usize;
        first..(first + ENTRIES_PER_BLOCK as usize).min(self.entries.len())
    }

    fn mark(&self, index: SlotIndex) -> u32 {
        self.entries[index.0 as usize].load(Ordering::Relaxed)
    }

    fn set_mark(&mut self, index: SlotIndex, mark: u32) {
        self.entries[index.0 as usize].publish(mark);
    }

    /// Finds what is dirty among what was found in the memory, of which `is_empty` says which slots hold nothing: a
    /// death came between marking the page and changing its slot. What was being destaged is not any more.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn adopt(&mut self, is_empty: impl Fn(SlotIndex) -> bool) -> io::Result<()> {
        for data in self.entries.data_ranges()? {
            let entries = data.start as u32..data.end as u32;
            for block in entries.step_by(ENTRIES_PER_BLOCK as usize) {
                let block = block / ENTRIES_PER_BLOCK;
                let mut dirty = 0;
                for at in self.entries_of(block) {
                    let index = SlotIndex(at as u32);
                    let found = self.mark(index);
                    let mut mark = found & !(TAKEN | IN_BATCH);
                    if mark & DIRTY != 0 && is_empty(index) {
                        mark &= !(DIRTY | HOLE);
                    }
                    if mark != found {
                        self.set_mark(index, mark);
                    }
                    dirty += mark & DIRTY;
                }
                self.dirty.adopt(block, dirty);
                self.total += u64::from(dirty);
            }
        }
        Ok(())
    }

    /// Dirty slots.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn is_dirty(&self, index: SlotIndex) -> bool {
        self.mark(index) & DIRTY != 0
    }

    pub(super) fn is_hole(&self, index: SlotIndex) -> bool {
        self.mark(index) & HOLE != 0
    }

    /// Notes that a page, which is reserved, has changed.
    pub(super) fn change(&mut self, index: SlotIndex, hole: bool) {
        let mark = self.mark(index);
        let was_dirty = mark & DIRTY != 0;
        let hole = if hole { HOLE } else { 0 };
        self.set_mark(index, mark & !(TAKEN | HOLE) | DIRTY | hole);
        if !was_dirty {
            self.dirty.add(block_of(index));
            self.total += 1;
        }
    }

    /// Notes that a dirty page is being destaged; returns whether it was not already, as it is
    /// or as it was: two writes of a page beside one another might end in either order.
    pub(super) fn take(&mut self, index: SlotIndex) -> bool {
        let mark = self.mark(index);
        debug_assert!(mark & DIRTY != 0);
        if mark & IN_BATCH != 0 && !without(Protection::OnceInABatch) {
            return false;
        }
        self.set_mark(index, mark | TAKEN | IN_BATCH);
        true
    }

    /// Notes that destaging a page has ended, well or not; returns whether the page is clean by
    /// that: it is not if it has changed meanwhile.
    pub(super) fn settle(&mut self, index: SlotIndex, written: bool) -> bool {
        let mark = self.mark(index);
        let is_unchanged = mark & TAKEN != 0 || without(Protection::CleanIfUnchanged);
        let is_clean = written && is_unchanged;
        let gone = if is_clean { DIRTY | HOLE } else { 0 };
        self.set_mark(index, mark & !(TAKEN | IN_BATCH | gone));
        if is_clean {
            self.dirty.remove(block_of(index));
            self.total -= 1;
        }
        is_clean
    }

    /// How often the page has left memory. A reader of the image to whom this is the same before
    /// and after, with the slot empty at both times, has read while nothing was written there.
    pub(super) fn eviction_generation(&self, index: SlotIndex) -> EvictionGeneration {
        let of_block = u64::from(self.eviction_generation[block_of(index) as usize]);
        let of_page = u64::from(self.mark(index) / EVICTION);
        EvictionGeneration(of_block << u32::BITS | of_page)
    }

    /// Notes that a page, which is clean, leaves memory.
    pub(super) fn note_eviction(&mut self, index: SlotIndex) {
        if !self.dirty.is_ready(block_of(index)) {
            return self.count_eviction_of(block_of(index));
        }
        let mark = self.mark(index);
        debug_assert!(mark & DIRTY == 0);
        self.set_mark(index, mark.wrapping_add(EVICTION));
    }

    /// The first dirty slot of a range.
    pub(super) fn next_dirty(&self, range: Range<u32>) -> Option<SlotIndex> {
        let mut at = range.start;
        while at < range.end {
            if self.dirty.count(at / ENTRIES_PER_BLOCK) == 0 {
                at = (at / ENTRIES_PER_BLOCK + 1) * ENTRIES_PER_BLOCK;
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
        let total = self.dirty.check(|block| {
            let map = self.entries_of(block);
            let map = map.map(|at| self.mark(SlotIndex(at as u32)));
            let flags = DIRTY | TAKEN | IN_BATCH | HOLE;
            assert!(
                map.clone()
                    .all(|mark| mark & flags == 0 || mark & DIRTY != 0)
            );
            assert!(map.clone().all(|mark| mark & (IN_BATCH | TAKEN) != TAKEN));
            map.filter(|mark| mark & DIRTY != 0).count() as u32
        });
        assert_eq!(total, self.total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: SlotIndex = SlotIndex(700);

    fn map(slots: u32) -> DirtyMap {
        let budget = Arc::new(FrameBudget::new(FrameBudget::UNLIMITED));
        DirtyMap::new(slots, budget, &MemorySource::Process).expect("addresses")
    }

    fn change(map: &mut DirtyMap, at: SlotIndex, hole: bool) {
        map.reserve(at).expect("room");
        map.change(at, hole);
    }

    #[test]
    fn what_changes_while_it_is_destaged_stays_dirty() {
        let mut map = map(2000);
        change(&mut map, AT, true);
        change(&mut map, AT, false);
        assert!(map.take(AT) && !map.take(AT));
        change(&mut map, AT, true);
        assert!(!map.take(AT), "the other one is still under way");
        assert!(!map.settle(AT, true) && map.is_dirty(AT) && map.is_hole(AT));
        assert!(map.take(AT) && !map.settle(AT, false) && map.is_dirty(AT));
        assert_eq!(map.total(), 1);
        assert!(map.take(AT) && map.settle(AT, true));
        assert!(!map.is_dirty(AT) && !map.is_hole(AT));
        assert_eq!((map.total(), map.eviction_generation(AT).0), (0, 0));
        map.note_eviction(AT);
        change(&mut map, AT, false);
        assert_eq!(map.eviction_generation(AT).0, 1);
        map.check();
    }

    #[test]
    fn what_is_dirty_is_found() {
        let mut map = map(10_000);
        assert_eq!(map.next_dirty(0..10_000), None);
        for at in [511, 7000, 9999] {
            change(&mut map, SlotIndex(at), false);
        }
        assert_eq!(map.next_dirty(0..10_000), Some(SlotIndex(511)));
        assert_eq!(map.next_dirty(512..7000), None);
        assert_eq!(map.next_dirty(512..10_000), Some(SlotIndex(7000)));
        assert_eq!(map.next_dirty(7001..10_000), Some(SlotIndex(9999)));
        map.check();
    }

    /// However its marks come and go, a page that has left memory is known to have.
    #[test]
    fn evictions_are_told_apart_though_marks_went_back() {
        let mut map = map(2000);
        let mut seen = vec![map.eviction_generation(AT)];
        for round in 0..3 {
            map.note_eviction(AT);
            seen.push(map.eviction_generation(AT));
            change(&mut map, AT, round == 1);
            assert!(map.take(AT) && map.settle(AT, true));
            map.note_eviction(AT);
            seen.push(map.eviction_generation(AT));
            let mut idle = map.take_out(0, 10);
            map.note_eviction(AT);
            seen.push(map.eviction_generation(AT));
            idle.release().expect("madvise");
            assert_eq!(map.take_back(idle), 1);
            assert_eq!(map.eviction_generation(AT), seen[seen.len() - 1]);
            map.check();
        }
        for (i, eviction_generation) in seen.iter().enumerate() {
            assert!(!seen[..i].contains(eviction_generation), "{seen:?}");
        }
        assert_eq!(map.pages().held(), 0);
    }
}
