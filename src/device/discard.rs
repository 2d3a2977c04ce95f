//! Pages that are emptied or become zeroes: discarded, zeroed, forgotten.
//!
//! What a discard leaves depends on what an empty slot means. Without an image it is zeroes. Else it is
//! what the image has, and zeroes have to be noted: of a snapshot by the block of slots, where a whole
//! one is discarded, or else, and of pages that go home, in each slot.

use std::ops::Range;

use super::core::Core;
use super::layout::Run;
use crate::error::Result;
use crate::origin::Origin;
use crate::pool::NoRoom;
use crate::shard::{SLOTS_PER_BLOCK, Shard, SlotIndex};
use crate::units::PageIndex;

impl Core {
    /// Empties the slots of `pages`; returns how many held data.
    pub(crate) fn clear(&self, pages: Range<u64>) -> u64 {
        let mut cleared = 0;
        for index in self.layout.shards() {
            let slots = self.layout.slots_of(index, pages.clone());
            let mut at = slots.start;
            while at < slots.end {
                let mut shard = self.shard(index);
                let some = clear_some(&mut shard, at..slots.end);
                let care = self.needs_care(&shard);
                drop(shard);
                self.wake_if_needed(care);
                if let Some(slot) = some.unsaved {
                    self.save_first(index, slot);
                }
                at = some.next;
                cleared += some.cleared;
            }
        }
        cleared
    }

    /// Makes `pages` zeroes that cost nothing; returns how many held data in memory or spilled.
    ///
    /// # Errors
    /// [`Error::NoSpace`] for a device with an image, which has to remember it.
    pub(crate) fn discard(&self, pages: Range<u64>) -> Result<u64> {
        match self.origin {
            Origin::Blank => Ok(self.clear(pages)),
            // An empty slot would be what the image has.
            Origin::Snapshot(_) => self.zero(pages),
            Origin::Home(_) => self.change_all(pages, Shard::discard_at_home),
        }
    }

    /// Makes `pages` zeroes that are kept as data.
    ///
    /// # Errors
    /// [`Error::NoSpace`] without room for the slots.
    pub(crate) fn fill_zero(&self, pages: Range<u64>) -> Result<()> {
        match self.origin {
            Origin::Snapshot(_) => self.zero(pages).map(drop),
            Origin::Blank | Origin::Home(_) => {
                self.change_all(pages, Shard::store_zeroes).map(drop)
            }
        }
    }

    /// Changes each of `pages`, which takes no page frames of the pool; returns how many held data
    /// before.
    fn change_all(
        &self,
        pages: Range<u64>,
        change: fn(&mut Shard, SlotIndex) -> Result<(), NoRoom>,
    ) -> Result<u64> {
        let (mut held, mut at) = (0, pages.start);
        while at < pages.end {
            let run = self.layout.run(PageIndex(at as u32), pages.end);
            held += self.change_each(run, change)?;
            at += u64::from(run.pages);
        }
        Ok(held)
    }

    /// Changes each page of a run; returns how many held data before.
    fn change_each(
        &self,
        run: Run,
        change: fn(&mut Shard, SlotIndex) -> Result<(), NoRoom>,
    ) -> Result<u64> {
        let (mut held, mut slot) = (0, run.slot.0);
        self.change_run(run, |shard| {
            // What is done again, after waiting for room, was counted.
            for index in (slot..run.slot.0 + run.pages).map(SlotIndex) {
                let was_held = !shard.slot(index).is_empty();
                change(shard, index)?;
                held += u64::from(was_held);
                slot += 1;
            }
            Ok(())
        })?;
        Ok(held)
    }

    /// Makes `pages` of a snapshot zeroes, of which whole blocks need no slots; returns how many held
    /// data before.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    fn zero(&self, pages: Range<u64>) -> Result<u64> {
        let mut held = 0;
        for index in self.layout.shards() {
            let slots = self.layout.slots_of(index, pages.clone());
            let mut at = slots.start;
            while at < slots.end {
                let end = (at / SLOTS_PER_BLOCK + 1).saturating_mul(SLOTS_PER_BLOCK);
                let is_whole = end <= slots.end || slots.end == self.layout.most_slots(index);
                if at.is_multiple_of(SLOTS_PER_BLOCK) && is_whole {
                    let mut shard = self.shard(index);
                    held += shard.zero_block(SlotIndex(at));
                    let care = self.needs_care(&shard);
                    drop(shard);
                    self.wake_if_needed(care);
                    at = end;
                } else {
                    let run = self
                        .layout
                        .run(self.layout.page(index, SlotIndex(at)), pages.end);
                    held += self.change_each(run, Shard::store_zeroes)?;
                    at += run.pages;
                }
            }
        }
        Ok(held)
    }
}

/// What a step of emptying slots has done.
struct Cleared {
    /// Slots that held data.
    cleared: u64,
    /// Where to go on.
    next: u32,
    /// The slot there, if its run is to be saved first.
    unsaved: Option<SlotIndex>,
}

/// Empties slots from the start of a range. What it does at once is bounded, since a lock is held.
fn clear_some(shard: &mut Shard, slots: Range<u32>) -> Cleared {
    const CLEARED_AT_ONCE: u64 = 512;
    const SEARCHED_AT_ONCE: u32 = 1 << 19;
    let end = slots.end.min(slots.start.saturating_add(SEARCHED_AT_ONCE));
    let mut done = Cleared {
        cleared: 0,
        next: slots.start,
        unsaved: None,
    };
    while done.cleared < CLEARED_AT_ONCE {
        let Some(used) = shard.next_used(done.next..end) else {
            done.next = end;
            break;
        };
        done.next = used.0;
        if shard.is_unsaved(used) {
            done.unsaved = Some(used);
            break;
        }
        let cleared = shard.clear(used);
        done.cleared += u64::from(cleared);
        done.next += cleared;
    }
    done
}
