//! Compaction that nobody asked for: what overwrites and discards leave sparse is packed again.
//!
//! A shard counts the objects that it frees, and wakes this thread when they are so many that a
//! look pays. The look tells how many page frames could be freed; if their share is too large,
//! zspages are emptied, one with each hold of the lock, those of the class first in which most can
//! be freed. That share is what the pool may waste; the smaller it is, the more often objects are
//! moved that would soon have been overwritten.

use super::Writeback;
use crate::device::core::Core;
use crate::device::layout::ShardIndex;
use crate::device::room::RoundEnd;

/// Compaction begins when this share of a shard's frames could be freed, one in so many.
const BEGIN: u64 = 16;

/// And ends when it is no more than this.
const END: u64 = 32;

/// Frames that a shard may waste besides, 256 KiB: one here and there in each size class.
const SLACK: u64 = 64;

impl Writeback {
    /// Compacts the shards that have become sparse; returns false if it was interrupted.
    pub(super) fn compact_sparse_shards(&self) -> bool {
        let core = &*self.core;
        core.layout.shards().all(|index| {
            let mut shard = core.shard(index);
            if !shard.is_churned() {
                return true;
            }
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if freeable.saturating_sub(SLACK) * BEGIN <= held {
                shard.forget_churn();
                return true;
            }
            drop(shard);
            self.compact_shard(core, index)
        })
    }

    /// Compacts a shard until little of it could be freed; returns false if it was interrupted.
    fn compact_shard(&self, core: &Core, index: ShardIndex) -> bool {
        while !self.should_yield() {
            let mut shard = core.shard(index);
            let (held, freeable) = (shard.pool().frames_in_use(), shard.pool().frames_freeable());
            if freeable.saturating_sub(SLACK) * END <= held || shard.compact().is_none() {
                shard.forget_churn();
                return true;
            }
            drop(shard);
            if core.room.demand() && core.budget.has_room() {
                core.room.end_round(RoundEnd::Room);
            }
        }
        false
    }
}
