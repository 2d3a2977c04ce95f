//! A shard's part in a device over an image.
//!
//! An empty slot is a page that the image has, as it is. A page that was written is dirty until it
//! has been destaged, and stays in memory as long: so a reader finds it there, and it can be
//! taken again if writing fails. It is taken and its data copied under one hold of the lock; what
//! changes it later takes the mark away, and then it is still dirty when the write has ended. Until
//! then it is not taken again, not even by the same batch, so what is on its way is never overtaken
//! by what was taken later.
//!
//! Invariants, where there is a dirty map: an empty slot is not dirty; a same-filled one is, and so is
//! whatever the image does not have. A page is marked before its slot is changed, so that no death between the two
//! leaves one that is changed and not marked.

use std::ops::Range;

use super::dirty_map::{DirtyMap, EvictionGeneration};
use super::reclaim::Chances;
use super::{Shard, Slot, SlotIndex, SlotState};
use crate::codec::Codec;
use crate::pool::{NoRoom, ZspageId};
use crate::sync::{Protection, without};

/// What a dirty page holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Contents<'a> {
    /// Zeroes, and a hole will do.
    Hole,
    SameFilled(u32),
    Object {
        codec: Codec,
        data: &'a [u8],
    },
}

/// What going over a part of the slots has done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropped {
    /// Pages that left memory.
    pub(crate) pages: u64,
    /// Page frames that were freed by that.
    pub(crate) frames: u64,
    /// Where to go on.
    pub(crate) next: u32,
}

impl Shard {
    /// Pages that are not in the image as they are.
    pub(crate) fn dirty_pages(&self) -> u64 {
        self.dirty_map.as_ref().map_or(0, DirtyMap::total)
    }

    /// Pages that are in memory and, as they are, in the image.
    pub(crate) fn clean_pages(&self) -> u64 {
        // What is same-filled is dirty.
        (self.counts.resident_pages + self.counts.same_pages).saturating_sub(self.dirty_pages())
    }

    /// Makes the slot's page zeroes, for which the image needs no space.
    ///
    /// # Errors
    /// Those of [`Shard::reserve`].
    pub(crate) fn discard_to_image(&mut self, index: SlotIndex) -> Result<(), NoRoom> {
        self.reserve(index)?;
        self.note_change(index, true);
        self.set(index, Slot::same_filled(0));
        Ok(())
    }

    pub(super) fn note_change(&mut self, index: SlotIndex, hole: bool) {
        if let Some(dirty_map) = &mut self.dirty_map {
            dirty_map.change(index, hole);
        }
    }

    /// How often the slot's page has left memory for the image.
    pub(crate) fn eviction_generation(&self, index: SlotIndex) -> EvictionGeneration {
        let dirty_map = self.dirty_map.as_ref();
        dirty_map.map_or_else(EvictionGeneration::default, |dirty_map| {
            dirty_map.eviction_generation(index)
        })
    }

    /// Whether what was read of the image is the page: its slot was empty all the time since it had
    /// left memory so often.
    pub(crate) fn is_absent_since(
        &self,
        index: SlotIndex,
        eviction_generation: EvictionGeneration,
    ) -> bool {
        let never_left = self.eviction_generation(index) == eviction_generation
            || without(Protection::GenerationsCounted);
        let is_empty = self.slots.get(index).is_empty() || without(Protection::KeptOnce);
        is_empty && never_left
    }

    /// Keeps a copy of a page that is in the image; without room there is none.
    pub(crate) fn store_clean(&mut self, index: SlotIndex, codec: Codec, data: &[u8]) {
        debug_assert!(self.slots.get(index).is_empty());
        // It is not dirty, so it needs no mark.
        if self.slots.reserve(index).is_err() {
            return;
        }
        match self.allocate(index, data) {
            Ok(object) => {
                let slot = Slot::resident(object, data.len(), codec);
                self.set(index, slot.written_in(self.present.tag()));
            }
            Err(_) => self.slots.abandon(index),
        }
    }

    /// The first dirty slot of a range.
    pub(crate) fn next_dirty(&self, range: Range<u32>) -> Option<SlotIndex> {
        self.dirty_map.as_ref()?.next_dirty(range)
    }

