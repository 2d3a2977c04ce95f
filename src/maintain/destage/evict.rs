//! Eviction to the image.
//!
//! What is clean goes first, since that costs nothing: a hand goes over the slots
//! and drops the clean pages that were not read since it last came by; compaction makes page frames
//! of the gaps. When that frees nothing, the oldest zspages are emptied: their dirty pages are
//! written to it, and those next to them on the device with them, which then are clean.

use std::sync::Arc;

use super::{BATCH_PAGES, Completion, DestageBatch, Destager, Hand};
use crate::engine::{Engine, RUN_PAGES, RoundEnd, ShardIndex};
use crate::maintain::append::Isolated;
use crate::maintain::evict::NOTHING;
use crate::maintain::oldest::isolate_oldest;
use crate::maintain::{Progress, Writeback};
use crate::shard::{Chances, Dropped, Shard, SlotIndex};
use crate::sync::time::Instant;

const FAILING: &str = "the memory limit is reached and the image cannot be written to";

/// Objects of one batch that may be spared because they were accessed.
const CHANCES: Chances = Chances(BATCH_PAGES);

/// Pages of a batch that leave memory; the rest is for their neighbours.
const LEAVING: usize = BATCH_PAGES / 2;

/// Clean pages that are dropped at once for each page frame that is wanted.
const PAGES_A_FRAME: u64 = 2;

/// What a step of eviction has done.
#[derive(Clone, Copy, Debug)]
struct Done {
    /// Page frames that it freed.
    frames: u64,
    /// Pages that it wrote to the image. Those that changed meanwhile have not left memory.
    pages: usize,
}

impl Done {
    /// Whether there was anything to evict.
    fn is_something(self) -> bool {
        self.frames > 0 || self.pages > 0
    }
}

impl Writeback {
    /// Frees some memory, if more is used than the low watermark or a writer waits; returns whether
    /// that is not the end of it.
    pub(in crate::maintain) fn destage_some(&mut self, destager: &Destager) -> Progress {
        let engine = Arc::clone(&self.engine);
        let demand = engine.limit.throttle.demand();
        let wanted = engine
            .limit
            .budget
            .used()
            .saturating_sub(engine.limit.watermarks().low);
        let wanted = wanted.max(u64::from(demand));
        if wanted == 0 {
            return Progress::Idle;
        }
        let (done, reason) = match self.destage_step(destager, wanted) {
            Ok(done) => (done.is_something(), NOTHING),
            Err(reason) => (self.compact_some() > 0, reason),
        };
        let end = if done || engine.limit.budget.has_room() {
            RoundEnd::Room
        } else {
            RoundEnd::Stuck(reason)
        };
        self.stuck_at = (!done).then(Instant::now);
        engine.limit.throttle.end_round(end);
        if done { Progress::More } else { Progress::Idle }
    }

    /// Frees about so many page frames; returns how many it has freed.
    ///
    /// # Errors
    /// That the image cannot be written to.
    pub(in crate::maintain) fn evict_to_image(
        &mut self,
        destager: &Destager,
        frames: u64,
    ) -> Result<u64, &'static str> {
        let mut freed = 0;
        while freed < frames && !self.engine.limit.throttle.is_closed() {
            match self.destage_step(destager, frames - freed) {
                Ok(done) if done.is_something() => freed += done.frames,
                Err(reason) if freed == 0 => return Err(reason),
                Ok(_) | Err(_) => break,
            }
        }
        self.appender.evicted_frames += freed;
        Ok(freed)
    }

    fn destage_step(&mut self, destager: &Destager, frames: u64) -> Result<Done, &'static str> {
        let dropped = self.drop_clean(frames);
        if dropped > 0 {
            return Ok(Done {
                frames: dropped,
                pages: 0,
            });
        }
        let engine = Arc::clone(&self.engine);
        let mut batch = destager.turn();
        let isolated = collect(&engine, &mut batch, frames);
        let pages = batch.len();
        let written = destager.write(&mut batch);
        drop(batch);
        // What could not be written stands behind all others now: some of those may be.
        let frames = self.appender.put_back(isolated, true);
        match written {
            Err(_) if frames == 0 => Err(FAILING),
            Ok(()) if frames == 0 && pages == 0 => Ok(Done {
                frames: self.compact_some(),
                pages,
            }),
            _ => Ok(Done { frames, pages }),
        }
    }

    /// Drops clean pages, once around at most; returns the page frames that are free by that.
    fn drop_clean(&mut self, frames: u64) -> u64 {
        let engine = Arc::clone(&self.engine);
        let clean = |index: ShardIndex| engine.shards.lock(index).clean_pages();
        let shards: Vec<ShardIndex> = engine.shards.layout.shards().collect();
        if shards.iter().copied().map(clean).sum::<u64>() == 0 {
            return 0;
        }
        let (mut pages, mut freed) = (frames * PAGES_A_FRAME, 0);
        'round: for (index, slots) in self.hand.round(&engine.shards.layout) {
            let mut from = slots.start;
            while from < slots.end {
                if pages == 0 {
                    break 'round;
                }
                let mut shard = engine.shards.lock(index);
                let Dropped {
                    pages: gone,
                    frames,
                    next,
                } = shard.drop_clean(from..slots.end, pages);
                drop(shard);
                pages -= gone;
                freed += frames;
                from = next;
                self.hand = Hand::at(index, from);
            }
        }
        for &shard in &shards {
            while freed < frames
                && let Some(some) = {
                    let mut shard = engine.shards.lock(shard);
                    shard.compact()
                }
            {
                freed += some;
            }
        }
        freed
    }
}

/// Isolates the oldest zspages, of `frames` page frames in all if there are so many, and takes their
/// dirty pages and the neighbours of those.
fn collect(engine: &Engine, batch: &mut DestageBatch, frames: u64) -> Vec<Isolated> {
    let mut chances = CHANCES;
    let has_room = |batch: &DestageBatch| batch.room() > BATCH_PAGES - LEAVING;
    isolate_oldest(
        engine,
        frames,
        batch,
        has_room,
        |batch, index, shard, zspage| {
            let before = shard.counts().resident_pages;
            let dirty = shard.drop_isolated(zspage, &mut chances);
            let leaves = !dirty.is_empty() || shard.counts().resident_pages != before;
            for slot in dirty {
                take(engine, index, shard, slot, batch);
            }
            leaves
        },
    )
}

/// Takes a dirty page that is to leave memory, and the dirty ones that follow it or come before it
/// without a gap, as far as there is room: what is too much stays where it is.
fn take(
    engine: &Engine,
    index: ShardIndex,
    shard: &mut Shard,
    slot: SlotIndex,
    batch: &mut DestageBatch,
) {
    let page = |slot| engine.shards.layout.page(index, slot);
    if batch.room() == 0 {
        return;
    }
    shard.take_dirty(slot, &mut |contents| {
        batch.push(index, slot, page(slot), contents, Completion::Leave);
    });
    let first = slot.0 / RUN_PAGES * RUN_PAGES;
    let end = (first + RUN_PAGES).min(engine.shards.layout.slots(index));
    if batch.room() < RUN_PAGES as usize {
        return;
    }
    shard.take_dirty_neighbours(slot, first..end, &mut |slot, contents| {
        batch.push(index, slot, page(slot), contents, Completion::Stay);
    });
}
