//! A shard that is made of what was found in memory that outlived a process.
//!
//! Its slots say what it holds; all else is derived of them. What was under way is as if it had not begun.

use std::io;

use super::{AgeTag, Shard, Slot, SlotState};
use crate::pool::{FoundObject, Owner};
use crate::spill::RecordAddress;

/// How old the generations are: by tag, the greater the younger.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AgeRanks([u8; AgeRanks::TAGS]);

impl AgeRanks {
    const TAGS: usize = 16;

    /// Ranks there are.
    pub(crate) const COUNT: usize = Self::TAGS + 1;

    /// The generations from old to young; those that are not named are the youngest.
    pub(crate) fn of(old_to_young: impl Iterator<Item = AgeTag>) -> Self {
        let mut ranks = [Self::TAGS as u8; Self::TAGS];
        for (rank, tag) in (0..).zip(old_to_young) {
            ranks[usize::from(tag.0)] = rank;
        }
        Self(ranks)
    }

    fn rank(self, slot: Slot) -> u8 {
        let tag = slot.age().map_or(0, |tag| tag.0);
        self.0[usize::from(tag)]
    }
}

impl Shard {
    /// Finds what its slots say it holds, and calls `record` for each record that one refers to, with the
    /// bytes of the object in it. The shard is new, but for the memory that it is in.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::InvalidData`] if two slots cannot both be right.
    pub(crate) fn adopt(
        &mut self,
        ages: AgeRanks,
        record: &mut dyn FnMut(RecordAddress, usize),
    ) -> io::Result<()> {
        let Self {
            slots, dirty_map, ..
        } = self;
        if let Some(dirty_map) = dirty_map {
            dirty_map.adopt(|index| slots.get(index).is_empty())?;
        }
        let (mut found, mut ranks) = (Vec::new(), Vec::new());
        let mut counts = super::Counts::default();
        let (present, segments) = (&self.present, &self.segments);
        let zeroes = slots.adopt(|index, slot| {
            let is_dirty = |index| dirty_map.as_ref().is_none_or(|map| map.is_dirty(index));
            let slot = match slot.state() {
                // It was on its way out: the image has it.
                SlotState::SameFilled { .. } if !is_dirty(index) => Slot::EMPTY,
                // Who had chosen it is no more.
                SlotState::Resident { .. } if slot.is_selected() => slot.with_age(present.tag()),
                _ => slot,
            };
            match slot.state() {
                SlotState::Resident { object, len, .. } => {
                    let owner = Owner(index.0);
                    found.push(FoundObject { object, len, owner });
                    ranks.push(ages.rank(slot));
                }
                SlotState::WrittenBack {
                    record: at, len, ..
                } => {
                    segments.retain(at, len);
                    record(at, len);
                }
                SlotState::Empty | SlotState::SameFilled { .. } => {}
            }
            counts.add(slot.state());
            slot
        })?;
        counts.same_pages += zeroes;
        self.counts = counts;
        let zspages = self.pool.adopt(&found)?;
        self.lru.adopt(zspages.into_iter().zip(ranks));
        Ok(())
    }
}
