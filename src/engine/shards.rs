//! The shards of a device, and the memory that their pools have freed and keep.
//!
//! Each shard has one mutex, and no two are held at once, except all of them for a moment by
//! whoever begins to save the device.

use std::io;
use std::ops::Range;

use crossbeam::utils::CachePadded;

use super::layout::{Layout, ShardIndex};
use crate::shard::{Shard, SlotIndex};
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::Ordering::{Acquire, Release};
use crate::sync::{Mutex, MutexGuard};
use crate::units::PAGE_SIZE;

/// Freed page frames, over all shards, whose memory is kept for the next write: 16 MiB.
const WARM_FRAMES: usize = 4096;

/// The shards.
pub(crate) struct Shards {
    pub(crate) layout: Layout,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    /// The longest object that is not stored raw.
    max_compressed_len: usize,
    /// Bytes that an object takes, by its length.
    object_sizes: Box<[usize]>,
    /// Warm frames that a shard may keep.
    warm_frames: usize,
    /// Whether the writeback thread is going to look for warm frames by itself.
    trim_is_due: AtomicBool,
}

impl Shards {
    /// As many shards as `layout` has, each made by `make`.
    ///
    /// # Errors
    /// Those of `make`.
    pub(super) fn new(
        layout: Layout,
        make: impl Fn(&Layout, ShardIndex) -> io::Result<Shard>,
    ) -> io::Result<Self> {
        let shard = |index| Ok(CachePadded::new(Mutex::new(make(&layout, index)?)));
        let shards: Box<[_]> = layout.shards().map(shard).collect::<io::Result<_>>()?;
        let first = shards[0].lock();
        let max_compressed_len = first.pool().max_compressed_len();
        let sizes = (0..=max_compressed_len).chain([PAGE_SIZE]);
        let object_sizes = sizes.map(|len| first.pool().object_size(len)).collect();
        drop(first);
        Ok(Self {
            layout,
            warm_frames: WARM_FRAMES / shards.len(),
            shards,
            max_compressed_len,
            object_sizes,
            trim_is_due: AtomicBool::new(false),
        })
    }

    /// Locks a shard.
    pub(crate) fn lock(&self, index: ShardIndex) -> MutexGuard<'_, Shard> {
        self.shards[index.0 as usize].lock()
    }

    /// The longest object that a pool does not store raw, in bytes.
    pub(crate) fn max_compressed_len(&self) -> usize {
        self.max_compressed_len
    }

    /// Bytes that an object of `len` bytes takes in a pool.
    pub(crate) fn object_size(&self, len: usize) -> usize {
        self.object_sizes[len.min(self.object_sizes.len() - 1)]
    }

    /// The first page of a range that is not empty.
    pub(crate) fn first_used(&self, pages: Range<u64>) -> Option<u64> {
        let first_in = |index| {
            let slots = self.layout.slots_of(index, pages.clone());
            let used = self.lock(index).next_used(slots)?;
            Some(u64::from(self.layout.page(index, used).0))
        };
        self.layout.shards().filter_map(first_in).min()
    }

    /// Calls `change` for all slots in use, which may change what is noted of how pages were used. Locks
    /// are held for a bounded number of slots.
    pub(crate) fn change_notes(
        &self,
        mut change: impl FnMut(ShardIndex, SlotIndex, crate::shard::Slot) -> crate::shard::Slot,
    ) {
        for index in self.layout.shards() {
            let (mut at, end) = (0, self.layout.slots(index));
            while at < end {
                let mut shard = self.lock(index);
                at =
                    shard.change_notes(at..end, |slot_index, slot| change(index, slot_index, slot));
            }
        }
    }

    /// Whether a shard is left in a state that the writeback thread must be told of: sparse, or
    /// with freed frames that are too many or that the thread does not expect.
    pub(crate) fn needs_care(&self, shard: &Shard) -> bool {
        let idle = shard.idle_frames();
        idle > self.warm_frames || idle > 0 && !self.trim_is_due.load(Acquire) || shard.is_churned()
    }

    /// Empties sparse zspages until none can be freed that way, or `stops`; returns the page frames
    /// freed.
    pub(crate) fn compact(&self, stops: impl Fn() -> bool) -> u64 {
        let mut freed = 0;
        for index in self.layout.shards() {
            // The lock is let go after each zspage.
            while !stops()
                && let Some(frames) = self.compact_one(index)
            {
                freed += frames;
            }
        }
        freed
    }

    /// Frees a zspage of a shard by moving its objects, if that can be done; returns its page frames.
    pub(crate) fn compact_one(&self, index: ShardIndex) -> Option<u64> {
        self.lock(index).compact()
    }

    /// Calls `release` and gives the memory of freed frames back, but for `keep` of a shard. Returns
    /// whether some is left to look for when the device is idle.
    pub(super) fn trim(&self, keep: usize, release: impl FnOnce()) -> bool {
        self.trim_is_due.store(true, Release);
        release();
        if self.release_warm_frames(keep) {
            return true;
        }
        // Whoever frees memory from here on sees that no trim is due, under the lock of a shard
        // that is looked at after it, or has freed it before that look.
        self.trim_is_due.store(false, Release);
        let left = self
            .layout
            .shards()
            .any(|index| self.lock(index).idle_frames() > 0);
        self.trim_is_due.store(left, Release);
        left
    }

    /// Releases the memory of freed frames in excess of `keep` frames a shard; returns whether
    /// any are left.
    pub(crate) fn release_warm_frames(&self, keep: usize) -> bool {
        let mut left = false;
        for index in self.layout.shards() {
            let mut idle = self.lock(index).pool_mut().take_idle(keep);
            if let Err(error) = idle.release() {
                tracing::warn!("cannot give freed memory back: {error}");
            }
            let mut shard = self.lock(index);
            shard.pool_mut().accept_idle(idle);
            left |= shard.idle_frames() > 0;
        }
        left
    }

    /// Freed frames whose memory a shard keeps.
    pub(crate) fn frames_to_keep(&self, busy: bool) -> usize {
        if busy { self.warm_frames / 2 } else { 0 }
    }
}
