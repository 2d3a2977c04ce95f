//! A shard's part in writing chosen pages back.
//!
//! The objects of chosen pages lie in any zspages, and isolating all of those while a batch is
//! written would keep much of the pool from being allocated in. So nothing is isolated: an object
//! is copied, and its slot marked, under one hold of the lock. The mark is a generation that no
//! access has, [`AgeTag::NONE`]: whatever writes, reads or discards the page takes it away, and
//! what moves its object takes it along. So a slot that is marked when the write is done has held
//! the same data all the time, wherever that is now; an object that was freed, and another that
//! came to the same address, cannot be taken for it, as they could if addresses were compared.
//! Nor can a page that was evicted meanwhile: that is not resident.
//!
//! A page that is read meanwhile stays in memory: it is wanted.

use super::age::AgeTag;
use super::{Evicted, Shard, Slot, SlotIndex, SlotState};
use crate::spill::RecordAddress;

impl Shard {
    /// Marks a resident slot and hands its object, with the slot as it was, to `write`.
    pub(crate) fn select(&mut self, index: SlotIndex, write: &mut dyn FnMut(Evicted<'_>)) {
        let slot = self.slots.get(index);
        let SlotState::Resident { object, len, codec } = slot.state() else {
            return;
        };
        self.slots.replace(index, slot.with_age(AgeTag::NONE));
        write(Evicted {
            index,
            slot,
            codec,
            data: self.pool.bytes(object, len),
        });
    }

    /// Points the slot at its record, if it is still marked; returns whether it was.
    pub(crate) fn settle_selected(&mut self, index: SlotIndex, record: RecordAddress) -> bool {
        let selected = self.slots.get(index).is_selected();
        selected && self.point_at(index, record)
    }

    /// Takes the mark away, if it is still there. The slot is as old as it was `before`; or
    /// younger, if that generation has been merged and its tag given to another meanwhile.
    pub(crate) fn unselect(&mut self, index: SlotIndex, before: Slot) {
        let slot = self.slots.get(index);
        if let (true, Some(age)) = (slot.is_selected(), before.age()) {
            self.slots.replace(index, slot.with_age(age));
        }
    }
}
