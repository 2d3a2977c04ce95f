//! The memory of a shard's tables, its slots and its dirty_map.

use std::io;

use super::dirty_map::DirtyMap;
use super::table_pages::TablePages;
use super::{Shard, SlotIndex};
use crate::memory::IdlePages;
use crate::pool::NoRoom;

/// Page frames of a shard's tables that are out to be released.
pub(crate) struct IdleTables {
    slots: IdlePages,
    dirty_map: Option<IdlePages>,
}

impl IdleTables {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.dirty_map.as_ref().is_none_or(IdlePages::is_empty)
    }

    /// Gives them to the kernel; without the shard's lock.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.slots.release()?;
        self.dirty_map.as_mut().map_or(Ok(()), IdlePages::release)
    }
}

impl Shard {
    /// Sees to it that a slot can be given data, and its page be marked as dirty. Unless that
    /// follows, [`Shard::abandon`] has to.
    ///
    /// # Errors
    /// [`NoRoom::TableLimit`], [`NoRoom::TableBusy`].
    pub(super) fn reserve(&mut self, index: SlotIndex) -> Result<(), NoRoom> {
        self.slots.reserve(index)?;
        let Some(dirty_map) = &mut self.dirty_map else {
            return Ok(());
        };
        dirty_map
            .reserve(index)
            .inspect_err(|_| self.slots.abandon(index))
    }

    /// Notes that nothing came of what was reserved.
    pub(super) fn abandon(&mut self, index: SlotIndex) {
        self.slots.abandon(index);
        if let Some(dirty_map) = &mut self.dirty_map {
            dirty_map.abandon(index);
        }
    }

    /// Page frames that the tables hold.
    pub(crate) fn table_pages(&self) -> u64 {
        let dirty_map = self.dirty_map.as_ref().map(DirtyMap::pages);
        self.slots.pages().held() + dirty_map.map_or(0, TablePages::held)
    }

    /// Freed page frames, of the pool and of the tables, whose memory may be held still.
    pub(crate) fn idle_frames(&self) -> usize {
        let dirty_map = self.dirty_map.as_ref().map(DirtyMap::pages);
        let emptied = self.slots.pages().emptied() + dirty_map.map_or(0, TablePages::emptied);
        self.pool.warm_frames() + emptied
    }

    /// Takes empty page frames of the tables out, at most `most` of each and all but `keep`, to be
    /// released without the lock and returned with [`Shard::accept_tables`].
    pub(crate) fn take_tables(&mut self, keep: usize, most: usize) -> IdleTables {
        let dirty_map = self.dirty_map.as_mut();
        IdleTables {
            slots: self.slots.take_out(keep, most),
            dirty_map: dirty_map.map(|dirty_map| dirty_map.take_out(keep, most)),
        }
    }

    /// Takes them back; returns how many the kernel has.
    pub(crate) fn accept_tables(&mut self, idle: IdleTables) -> u64 {
        let slots = self.slots.take_back(idle.slots);
        match (&mut self.dirty_map, idle.dirty_map) {
            (Some(dirty_map), Some(idle)) => slots + dirty_map.take_back(idle),
            _ => slots,
        }
    }
}
