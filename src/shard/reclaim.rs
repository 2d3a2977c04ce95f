//! A shard's part in eviction: zspages leave in the order of their last allocation
//! (`zs_reclaim_page` in the kernel's zsmalloc writeback series).
//!
//! A zspage on its way out is isolated: nothing is allocated in it, compaction leaves it alone and
//! frees do not free it. So while its objects are being written without the lock, an object's
//! address cannot come to mean another object, and a slot that still holds that address afterwards
//! still holds that very object. A slot that does not was overwritten or discarded meanwhile, and
//! is left as it is.

use super::{Owner, Shard, Slot, SlotIndex, SlotState};
use crate::codec::Codec;
use crate::pool::ZspageId;
use crate::spill::RecordAddress;
use crate::sync::{Protection, without};
use crate::units::PAGE_SIZE;

/// How many accessed objects may still be spared. What is spared stays in memory, so without a
/// bound a pool of hot objects would never get smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chances(pub(crate) usize);

/// An object on its way to the backing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evicted<'a> {
    pub(crate) index: SlotIndex,
    /// The slot as it must still be once the object is written.
    pub(crate) slot: Slot,
    pub(crate) codec: Codec,
    pub(crate) data: &'a [u8],
}

impl Shard {
    /// When the oldest zspage was last touched.
    pub(crate) fn oldest_touch(&self) -> Option<u32> {
        self.lru.oldest().map(|(_, touched)| touched)
    }

    /// Isolates the oldest zspage; returns it with the number of its page frames.
    pub(crate) fn isolate_oldest(&mut self) -> Option<(ZspageId, u64)> {
        let (zspage, _) = self.lru.oldest()?;
        self.lru.remove(zspage);
        if without(Protection::IsolatedWhileEvicted) {
            return Some((zspage, 1));
        }
        let frames = self.pool.isolate(zspage);
        Some((zspage, frames))
    }

    /// Gives accessed objects of an isolated zspage their second chance and hands the others to
    /// `evict`. Those spared move to zspages that are in use, so that this one can be freed, or
    /// stay where they are if there is no room elsewhere.
    pub(crate) fn empty_isolated(
        &mut self,
        zspage: ZspageId,
        chances: &mut Chances,
        evict: &mut dyn FnMut(Evicted<'_>),
    ) {
        let mut accessed = Vec::new();
        let Self { slots, pool, .. } = self;
        pool.objects(zspage, &mut |object, Owner(owner)| {
            let index = SlotIndex(owner);
            let slot = slots.get(index);
            let SlotState::Resident { len, codec, .. } = slot.state() else {
                unreachable!("{index:?} owns {object:?} and is {slot:?}");
            };
            if slot.accessed() && accessed.len() < chances.0 {
                accessed.push(index);
            } else {
                evict(Evicted {
                    index,
                    slot,
                    codec,
                    data: pool.bytes(object, len),
                });
            }
        });
        for index in accessed {
            chances.0 -= 1;
            if !self.move_elsewhere(index) {
                self.slots.clear_accessed(index);
            }
        }
    }

    /// Moves a resident slot's object to a zspage that is not isolated, and forgets that it was
    /// read; it stays as old as it is. Returns false if there is no room.
    fn move_elsewhere(&mut self, index: SlotIndex) -> bool {
        let slot = self.slots.get(index);
        let SlotState::Resident { object, len, codec } = slot.state() else {
            return false;
        };
        let mut copy = [0; PAGE_SIZE];
        let copy = &mut copy[..len];
        copy.copy_from_slice(self.pool.bytes(object, len));
        let Ok(object) = self.allocate(index, copy) else {
            return false;
        };
        self.set(
            index,
            Slot::resident(object, len, codec).with_notes_of(slot),
        );
        self.slots.clear_accessed(index);
        true
    }

    /// Points the slot at its record, which takes the place of what it held, if the slot is still
    /// `expected`; returns whether it was.
    pub(crate) fn settle(
        &mut self,
        index: SlotIndex,
        expected: Slot,
        record: RecordAddress,
    ) -> bool {
        let unchanged = self.slots.get(index).same_place(expected);
        (unchanged || without(Protection::SettledIfUnchanged)) && self.point_at(index, record)
    }

    /// Points a slot that has an object or a record at a record with the same data.
    pub(super) fn point_at(&mut self, index: SlotIndex, record: RecordAddress) -> bool {
        let before = self.slots.get(index);
        let (SlotState::Resident { len, codec, .. } | SlotState::WrittenBack { len, codec, .. }) =
            before.state()
        else {
            return false;
        };
        self.segments.retain(record, len);
        let mut slot = Slot::written_back(record, len, codec);
        slot.set_read_back_epoch(match before.state() {
            // A record that moves was not wanted by that.
            SlotState::WrittenBack { .. } => before.read_back_epoch(),
            _ => self.read_backs.epoch(),
        });
        self.set(index, slot);
        true
    }

    /// Ends the isolation of a zspage; returns whether it was empty and is freed. If it was
    /// `written` out, what it still holds was spared, and it is the newest; if not, it is again
    /// the oldest.
    pub(crate) fn put_back(&mut self, zspage: ZspageId, written: bool) -> bool {
        if without(Protection::IsolatedWhileEvicted) {
            return true;
        }
        let freed = self.pool.put_back(zspage);
        match (freed, written) {
            (true, _) => {}
            (false, true) => self.lru.touch(zspage),
            (false, false) => self.lru.put_back(zspage),
        }
        freed
    }
}
