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
pub(crate) struct Unsaved {
    id: SaveId,
    /// Runs that there were.
    runs: u32,
    /// A bit for each run that is saved.
    saved: LazyTable<u64>,
}

impl Unsaved {
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
    pub(crate) fn begin_saving(&mut self, unsaved: Unsaved) {
        self.unsaved = Some(unsaved);
    }

    /// Nothing is to be saved any more, if that is the save that goes on.
    pub(crate) fn end_saving(&mut self, id: SaveId) {
        self.unsaved.take_if(|unsaved| unsaved.id == id);
    }

    /// Whether the run of a slot is to be saved before it changes.
    pub(crate) fn is_unsaved(&self, index: SlotIndex) -> bool {
        let unsaved = self.unsaved.as_ref();
        unsaved.is_some_and(|unsaved| unsaved.bit(index).is_some())
    }

    /// Whether the run of a slot is to be saved, by this save.
    pub(crate) fn is_unsaved_by(&self, id: SaveId, index: SlotIndex) -> bool {
        let unsaved = self.unsaved.as_ref().filter(|unsaved| unsaved.id == id);
        unsaved.is_some_and(|unsaved| unsaved.bit(index).is_some())
    }

    /// The run of a slot may change.
    pub(crate) fn note_saved(&mut self, index: SlotIndex) {
        if let Some(unsaved) = &mut self.unsaved
            && let Some((word, bit)) = unsaved.bit(index)
        {
            unsaved.saved[word] |= bit;
        }
    }
}
