//! Pages that are emptied or become zeroes: discarded, zeroed, forgotten.
//!
//! What a discard leaves depends on what an empty slot means. Without an image it is zeroes. Else it is
//! what the image has, and zeroes have to be noted: of a snapshot by the block of slots, where a whole
//! one is discarded, or else, and of pages that are destaged, in each slot.

use std::ops::Range;

use super::Writer;
use super::change::Refusals;
use crate::engine::Run;
use crate::error::Result;
use crate::origin::Origin;
use crate::pool::NoRoom;
use crate::shard::{SLOTS_PER_BLOCK, Shard, SlotIndex};
use crate::units::PageIndex;

impl Writer {
    /// Empties the slots of `pages`; returns how many held data.
    pub(crate) fn clear(&self, pages: Range<u64>) -> u64 {
        let shards = &self.engine.shards;
        let mut cleared = 0;
        for index in shards.layout.shards() {
            let slots = shards.layout.slots_of(index, pages.clone());
            let mut at = slots.start;
            while at < slots.end {
                let mut shard = shards.lock(index);
                let some = clear_some(&mut shard, at..slots.end);
                self.engine.unlock(shard);
                if let Some(slot) = some.to_copy {
                    self.copy_first(index, slot);
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
    /// [`crate::Error::NoSpace`] for a device with an image, which has to remember it.
    pub(crate) fn discard(&self, pages: Range<u64>) -> Result<u64> {
        match self.engine.origin {
            Origin::Blank => Ok(self.clear(pages)),
            // An empty slot would be what the image has.
            Origin::Snapshot(_) => self.zero(pages),
            Origin::WriteBack(..) => self.change_all(pages, Shard::discard_to_image),
        }
    }

    /// Makes `pages` zeroes that are kept as data.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`] without room for the slots.
    pub(crate) fn fill_zero(&self, pages: Range<u64>) -> Result<()> {
        match self.engine.origin {
            Origin::Snapshot(_) => self.zero(pages).map(drop),
            Origin::Blank | Origin::WriteBack(..) => {
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
        let layout = &self.engine.shards.layout;
        let (mut held, mut at) = (0, pages.start);
        while at < pages.end {
            let run = layout.run(PageIndex(at as u32), pages.end);
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
        let (mut held, mut refusals) = (0, Refusals::default());
        let mut slots = (run.slot.0..run.slot.0 + run.pages)
            .map(SlotIndex)
            .peekable();
        while slots.peek().is_some() {
            let mut shard = self.lock_to_change(run);
            let mut refused = None;
            while let (Some(&index), None) = (slots.peek(), refused) {
                let was_held = !shard.slot(index).is_empty();
                refused = change(&mut shard, index).err();
                if refused.is_none() {
                    held += u64::from(was_held);
                    slots.next();
                }
            }
            self.engine.unlock(shard);
            if let Some(no_room) = refused {
                self.wait_for_room(no_room, &mut refusals)?;
            }
        }
        Ok(held)
    }

    /// Makes `pages` of a snapshot zeroes, of which whole blocks need no slots; returns how many held
    /// data before.
    ///
    /// # Errors
    /// [`crate::Error::NoSpace`]; those of writing to the image, where tables get room by that.
    fn zero(&self, pages: Range<u64>) -> Result<u64> {
        let shards = &self.engine.shards;
        let mut held = 0;
        for index in shards.layout.shards() {
            let slots = shards.layout.slots_of(index, pages.clone());
            let mut at = slots.start;
            while at < slots.end {
                let end = (at / SLOTS_PER_BLOCK + 1).saturating_mul(SLOTS_PER_BLOCK);
                let is_whole = end <= slots.end || slots.end == shards.layout.most_slots(index);
                if at.is_multiple_of(SLOTS_PER_BLOCK) && is_whole {
                    let mut shard = shards.lock(index);
                    held += shard.zero_block(SlotIndex(at));
                    self.engine.unlock(shard);
                    at = end;
                } else {
                    let page = shards.layout.page(index, SlotIndex(at));
                    let run = shards.layout.run(page, pages.end);
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
    to_copy: Option<SlotIndex>,
}

/// Empties slots from the start of a range. What it does at once is bounded, since a lock is held.
fn clear_some(shard: &mut Shard, slots: Range<u32>) -> Cleared {
    const CLEARED_AT_ONCE: u64 = 512;
    const SEARCHED_AT_ONCE: u32 = 1 << 19;
    let end = slots.end.min(slots.start.saturating_add(SEARCHED_AT_ONCE));
    let mut done = Cleared {
        cleared: 0,
        next: slots.start,
        to_copy: None,
    };
    while done.cleared < CLEARED_AT_ONCE {
        let Some(used) = shard.next_used(done.next..end) else {
            done.next = end;
            break;
        };
        done.next = used.0;
        if shard.needs_copy(used) {
            done.to_copy = Some(used);
            break;
        }
        let cleared = shard.clear(used);
        done.cleared += u64::from(cleared);
        done.next += cleared;
    }
    done
}
