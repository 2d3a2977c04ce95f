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
use crate::spill::{LogFull, MIN_APPEND, SegmentLog, Target};

/// Most bytes of one append.
pub(super) const MAX_BATCH: usize = 1 << 20;

/// Objects of one batch that may be moved aside instead of evicted, because they were accessed.
const CHANCES: Chances = Chances(1024);

/// Segments that eviction leaves free, so that cleaning always has one to write to.
const CLEANING_RESERVE: u32 = 1;

/// A zspage that this thread has isolated.
struct Isolated {
    shard: ShardIndex,
    zspage: ZspageId,
    frames: u64,
}

impl Writeback {
    /// Evicts zspages of at least `frames` page frames in all, or all there are; returns the
    /// number freed.
    ///
    /// # Errors
    /// Why nothing more can be evicted.
    pub(super) fn evict(&mut self, frames: u64) -> Result<u64, &'static str> {
        let mut freed = 0;
        while freed < frames {
            match self.evict_batch(frames - freed)? {
                0 => break,
                batch => freed += batch,
            }
        }
        Ok(freed)
    }

    /// Evicts one batch; returns the number of page frames freed.
    ///
    /// # Errors
    /// Why nothing can be evicted: no backing, a full one, or one that fails.
    pub(super) fn evict_batch(&mut self, frames: u64) -> Result<u64, &'static str> {
        let target = self.eviction_target()?;
        let log = self.log.as_mut().expect("a target comes from a log");
        self.batch.start(&target);
        let isolated = collect(&self.core, &mut self.batch, &target, frames);
        let written = write(&self.core, log, &mut self.batch, &target);
        let mut freed = 0;
        // In the order opposite to that of isolation, so that what could not be written is again
        // the oldest first.
        for Isolated {
            shard,
            zspage,
            frames,
        } in isolated.into_iter().rev()
        {
            if self.core.shard(shard).put_back(zspage) {
                freed += frames;
            }
        }
        self.note(written)?;
        self.core
            .requests
            .bd_writes
            .fetch_add(self.batch.records() as u64, Relaxed);
        Ok(freed)
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

    /// Logs the start and the end of trouble with the backing.
    fn note(&mut self, written: std::io::Result<()>) -> Result<(), &'static str> {
        match written {
            Ok(()) if self.failing => {
                tracing::info!("the backing takes writes again");
                self.failing = false;
            }
            Ok(()) => {}
            Err(error) => {
                if !self.failing {
                    tracing::error!("cannot write to the backing: {error}");
                    self.failing = true;
                }
                return Err("the memory limit is reached and the backing cannot be written to");
            }
        }
        Ok(())
    }

    /// Appends the batch and points its slots at it.
    pub(super) fn write_batch(&mut self, target: &Target) -> Result<(), &'static str> {
        let log = self.log.as_mut().expect("a target comes from a log");
        let written = write(&self.core, log, &mut self.batch, target);
        self.note(written)
    }
}

/// Isolates the oldest zspages, until they have `frames` or the batch is full, and fills the batch
/// with their objects.
fn collect(core: &Core, batch: &mut Batch, target: &Target, frames: u64) -> Vec<Isolated> {
    let room = target.room().min(MAX_BATCH);
    let mut chances = CHANCES;
    let mut isolated = Vec::new();
    let mut leaving = 0;
    // The records of a zspage never take more than MIN_APPEND.
    while leaving < frames && batch.len() + MIN_APPEND as usize <= room {
        let Some(index) = oldest_shard(core) else {
            break;
        };
        let mut shard = core.shard(index);
        let Some((zspage, frames)) = shard.isolate_oldest() else {
            continue;
        };
        let before = batch.records();
        shard.empty_isolated(zspage, &mut chances, &mut |evicted| {
            batch.push(index, core.layout.page(index, evicted.index), evicted);
        });
        if batch.records() == before {
            // All its objects were moved, and it is freed.
            shard.put_back(zspage);
            continue;
        }
        leaving += frames;
        isolated.push(Isolated {
            shard: index,
            zspage,
            frames,
        });
    }
    isolated
}

/// The shard whose oldest zspage is the oldest of all.
fn oldest_shard(core: &Core) -> Option<ShardIndex> {
    let touched = |index| Some((index, core.shard(index).oldest_touch()?));
    let shards: Vec<_> = core.layout.shards().filter_map(touched).collect();
    // The clock wraps: what lies half its range ahead is behind.
    let (_, reference) = *shards.first()?;
    shards
        .iter()
        .min_by_key(|(_, touched)| touched.wrapping_sub(reference) as i32)
        .map(|s| s.0)
}

fn write(
    core: &Core,
    log: &mut SegmentLog,
    batch: &mut Batch,
    target: &Target,
) -> std::io::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    log.append(target, batch.seal(target))?;
    batch.settle(core, target);
    Ok(())
}
