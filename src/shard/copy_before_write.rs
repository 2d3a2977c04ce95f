//! A shard's part in saving the device as it is at one time.
//!
//! From that time on, what was there then is saved run of slots by run of slots, and whoever is
//! about to change the data of a run that is not saved yet saves it first. Moving data about, to
//! the backing, to another zspage or into another form, changes nothing of that.

use std::io;

use super::{Shard, SlotIndex};
use crate::memory::LazyTable;

/// Consecutive slots that are saved together: those of a run of pages.
const RUN_SLOTS: u32 = 32;

/// Which save of a device: no two are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SaveId(pub(crate) u64);

/// Which runs of a shard are still to be saved.
pub(crate) struct ToCopy {
    id: SaveId,
    /// Runs that there were.
    runs: u32,
    /// A bit for each run that is saved.
    saved: LazyTable<u64>,
}

impl ToCopy {
    /// That all of so many slots are to be saved.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn all(id: SaveId, slots: u32) -> io::Result<Self> {
        let runs = slots.div_ceil(RUN_SLOTS);
        Ok(Self {
            id,
            runs,
            saved: LazyTable::new(runs.div_ceil(u64::BITS) as usize)?,
        })
    }

    /// The bit of a slot's run, if there is one that is not set.
    fn bit(&self, SlotIndex(slot): SlotIndex) -> Option<(usize, u64)> {
        let run = slot / RUN_SLOTS;
        let (word, bit) = ((run / u64::BITS) as usize, 1 << (run % u64::BITS));
        (run < self.runs && self.saved[word] & bit == 0).then_some((word, bit))
    }
}

impl Shard {
    /// Has all that the shard holds now be saved before it changes.
    pub(crate) fn begin_saving(&mut self, to_copy: ToCopy) {
        self.to_copy = Some(to_copy);
    }

    /// Nothing is to be saved any more, if that is the save that goes on.
    pub(crate) fn end_saving(&mut self, id: SaveId) {
        self.to_copy.take_if(|to_copy| to_copy.id == id);
    }

    /// Whether the run of a slot is to be saved before it changes.
    pub(crate) fn needs_copy(&self, index: SlotIndex) -> bool {
        let to_copy = self.to_copy.as_ref();
        to_copy.is_some_and(|to_copy| to_copy.bit(index).is_some())
    }

    /// Whether the run of a slot is to be saved, by this save.
    pub(crate) fn needs_copy_for(&self, id: SaveId, index: SlotIndex) -> bool {
        let to_copy = self.to_copy.as_ref().filter(|to_copy| to_copy.id == id);
        to_copy.is_some_and(|to_copy| to_copy.bit(index).is_some())
    }

    /// The run of a slot may change.
    pub(crate) fn note_saved(&mut self, index: SlotIndex) {
        if let Some(to_copy) = &mut self.to_copy
            && let Some((word, bit)) = to_copy.bit(index)
        {
            to_copy.saved[word] |= bit;
        }
    }
}
