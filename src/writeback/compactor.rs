//! Compaction that nobody asked for: what overwrites and discards leave sparse is packed again.
//!
//! A shard counts the objects that it frees, and wakes this thread when they are so many that a
//! look pays. The look tells how many page frames could be freed; if their share is too large,
//! zspages are emptied, one with each hold of the lock, those of the class first in which most can
//! be freed. That share is what the pool may waste; the smaller it is, the more often objects are
//! moved that would soon have been overwritten. So it is smaller once the device is left alone.

use super::Writeback;
use crate::device::core::Core;
use crate::device::layout::ShardIndex;
use crate::device::room::RoundEnd;

/// What a shard may waste: frames that could be freed.
struct Waste {
    /// Compaction begins when there are more, beside `slack`, than one in so many of all frames.
    begin: u64,
    /// And ends when there are no more than that.
    end: u64,
    /// Frames that are not worth the work: one here and there in each size class.
    slack: u64,
}

const BUSY: Waste = Waste {
    begin: 20,
    end: 32,
    slack: 32,
};

const QUIET: Waste = Waste {
    begin: 64,
    end: 128,
    slack: 0,
};

impl Waste {
    /// Whether more than one in `share` of a shard's frames could be freed.
    fn exceeds(&self, share: u64, held: u64, freeable: u64) -> bool {
        freeable.saturating_sub(self.slack) * share > held
    }
}

impl Writeback {
    /// Compacts the shards that have become sparse: those that tell so while the device is busy,
    /// all once it is quiet after that. Returns false if it was interrupted.
    pub(super) fn compact_sparse_shards(&mut self, busy: bool) -> bool {
        let core = &*self.core;
        if !busy && !self.churned {
            return true;
        }
        let mut churned = false;
        let done = core.layout.shards().all(|index| {
            let mut shard = core.shard(index);
            if busy && !shard.is_churned() {
                return true;
            }
            churned = true;
            let waste = if busy { &BUSY } else { &QUIET };
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if !waste.exceeds(waste.begin, held, freeable) {
                shard.forget_churn();
                return true;
            }
            drop(shard);
            self.compact_shard(core, index, waste)
        });
        self.churned = if busy { self.churned || churned } else { !done };
        done
    }

    /// Compacts a shard until it wastes little; returns false if that was interrupted.
    fn compact_shard(&self, core: &Core, index: ShardIndex, waste: &Waste) -> bool {
        loop {
            let mut shard = core.shard(index);
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if !waste.exceeds(waste.end, held, freeable) || shard.compact().is_none() {
                shard.forget_churn();
                return true;
            }
            drop(shard);
            if core.room.demand() && core.budget.has_room() {
                core.room.end_round(RoundEnd::Room);
            }
            if self.should_yield() {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::codec::Codec;
    use crate::config::DeviceConfig;
    use crate::origin::Origin;
    use crate::shard::SlotIndex;
    use crate::spill::FaultyBacking;
    use crate::sync::atomic::Ordering::Relaxed;
    use crate::sync::channel;
    use crate::units::PAGE_SIZE;
    use crate::writeback::NewBacking;

    /// Where packing frees as much as is wanted, nothing is written.
    #[test]
    fn what_is_sparse_is_packed_before_anything_is_evicted() {
        const PAGES: u32 = 4096;
        let mut config = DeviceConfig::new(u64::from(PAGES) * PAGE_SIZE as u64);
        config.shards = Some(1);
        let core = Arc::new(Core::new(&config, Origin::Blank).expect("addresses"));
        let (_commands, receiver) = channel::unbounded();
        let mut writeback = Writeback::new(Arc::clone(&core), receiver, 1);
        let (done, _answer) = channel::bounded(1);
        let backing = Arc::new(FaultyBacking::new(4));
        writeback.replace(
            Some(NewBacking {
                backing,
                capacity: 4,
                size: None,
            }),
            done,
        );
        let shard = ShardIndex(0);
        for slot in 0..PAGES {
            let stored = core
                .shard(shard)
                .store(SlotIndex(slot), Codec::Lz4, &[7; 1000]);
            stored.expect("room");
        }
        for slot in (0..PAGES).filter(|slot| slot % 4 != 0) {
            core.shard(shard).clear(SlotIndex(slot));
        }
        // Else it is interrupted at once, to begin a generation.
        core.keep_ages(|| false);
        core.budget.set_limit(core.budget.used() / 2);
        assert!(core.budget.used() > core.watermarks().high);
        assert!(writeback.make_room());
        assert!(core.budget.used() <= core.watermarks().low);
        assert_eq!(core.requests.bd_writes.load(Relaxed), 0);
    }
}
