//! A shard: a slice of the slot table with the pool that holds its pages and the order in which
//! its zspages were used. One mutex covers all of it; a function here runs with that mutex held,
//! which `&mut self` stands for, and does nothing slow: it neither compresses nor does I/O. The device
//! compresses under that mutex what is written to part of a page, as zram does, and nothing else.
//!
//! Invariants, proved by [`Shard::check`]:
//! 1. An object in the pool is the one that its owner's slot points at, and the other way round.
//! 2. `counts` says how many slots are in each state.
//! 3. Every zspage of the pool is in the LRU, unless it is isolated.
//! 4. A resident page has a generation.

mod adopt;
mod age;
mod copy_before_write;
mod destage;
mod dirty_map;
mod lru;
mod reclaim;
mod refault;
mod selected;
mod slot;
mod table_pages;
mod tables;

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use self::adopt::AgeRanks;
pub(crate) use self::age::{AgeTag, AgeTags, Present};
pub(crate) use self::copy_before_write::{SaveId, ToCopy};
pub(crate) use self::destage::{Contents, Dropped};
use self::dirty_map::DirtyMap;
pub(crate) use self::dirty_map::EvictionGeneration;
pub(crate) use self::lru::Clock;
use self::lru::Lru;
pub(crate) use self::reclaim::{Chances, Evicted};
use self::refault::RefaultClock;
pub(crate) use self::selected::Purpose;
use self::slot::SlotTable;
pub(crate) use self::slot::{SLOTS_PER_BLOCK, Slot, SlotIndex, SlotState};
use crate::codec::Codec;
use crate::memory::{FrameBudget, MemorySource};
use crate::pool::{NoRoom, ObjectAddress, Owner, Pool};
use crate::spill::{RecordAddress, SegmentTable};
use crate::sync::{Protection, without};

/// What a shard counts. Bytes unless a name says pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) same_pages: u64,
    pub(crate) resident_pages: u64,
    pub(crate) written_back_pages: u64,
    pub(crate) huge_pages: u64,
    /// Compressed bytes of resident pages.
    pub(crate) compr_bytes: u64,
    /// Pages ever written that were stored raw.
    pub(crate) huge_pages_since: u64,
    /// Frames that compaction ever freed.
    pub(crate) pages_compacted: u64,
}

impl Counts {
    /// Counts a slot that came to be in a state.
    fn add(&mut self, state: SlotState) {
        self.change(state, u64::wrapping_add);
    }

    /// Counts a slot that is no longer in a state.
    fn remove(&mut self, state: SlotState) {
        self.change(state, u64::wrapping_sub);
    }

    fn change(&mut self, state: SlotState, change: fn(u64, u64) -> u64) {
        let by = |count: &mut u64, amount: u64| *count = change(*count, amount);
        match state {
            SlotState::Empty => {}
            SlotState::SameFilled { .. } => by(&mut self.same_pages, 1),
            SlotState::Resident { len, codec, .. } => {
                by(&mut self.resident_pages, 1);
                by(&mut self.compr_bytes, len as u64);
                by(&mut self.huge_pages, u64::from(codec == Codec::Raw));
            }
            SlotState::WrittenBack { .. } => by(&mut self.written_back_pages, 1),
        }
    }
}

/// The shard.
pub(crate) struct Shard {
    slots: SlotTable,
    pool: Box<dyn Pool>,
    lru: Lru,
    read_backs: RefaultClock,
    segments: Arc<SegmentTable>,
    present: Arc<Present>,
    /// Of a device over an image.
    dirty_map: Option<DirtyMap>,
    counts: Counts,
    /// Objects freed since [`Shard::forget_churn`].
    churned: u64,
    /// What is still to be saved, while the device is.
    to_copy: Option<ToCopy>,
}

