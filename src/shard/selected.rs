//! A shard's part in writing chosen pages back, and in recompressing them.
//!
//! The objects of chosen pages lie in any zspages, and isolating all of those while a batch is
//! worked on would keep much of the pool from being allocated in. So nothing is isolated: an object
//! is copied, and its slot marked, under one hold of the lock. The mark stands in the place of a
//! generation: whatever writes, reads or discards the page takes it away, and what moves its object
//! takes it along. So a slot that is marked when the work is done has held the same data all the
//! time, wherever that is now; an object that was freed, and another that came to the same address,
//! cannot be taken for it, as they could if addresses were compared. Nor can a page that was
//! evicted meanwhile: that is not resident.
//!
//! Each kind of work has a mark of its own and one thread at a time that sets it, and none takes a
//! slot that is marked. A page that is read meanwhile stays as it is: it is wanted.

use super::age::AgeTag;
use super::{Evicted, Owner, Shard, Slot, SlotIndex, SlotState};
use crate::algorithm::Priority;
use crate::codec::Codec;
use crate::pool::NoRoom;
use crate::selection::PageKind;
use crate::spill::RecordAddress;
use crate::sync::{Protection, without};

/// What a page is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    WriteBack,
    Recompress,
}

impl Purpose {
    fn mark(self) -> AgeTag {
        match self {
            Self::WriteBack => AgeTag::WRITING_BACK,
            Self::Recompress => AgeTag::RECOMPRESSING,
        }
    }
}

impl PageKind {
    /// Whether the page of a slot is of this kind.
    pub(crate) fn includes(self, slot: Slot) -> bool {
        match self {
            Self::Any => true,
            Self::Idle => slot.is_idle(),
            Self::Huge => slot.is_huge(),
            Self::HugeIdle => slot.is_huge() && slot.is_idle(),
        }
    }
}

impl Shard {
    /// Marks a resident slot and hands its object, with the slot as it was, to `take`.
    pub(crate) fn select(
        &mut self,
        index: SlotIndex,
        purpose: Purpose,
        take: &mut dyn FnMut(Evicted<'_>),
    ) {
        let slot = self.slots.get(index);
        let SlotState::Resident { object, len, codec } = slot.state() else {
            return;
        };
        self.slots.replace(index, slot.with_age(purpose.mark()));
        take(Evicted {
            index,
            slot,
            codec,
            data: self.pool.bytes(object, len),
        });
    }

    /// Points the slot at its record, if it is still marked; returns whether it was.
    pub(crate) fn settle_selected(&mut self, index: SlotIndex, record: RecordAddress) -> bool {
        self.has_mark(index, Purpose::WriteBack) && self.point_at(index, record)
    }

    /// Stores what recompression made of the object of a slot that was `before`, if the slot is
    /// still marked and the new object takes less; notes that nothing more is to be tried if there
    /// is nothing, or it is the `last`. Returns whether the object was replaced. A zspage that is made for it is the oldest, as its page may be: being
    /// recompressed is no use.
    ///
    /// # Errors
    /// [`NoRoom`]; the page can be chosen again.
    pub(crate) fn settle_recompressed(
        &mut self,
        index: SlotIndex,
        before: Slot,
        made: Option<(Codec, &[u8])>,
        last: bool,
    ) -> Result<bool, NoRoom> {
        if !self.has_mark(index, Purpose::Recompress) {
            return Ok(false);
        }
        self.unselect(index, Purpose::Recompress, before);
        let slot = self.slots.get(index);
        let SlotState::Resident { len, .. } = slot.state() else {
            return Ok(false);
        };
        let size = |len| self.pool.object_size(len);
        let Some((codec, data)) = made.filter(|(_, data)| size(data.len()) < size(len)) else {
            self.slots.replace(index, slot.marked_tried());
            return Ok(false);
        };
        let stored = self.pool.store(Owner(index.0), data)?;
        self.lru.join_oldest(stored.zspage);
        if without(Protection::FreedWhereItIs) {
            self.slots.replace(index, before);
        }
        let smaller = Slot::resident(stored.object, data.len(), codec).with_notes_of(slot);
        let smaller = if last {
            smaller.marked_tried()
        } else {
            smaller
        };
        self.set(index, smaller);
        Ok(true)
    }

    /// The priority of the algorithm that made the object of a resident slot.
    pub(crate) fn priority(&self, slot: Slot) -> Priority {
        match slot.state() {
            SlotState::Resident {
                object,
                codec: codec @ Codec::Tagged,
                ..
            } => codec.priority(self.pool.bytes(object, 1)[0]),
            _ => Priority::PRIMARY,
        }
    }

    fn has_mark(&self, index: SlotIndex, purpose: Purpose) -> bool {
        let age = self.slots.get(index).age();
        age == Some(purpose.mark()) || age.is_some() && without(Protection::MarkedUntilSettled)
    }

    /// Takes the mark away, if it is still there. The slot is as old as it was `before`; or
    /// younger, if that generation has been merged and its tag given to another meanwhile.
    pub(crate) fn unselect(&mut self, index: SlotIndex, purpose: Purpose, before: Slot) {
        if let (true, Some(age)) = (self.has_mark(index, purpose), before.age()) {
            let slot = self.slots.get(index);
            self.slots.replace(index, slot.with_age(age));
        }
    }
}
