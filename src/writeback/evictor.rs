//! Eviction: the oldest zspages of all shards leave for the backing.
//!
//! One batch: isolate zspages, oldest first; copy their objects out under the lock of their shard;
//! write them, with no lock held; point the slots that are still what they were at the records,
//! which frees the objects; put the zspages back, which frees those that are empty.

use std::sync::atomic::Ordering::Relaxed;

use super::{Batch, Writeback};
use crate::device::core::Core;
use crate::device::layout::ShardIndex;
use crate::pool::ZspageId;
use crate::shard::Chances;
use crate::spill::{LogFull, MIN_APPEND, Target};

/// Most bytes of one append.
pub(super) const MAX_BATCH: usize = 1 << 20;

/// Objects of one batch that may be spared because they were accessed.
const CHANCES: Chances = Chances(1024);

/// Segments that eviction leaves free, so that cleaning always has one to write to.
const CLEANING_RESERVE: u32 = 1;

/// A zspage that this thread has isolated.
struct Isolated {
    shard: ShardIndex,
    zspage: ZspageId,
    frames: u64,
}

/// What a batch achieved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Evictions {
    /// Objects that left memory.
    pub(super) objects: usize,
    /// Page frames freed. Spared objects may keep theirs.
    pub(super) frames: u64,
}

impl Writeback {
    /// Evicts zspages of at least `frames` page frames in all, or all there are; returns the
    /// number freed.
    ///
    /// # Errors
    /// Why nothing can be evicted.
    pub(super) fn evict(&mut self, frames: u64) -> Result<u64, &'static str> {
        let mut freed = 0;
        while freed < frames && !self.core.room.is_closed() {
            match self.evict_batch(frames - freed) {
                Ok(batch) if batch.objects > 0 => freed += batch.frames,
                Err(reason) if freed == 0 => return Err(reason),
                Ok(_) | Err(_) => break,
            }
        }
        Ok(freed)
    }

    /// Evicts one batch, which is empty only if there is nothing to evict.
    ///
    /// # Errors
    /// Why nothing can be evicted: no backing, a full one, or one that fails.
    pub(super) fn evict_batch(&mut self, frames: u64) -> Result<Evictions, &'static str> {
        let target = self.eviction_target()?;
        self.batch.start(&target);
        let isolated = collect(&self.core, &mut self.batch, &target, frames);
        let written = self.write_batch(&target);
        let mut done = Evictions {
            objects: self.batch.records(),
            frames: 0,
        };
        // In the order opposite to that of isolation, so that what could not be written is again
        // the oldest first.
        for Isolated {
            shard,
            zspage,
            frames,
        } in isolated.into_iter().rev()
        {
            if self.core.shard(shard).put_back(zspage, written.is_ok()) {
                done.frames += frames;
            }
        }
        written?;
        self.core
            .requests
            .bd_writes
            .fetch_add(done.objects as u64, Relaxed);
        Ok(done)
    }

    /// Where to write, cleaning a segment first if there is no free one.
    fn eviction_target(&mut self) -> Result<Target, &'static str> {
        loop {
            let Some(log) = &mut self.log else {
                return Err("the memory limit is reached and there is no backing to spill to");
            };
            log.free_emptied();
            match log.target(CLEANING_RESERVE) {
                Ok(target) => return Ok(target),
                Err(LogFull) if self.clean_one()? => {}
                Err(LogFull) => return Err("the memory limit is reached and the backing is full"),
            }
        }
    }

    /// Appends the batch and points its slots at it.
    ///
    /// # Errors
    /// That the backing cannot be written to; logged when it starts and when it ends.
    pub(super) fn write_batch(&mut self, target: &Target) -> Result<(), &'static str> {
        let Self {
            core,
            log,
            batch,
            failing,
            ..
        } = self;
        let log = log.as_mut().expect("a target comes from a log");
        if batch.is_empty() {
            return Ok(());
        }
        if let Err(error) = log.append(target, batch.seal(target)) {
            if !std::mem::replace(failing, true) {
                tracing::error!("cannot write to the backing: {error}");
            }
            return Err("the memory limit is reached and the backing cannot be written to");
        }
        if std::mem::replace(failing, false) {
            tracing::info!("the backing takes writes again");
        }
        batch.settle(core, target);
        Ok(())
    }
}

/// Isolates the oldest zspages, until they have `frames` or the batch is full, and fills the batch
/// with their objects.
fn collect(core: &Core, batch: &mut Batch, target: &Target, frames: u64) -> Vec<Isolated> {
    let room = target.room().min(MAX_BATCH);
    let mut chances = CHANCES;
    let mut isolated = Vec::new();
    let mut leaving = 0;
    let mut oldest: Vec<_> = core
        .layout
        .shards()
        .map(|index| (index, core.shard(index).oldest_touch()))
        .collect();
    // The records of a zspage never take more than MIN_APPEND.
    while leaving < frames && batch.len() + MIN_APPEND as usize <= room {
        let Some((index, touched)) = oldest_shard(&mut oldest) else {
            break;
        };
        let mut shard = core.shard(*index);
        if let Some((zspage, frames)) = shard.isolate_oldest() {
            let before = batch.records();
            shard.empty_isolated(zspage, &mut chances, &mut |evicted| {
                batch.push(*index, core.layout.page(*index, evicted.index), evicted);
            });
            if batch.records() == before {
                // All its objects were spared.
                shard.put_back(zspage, true);
            } else {
                leaving += frames;
                isolated.push(Isolated {
                    shard: *index,
                    zspage,
                    frames,
                });
            }
        }
        *touched = shard.oldest_touch();
    }
    isolated
}

/// The shard whose oldest zspage, if it has any, is the oldest of all.
fn oldest_shard(
    shards: &mut [(ShardIndex, Option<u32>)],
) -> Option<&mut (ShardIndex, Option<u32>)> {
    // The clock wraps: what lies half its range ahead is behind.
    let reference = shards.iter().find_map(|(_, touched)| *touched)?;
    let age = |touched: u32| touched.wrapping_sub(reference) as i32;
    shards
        .iter_mut()
        .filter(|(_, touched)| touched.is_some())
        .min_by_key(|(_, touched)| touched.map(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_found_across_the_wrap_of_the_clock() {
        let mut shards: Vec<_> = (0..)
            .map(ShardIndex)
            .zip([None, Some(5), Some(u32::MAX - 3)])
            .collect();
        assert_eq!(oldest_shard(&mut shards).map(|s| s.0), Some(ShardIndex(2)));
        shards[2].1 = None;
        assert_eq!(oldest_shard(&mut shards).map(|s| s.0), Some(ShardIndex(1)));
        assert_eq!(oldest_shard(&mut shards[..1]), None);
    }
}
