//! Memory for the tables that say where pages are: bounded, and given back.
//!
//! Tables cost a page frame for each block of slots, and of marks of an image's pages, in which any
//! is in use. All shards take them from one budget, and dictionaries count in it, too. Whoever finds
//! it spent has empty ones released first, and then, where pages are destaged to an image, has them leave
//! for it ([`Relief`]).
//!
//! Locks: `making_room`, then a destager's turn, then a shard's; and `making_room`, `releasing`, then a shard's.
//! Whoever destages needs no table, so none of them waits for itself. `releasing` is held while page frames are out to be released, with no shard's lock held
//! for the system call. A writer that needs one of those waits for it; few are out at a time.

use std::sync::{Arc, OnceLock, Weak};

use super::layout::ShardIndex;
use super::shards::Shards;
use crate::config::DeviceConfig;
use crate::error::{Error, Result};
use crate::log_limit::LogLimit;
use crate::memory::{FrameBudget, available};
use crate::sync::Mutex;
use crate::units::PAGE_SIZE;

pub(super) const SPENT: &str =
    "the device's tables are at their limit (`DeviceConfig::table_limit`)";

/// Times that relief is tried for a writer: others take what it frees, and make dirty what it wrote.
const RELIEFS: usize = 3;

/// Has pages leave memory, and so tables, for an image.
pub(crate) trait Relief: Send + Sync {
    /// Does so until `is_enough`, or none can any more; [`Tables::release`] is called for each step.
    ///
    /// # Errors
    /// Those of writing to the image.
    fn empty_tables(&self, is_enough: &dyn Fn() -> bool) -> Result<()>;
}

/// What tables may take, and who gives it back.
pub(crate) struct Tables {
    /// In page frames.
    pub(crate) budget: Arc<FrameBudget>,
    releasing: Mutex<()>,
    /// Held by the writer that makes room, for all who wait for it.
    making_room: Mutex<()>,
    /// Of a device that destages to an image.
    relief: OnceLock<Weak<dyn Relief>>,
    log_limit: LogLimit,
}

impl Tables {
    pub(super) fn new(config: &DeviceConfig) -> Self {
        let limit = config.table_limit.unwrap_or_else(default_limit);
        Self {
            budget: Arc::new(FrameBudget::new(limit / PAGE_SIZE as u64)),
            releasing: Mutex::default(),
            making_room: Mutex::default(),
            relief: OnceLock::new(),
            log_limit: LogLimit::of_states(),
        }
    }

    /// Names who has pages leave memory; once.
    pub(crate) fn relieve_by(&self, relief: Weak<dyn Relief>) {
        // A second one changes nothing.
        let _ = self.relief.set(relief);
    }

    /// Waits until what is out has been released.
    pub(crate) fn await_release(&self) {
        drop(self.releasing.lock());
    }

    /// Gives the memory of empty tables back, but for `keep` page frames a shard.
    pub(crate) fn release(&self, shards: &Shards, keep: usize) {
        for index in shards.layout.shards() {
            self.release_of(shards, index, keep);
        }
    }

    /// The same, for the tables of a shard.
    pub(crate) fn release_of(&self, shards: &Shards, index: ShardIndex, keep: usize) {
        /// Page frames that are out at a time: some microseconds' worth.
        const AT_ONCE: usize = 64;
        loop {
            let _those_who_need_them_wait = self.releasing.lock();
            let mut idle = shards.lock(index).take_tables(keep, AT_ONCE);
            if idle.is_empty() {
                return;
            }
            let failed = idle.release().err();
            shards.lock(index).accept_tables(idle);
            if let Some(error) = failed {
                if let Some(end) = self.log_limit.admit() {
                    tracing::warn!("cannot give the memory of tables back: {error}{end}");
                }
                return;
            }
        }
    }

    /// Sees to it that tables have room again.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if they are all in use; those of [`Relief`].
    pub(crate) fn make_room(&self, shards: &Shards) -> Result<()> {
        let _once_for_all_who_wait = self.making_room.lock();
        self.release(shards, 0);
        if self.has_room() {
            return Ok(());
        }
        let relief = self.relief.get().and_then(Weak::upgrade);
        let reliefs = relief.iter().cycle().take(RELIEFS);
        for relief in reliefs {
            // For more than the one who asks.
            let enough = (self.budget.limit() / 4).min(64);
            relief.empty_tables(&|| self.budget.used() + enough <= self.budget.limit())?;
            if self.has_room() {
                return Ok(());
            }
        }
        Err(Error::NoSpace(SPENT))
    }

    fn has_room(&self) -> bool {
        self.has_room_for(1)
    }

    /// Whether there is room for all that so many runs of pages may take: each a block of slots, and one of
    /// marks.
    pub(crate) fn has_room_for(&self, runs: u64) -> bool {
        let needed = runs * (1 + u64::from(self.relief.get().is_some()));
        self.budget.used() + needed <= self.budget.limit()
    }
}

/// A quarter of the memory there is: the slots of a device of 128 times as much.
fn default_limit() -> u64 {
    (available() / 4).max(DeviceConfig::MIN_TABLE_LIMIT)
}