    /// Takes a dirty page to be destaged, and hands what it holds to `take`; not if it has been
    /// taken already.
    pub(crate) fn take_dirty(&mut self, index: SlotIndex, take: &mut dyn FnMut(Contents<'_>)) {
        let Some(dirty_map) = &mut self.dirty_map else {
            return;
        };
        if !dirty_map.is_dirty(index) || !dirty_map.take(index) {
            return;
        }
        take(match self.slots.get(index).state() {
            SlotState::SameFilled { pattern: 0 } if dirty_map.is_hole(index) => Contents::Hole,
            SlotState::SameFilled { pattern } => Contents::SameFilled(pattern),
            SlotState::Resident { object, len, codec } => Contents::Object {
                codec,
                data: self.pool.bytes(object, len),
            },
            state => unreachable!("{index:?} is dirty and {state:?}"),
        });
    }

    /// Takes the dirty neighbours of a slot that lie next to one another in `range`, too.
    pub(crate) fn take_dirty_neighbours(
        &mut self,
        index: SlotIndex,
        range: Range<u32>,
        take: &mut dyn FnMut(SlotIndex, Contents<'_>),
    ) {
        let is_dirty = |shard: &Self, at: u32| {
            let dirty_map = shard.dirty_map.as_ref();
            dirty_map.is_some_and(|dirty_map| dirty_map.is_dirty(SlotIndex(at)))
        };
        let mut start = index.0;
        while start > range.start && is_dirty(self, start - 1) {
            start -= 1;
        }
        let mut end = index.0 + 1;
        while end < range.end && is_dirty(self, end) {
            end += 1;
        }
        for at in (start..end).map(SlotIndex).filter(|&at| at != index) {
            self.take_dirty(at, &mut |contents| take(at, contents));
        }
    }

    /// Destaging a page has ended, well or not; returns whether it is clean by that. What is
    /// clean and to `leave`, or needs no object, leaves memory.
    pub(crate) fn settle_destaged(&mut self, index: SlotIndex, written: bool, leave: bool) -> bool {
        let Some(dirty_map) = &mut self.dirty_map else {
            return false;
        };
        let is_clean = dirty_map.settle(index, written);
        let same = matches!(self.slots.get(index).state(), SlotState::SameFilled { .. });
        if is_clean && (leave || same) {
            self.drop_if_clean(index);
        }
        is_clean
    }

    /// Has a page leave memory that is, as it is, in the image; returns whether it is.
    fn drop_if_clean(&mut self, index: SlotIndex) -> bool {
        let Some(dirty_map) = &mut self.dirty_map else {
            return false;
        };
        if dirty_map.is_dirty(index) || self.slots.get(index).is_empty() {
            return false;
        }
        dirty_map.note_eviction(index);
        self.set(index, Slot::EMPTY);
        true
    }

    /// Has clean pages leave memory, of a part of the slots in `range`, at most `wanted` and none
    /// that was read since it was last gone by: that is the chance it has.
    pub(crate) fn drop_clean(&mut self, range: Range<u32>, wanted: u64) -> Dropped {
        const SEARCHED_AT_ONCE: u32 = 1 << 19;
        const LOOKED_AT_ONCE: u32 = 1024;
        let before = self.pool.frames_in_use();
        let mut dropped = Dropped::default();
        let end = range.end.min(range.start.saturating_add(SEARCHED_AT_ONCE));
        let (mut at, mut looked) = (range.start, 0);
        while looked < LOOKED_AT_ONCE && dropped.pages < wanted {
            let Some(index) = self.slots.next_used(at..end) else {
                at = end;
                break;
            };
            at = index.0 + 1;
            looked += 1;
            if self.slots.get(index).accessed() {
                self.slots.clear_accessed(index);
            } else if self.drop_if_clean(index) {
                dropped.pages += 1;
            }
        }
        dropped.frames = before - self.pool.frames_in_use();
        dropped.next = at;
        dropped
    }

    /// Gives accessed objects of an isolated zspage their second chance, as
    /// [`Shard::empty_isolated`] does, has the clean ones leave memory, and returns the dirty ones
    /// that are left.
    pub(crate) fn drop_isolated(
        &mut self,
        zspage: ZspageId,
        chances: &mut Chances,
    ) -> Vec<SlotIndex> {
        let mut left = Vec::new();
        self.empty_isolated(zspage, chances, &mut |evicted| left.push(evicted.index));
        left.retain(|&index| !self.drop_if_clean(index));
        left
    }
}