impl Shard {
    /// A shard of `slots` empty slots over an empty pool, whose tables take page frames from `tables`.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(
        slots: u32,
        pool: Box<dyn Pool>,
        clock: Clock,
        segments: Arc<SegmentTable>,
        present: Arc<Present>,
        tables: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Ok(Self {
            slots: SlotTable::new(slots, tables, memory)?,
            lru: Lru::new(pool.max_zspages(), clock)?,
            pool,
            read_backs: RefaultClock::default(),
            segments,
            present,
            dirty_map: None,
            counts: Counts::default(),
            churned: 0,
            to_copy: None,
        })
    }

    /// The same, for the pages of a device over an image.
    ///
    /// # Errors
    /// Those of [`Shard::new`].
    pub(crate) fn with_dirty_map(
        mut self,
        tables: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        self.dirty_map = Some(DirtyMap::new(self.slots.len(), tables, memory)?);
        Ok(self)
    }

    pub(crate) fn slot(&self, index: SlotIndex) -> Slot {
        self.slots.get(index)
    }

    /// Says that a slot's object, if it has one, is going to be looked at soon.
    pub(crate) fn prefetch(&self, index: SlotIndex) {
        if let SlotState::Resident { object, len, .. } = self.slots.get(index).state() {
            self.pool.prefetch(object, len);
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Starts the counts of what ever happened again.
    pub(crate) fn reset_counts(&mut self) {
        self.counts.huge_pages_since = 0;
        self.counts.pages_compacted = 0;
    }

    pub(crate) fn pool(&self) -> &dyn Pool {
        &*self.pool
    }

    pub(crate) fn pool_mut(&mut self) -> &mut dyn Pool {
        &mut *self.pool
    }

    /// Notes that a client has read the slot's page.
    pub(crate) fn touch(&mut self, index: SlotIndex) {
        self.slots.note_read(index, self.present.tag());
    }

    /// Changes what `change` says of how pages were used, from the start of a range of slots on;
    /// returns where to go on.
    pub(crate) fn change_notes(
        &mut self,
        range: Range<u32>,
        mut change: impl FnMut(SlotIndex, Slot) -> Slot,
    ) -> u32 {
        self.slots.sweep(range, &mut |index, slot| {
            let changed = change(index, slot);
            debug_assert!(changed.same_place(slot));
            changed
        })
    }

    /// Notes that the page of a slot that is written back is read; returns whether it was wanted
    /// not long ago, too: read back, or evicted.
    pub(crate) fn note_read_back(&mut self, index: SlotIndex) -> bool {
        self.read_backs.tick(self.counts.resident_pages);
        let before = self.slots.get(index).read_back_epoch();
        self.slots
            .set_read_back_epoch(index, self.read_backs.epoch());
        self.read_backs.is_recent(before)
    }

    /// The first slot of `range` that is not empty.
    pub(crate) fn next_used(&self, range: Range<u32>) -> Option<SlotIndex> {
        self.slots.next_used(range)
    }

    /// Stores `data` as the slot's page, which is new. The old data is given up only once the new
    /// is in place.
    ///
    /// # Errors
    /// [`NoRoom`]; the slot is as it was.
    pub(crate) fn store(
        &mut self,
        index: SlotIndex,
        codec: Codec,
        data: &[u8],
    ) -> Result<(), NoRoom> {
        self.promote(index, codec, data)?;
        self.counts.huge_pages_since += u64::from(codec == Codec::Raw);
        Ok(())
    }

    /// The same for what the slot's page is already, but elsewhere.
    ///
    /// # Errors
    /// Those of [`Shard::store`].
    pub(crate) fn promote(
        &mut self,
        index: SlotIndex,
        codec: Codec,
        data: &[u8],
    ) -> Result<(), NoRoom> {
        let object = self.allocate_reserved(index, data)?;
        let slot = Slot::resident(object, data.len(), codec);
        self.note_change(index, false);
        self.set(index, slot.written_in(self.present.tag()));
        Ok(())
    }

    /// Points the empty slot at a record of an image.
    ///
    /// # Errors
    /// Those of [`Shard::reserve`].
    pub(crate) fn import(
        &mut self,
        index: SlotIndex,
        record: RecordAddress,
        len: usize,
        codec: Codec,
    ) -> Result<(), NoRoom> {
        debug_assert!(self.slot(index).is_empty());
        self.reserve(index)?;
        self.segments.retain(record, len);
        self.set(index, Slot::written_back(record, len, codec));
        Ok(())
    }

    /// Makes the slot's page one repeated pattern.
    ///
    /// # Errors
    /// Those of [`Shard::reserve`].
    pub(crate) fn store_same_filled(
        &mut self,
        index: SlotIndex,
        pattern: u32,
    ) -> Result<(), NoRoom> {
        // Part of a block of zeroes is no change.
        if pattern == 0 && self.slots.is_in_zeroes(index) {
            return Ok(());
        }
        self.reserve(index)?;
        self.note_change(index, false);
        self.set(index, Slot::same_filled(pattern));
        Ok(())
    }

    /// Makes the slot's page zeroes.
    ///
    /// # Errors
    /// Those of [`Shard::reserve`].
    pub(crate) fn store_zeroes(&mut self, index: SlotIndex) -> Result<(), NoRoom> {
        self.store_same_filled(index, 0)
    }

    /// Empties the slot, of a device without an image; and with it all of its block, if that is one of zeroes, which
    /// is not emptied in part. Returns how many slots that were.
    pub(crate) fn clear(&mut self, index: SlotIndex) -> u32 {
        debug_assert!(self.dirty_map.is_none());
        if self.slots.is_in_zeroes(index) {
            debug_assert!(index.0.is_multiple_of(SLOTS_PER_BLOCK));
            let slots = self.slots.empty_zeroes(index);
            self.counts.same_pages -= u64::from(slots);
            return slots;
        }
        self.set(index, Slot::EMPTY);
        1
    }

    /// Makes all pages of the block that starts with a slot zeroes, for which it needs no slots; not where
    /// pages are destaged, or can be saved. Returns how many held data.
    pub(crate) fn zero_block(&mut self, first: SlotIndex) -> u64 {
        debug_assert!(self.dirty_map.is_none() && self.to_copy.is_none());
        let end = first
            .0
            .saturating_add(SLOTS_PER_BLOCK)
            .min(self.slots.len());
        let (mut at, mut held) = (first.0, 0);
        if self.slots.is_in_zeroes(first) {
            return u64::from(end - first.0);
        }
        self.slots.begin_zero_block(first);
        while let Some(index) = self.slots.next_used(at..end) {
            let cleared = self.clear(index);
            held += u64::from(cleared);
            at = index.0 + cleared;
        }
        self.counts.same_pages += u64::from(self.slots.zero_block(first));
        held
    }

    /// Copies the data in the pool to an object for the slot, which may be empty.
    fn allocate_reserved(
        &mut self,
        index: SlotIndex,
        data: &[u8],
    ) -> Result<ObjectAddress, NoRoom> {
        self.reserve(index)?;
        self.allocate(index, data)
            .inspect_err(|_| self.abandon(index))
    }

    /// Copies the data in the pool to an object for the slot.
    fn allocate(&mut self, index: SlotIndex, data: &[u8]) -> Result<ObjectAddress, NoRoom> {
        let stored = self.pool.store(Owner(index.0), data)?;
        self.lru.touch(stored.zspage);
        Ok(stored.object)
    }

    /// Changes a slot and releases what it held.
    fn set(&mut self, index: SlotIndex, slot: Slot) {
        let before = self.slots.replace(index, slot);
        self.counts.add(slot.state());
        self.counts.remove(before.state());
        match before.state() {
            SlotState::Empty | SlotState::SameFilled { .. } => {}
            SlotState::Resident { .. }
                if !slot.is_empty() && without(Protection::FreedAsReplaced) => {}
            SlotState::Resident { object, .. } => self.free(object),
            SlotState::WrittenBack { record, len, .. } => self.segments.release(record, len),
        }
    }

    /// Whether so many objects were freed that the pool may have become sparse.
    pub(crate) fn is_churned(&self) -> bool {
        /// Few enough for a device of some megabytes, and work for a millisecond.
        const MIN: u64 = 256;
        /// One in so many of the objects there are.
        const SHARE: u64 = 16;
        self.churned >= (self.counts.resident_pages / SHARE).max(MIN)
    }

    /// Counts freed objects from here on.
    pub(crate) fn forget_churn(&mut self) {
        self.churned = 0;
    }

    fn free(&mut self, object: ObjectAddress) {
        self.churned += 1;
        if let Some(zspage) = self.pool.free(object) {
            self.lru.remove(zspage);
        }
    }

    /// Frees one zspage by moving its objects to others; returns the frames that are free by that,
    /// or `None` if it is not possible.
    pub(crate) fn compact(&mut self) -> Option<u64> {
        let Self { slots, pool, .. } = self;
        let done = pool.compact(&mut |owner, from, to| {
            let index = SlotIndex(owner.0);
            let slot = slots.get(index);
            let SlotState::Resident { object, len, codec } = slot.state() else {
                unreachable!("{index:?} owns {from:?} and is {slot:?}");
            };
            debug_assert_eq!(object, from);
            let moved = Slot::resident(to, len, codec);
            slots.replace(index, moved.with_notes_of(slot));
        })?;
        for into in done.into {
            self.lru.inherit(into, done.zspage);
        }
        self.lru.remove(done.zspage);
        self.counts.pages_compacted += done.frames;
        Some(done.frames)
    }

    /// Asserts the invariants above and those of the parts, and calls `live` for each record that
    /// a slot refers to. Slow; no zspage may be isolated and no frames be out for release.
    pub(crate) fn check(&self, mut live: impl FnMut(Slot)) {
        self.pool.check();
        let used = self.slots.check();
        let mut counts = Counts {
            huge_pages_since: self.counts.huge_pages_since,
            pages_compacted: self.counts.pages_compacted,
            ..Counts::default()
        };
        let mut at = 0;
        while let Some(index) = self.slots.next_used(at..self.slots.len()) {
            let slot = self.slots.get(index);
            assert!(!slot.is_selected(), "{index:?}");
            counts.add(slot.state());
            if let SlotState::WrittenBack { .. } = slot.state() {
                live(slot);
            }
            at = index.0 + 1;
        }
        assert_eq!(counts, self.counts);
        assert_eq!(
            counts.same_pages + counts.resident_pages + counts.written_back_pages,
            used
        );
        self.check_objects();
        self.check_dirty_map();
    }

    /// Each object's owner points at it, and there are no more objects than such slots.
    fn check_objects(&self) {
        let mut objects = 0;
        for zspage in self.lru.check() {
            self.pool.objects(zspage, &mut |object, owner| {
                let slot = self.slots.get(SlotIndex(owner.0)).state();
                assert!(matches!(slot, SlotState::Resident { object: at, .. } if at == object));
                objects += 1;
            });
        }
        assert_eq!(objects, self.counts.resident_pages);
    }

    /// A slot that is empty is clean, and one that is same-filled is dirty.
    fn check_dirty_map(&self) {
        let Some(dirty_map) = &self.dirty_map else {
            return;
        };
        dirty_map.check();
        let (mut at, mut dirty) = (0, 0);
        while let Some(index) = self.slots.next_used(at..self.slots.len()) {
            let same = matches!(self.slots.get(index).state(), SlotState::SameFilled { .. });
            assert!(dirty_map.is_dirty(index) || !same, "{index:?}");
            dirty += u64::from(dirty_map.is_dirty(index));
            at = index.0 + 1;
        }
        assert_eq!(dirty, dirty_map.total());
    }
}
