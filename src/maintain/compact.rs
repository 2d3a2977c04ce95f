//! Compaction that nobody asked for: what overwrites and discards leave sparse is packed again.
//!
//! A shard counts the objects that it frees, and wakes this thread when they are so many that a
//! look pays. The look tells how many page frames could be freed; if their share is too large,
//! zspages are emptied, one with each hold of the lock, those of the class first in which most can
//! be freed. That share is what the pool may waste; the smaller it is, the more often objects are
//! moved that would soon have been overwritten. So it is smaller once the device is left alone.

use super::{Progress, Writeback};
use crate::engine::{RoundEnd, ShardIndex};

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
    /// all once it is quiet after that. There is more to do if it was interrupted.
    pub(super) fn compact_sparse_shards(&mut self, busy: bool) -> Progress {
        let shards = &self.engine.shards;
        if !busy && !self.churned {
            return Progress::Idle;
        }
        let (mut churned, mut progress) = (false, Progress::Idle);
        for index in shards.layout.shards() {
            let mut shard = shards.lock(index);
            if busy && !shard.is_churned() {
                continue;
            }
            churned = true;
            let waste = if busy { &BUSY } else { &QUIET };
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if !waste.exceeds(waste.begin, held, freeable) {
                shard.forget_churn();
                continue;
            }
            drop(shard);
            progress = self.compact_shard(index, waste);
            if progress == Progress::More {
                break;
            }
        }
        let interrupted = progress == Progress::More;
        self.churned = if busy {
            self.churned || churned
        } else {
            interrupted
        };
        progress
    }

    /// Compacts a shard until it wastes little; there is more to do if that was interrupted.
    fn compact_shard(&self, index: ShardIndex, waste: &Waste) -> Progress {
        let limit = &self.engine.limit;
        loop {
            let mut shard = self.engine.shards.lock(index);
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if !waste.exceeds(waste.end, held, freeable) || shard.compact().is_none() {
                shard.forget_churn();
                return Progress::Idle;
            }
            drop(shard);
            if limit.throttle.demand() && limit.budget.has_room() {
                limit.throttle.end_round(RoundEnd::Room);
            }
            if self.should_yield() {
                return Progress::More;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;
    use crate::maintain::rig::writeback;
    use crate::shard::SlotIndex;
    use crate::sync::atomic::Ordering::Relaxed;

    /// Where packing frees as much as is wanted, nothing is written.
    #[test]
    fn what_is_sparse_is_packed_before_anything_is_evicted() {
        const PAGES: u32 = 4096;
        let (engine, mut writeback, _commands) = writeback(PAGES);
        let shard = ShardIndex(0);
        for slot in 0..PAGES {
            let stored = engine
                .shards
                .lock(shard)
                .store(SlotIndex(slot), Codec::Lz4, &[7; 1000]);
            stored.expect("room");
        }
        for slot in (0..PAGES).filter(|slot| slot % 4 != 0) {
            engine.shards.lock(shard).clear(SlotIndex(slot));
        }
        // Else it is interrupted at once, to begin a generation.
        let (shards, time) = (&engine.shards, &engine.time);
        engine.ages.keep(shards, time, || false);
        engine
            .limit
            .budget
            .set_limit(engine.limit.budget.used() / 2);
        assert!(engine.limit.is_short());
        assert_eq!(writeback.make_room(), Progress::Idle);
        assert!(engine.limit.budget.used() <= engine.limit.watermarks().low);
        assert_eq!(engine.counts.bd_writes.load(Relaxed), 0);
    }
}
