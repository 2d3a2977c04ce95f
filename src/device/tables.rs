//! Memory for the tables that say where pages are: bounded, and given back.
//!
//! Tables cost a page frame for each block of slots, and of marks of an image's pages, in which any
//! is in use. All shards take them from one budget, and dictionaries count in it, too. Whoever finds
//! it spent has empty ones released first, and, where pages have a home, has them go there.
//!
//! Locks: `releasing` is held while page frames are out to be released, with no shard's lock held
//! for the system call. A writer that needs one of those waits for it; few are out at a time.

use rustix::system::sysinfo;

use super::core::Core;
use super::layout::ShardIndex;
use crate::config::DeviceConfig;
use crate::error::{Error, Result};
use crate::memory::FrameBudget;
use crate::origin::Home;
use crate::sync::Mutex;
use crate::units::PAGE_SIZE;
use std::sync::Arc;

pub(super) const SPENT: &str = "the device's tables are at their limit (--table-limit)";

/// What tables may take, and who gives it back.
pub(crate) struct Tables {
    /// In page frames.
    pub(crate) budget: Arc<FrameBudget>,
    releasing: Mutex<()>,
    /// Held by the writer that makes room, for all who wait for it.
    making_room: Mutex<()>,
}

impl Tables {
    pub(super) fn new(config: &DeviceConfig) -> Self {
        let limit = config.table_limit.unwrap_or_else(default_limit);
        Self {
            budget: Arc::new(FrameBudget::new(limit / PAGE_SIZE as u64)),
            releasing: Mutex::default(),
            making_room: Mutex::default(),
        }
    }

    /// Waits until what is out has been released.
    pub(super) fn await_release(&self) {
        drop(self.releasing.lock());
    }
}

/// A quarter of the machine's memory: the slots of a device of 128 times as much.
fn default_limit() -> u64 {
    let system = sysinfo();
    let memory = system.totalram.saturating_mul(system.mem_unit.into());
    (memory / 4).max(DeviceConfig::MIN_TABLE_LIMIT)
}

impl Core {
    /// Gives the memory of empty tables back, but for `keep` page frames a shard; returns how many
    /// page frames those are.
    pub(super) fn release_tables(&self, keep: usize) -> u64 {
        self.layout
            .shards()
            .map(|index| self.release_tables_of(index, keep))
            .sum()
    }

    fn release_tables_of(&self, index: ShardIndex, keep: usize) -> u64 {
        /// Page frames that are out at a time: some microseconds' worth.
        const AT_ONCE: usize = 64;
        let mut released = 0;
        loop {
            let _those_who_need_them_wait = self.tables.releasing.lock();
            let mut idle = self.shard(index).take_tables(keep, AT_ONCE);
            if idle.is_empty() {
                return released;
            }
            let failed = idle.release().err();
            released += self.shard(index).accept_tables(idle);
            if let Some(error) = failed {
                tracing::warn!("cannot give the memory of tables back: {error}");
                return released;
            }
        }
    }

    /// Sees to it that tables have room again.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if they are all in use; those of writing home.
    pub(super) fn make_table_room(&self) -> Result<()> {
        let _once_for_all_who_wait = self.tables.making_room.lock();
        self.release_tables(0);
        if self.has_table_room() {
            return Ok(());
        }
        let Some(home) = self.origin.home() else {
            return Err(Error::NoSpace(SPENT));
        };
        self.empty_tables_home(home)
    }

    /// Whether there is room for all that a page may take: a block of slots, and one of marks.
    fn has_table_room(&self) -> bool {
        let needed = 1 + u64::from(self.origin.home().is_some());
        self.tables.budget.used() + needed <= self.tables.budget.limit()
    }

    /// Has pages leave memory for their home until tables have room for more than the one who asks.
    fn empty_tables_home(&self, home: &Home) -> Result<()> {
        let budget = &self.tables.budget;
        let enough = (budget.limit() / 4).min(64);
        let is_enough = || budget.used() + enough <= budget.limit();
        home.write_all(self)?;
        self.release_tables(0);
        for index in self.layout.shards() {
            let (mut at, end) = (0, self.layout.slots(index));
            while at < end && !is_enough() {
                at = self.leave_some(index, at..end);
                self.release_tables_of(index, 0);
            }
        }
        match self.has_table_room() {
            true => Ok(()),
            false => Err(Error::NoSpace(SPENT)),
        }
    }

    /// Has the clean pages of some blocks leave memory, read lately or not; returns where to go on.
    fn leave_some(&self, index: ShardIndex, slots: std::ops::Range<u32>) -> u32 {
        let mut shard = self.shard(index);
        let gone_by = shard.drop_clean(slots.clone(), u64::MAX).next;
        // They had their chance.
        shard.drop_clean(slots.start..gone_by, u64::MAX);
        gone_by
    }
}
