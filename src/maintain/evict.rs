//! Eviction: the oldest zspages of all shards leave for the backing.
//!
//! One batch: isolate zspages, oldest first; copy their objects out under the lock of their shard;
//! have them written, with no lock held and while the next batch is collected; point the slots that
//! are still what they were at the records, which frees the objects; put the zspages back, which
//! frees those that are empty.

use std::time::{Duration, Instant};

use super::append::{Isolated, Payload};
use super::batch::MAX_BATCH;
use super::clean::{Cleaned, UNREADABLE};
use super::{Batch, FREED_AT_ONCE, Writeback};
use crate::engine::Engine;
use crate::maintain::oldest::isolate_oldest;
use crate::shard::Chances;
use crate::spill::{Head, MIN_APPEND, Target};

/// Objects of one batch that may be spared because they were accessed.
const CHANCES: Chances = Chances(1024);

/// Segments that eviction leaves free, so that cleaning always has one to write to.
const CLEANING_RESERVE: u32 = 1;

/// How long, at one go, segments are tried from which cleaning gains nothing.
const CLEANING_TIMEOUT: Duration = Duration::from_secs(5);

/// What a reason says to a writer, before what it says to anybody.
pub(super) const AT_LIMIT: &str = "the memory limit is reached and ";
pub(super) const NOTHING: &str = "the memory limit is reached and there is nothing to evict";
const NO_BACKING: &str = "the memory limit is reached and there is no backing to spill to";
const FULL: &str = "the memory limit is reached and the backing is full";

impl Writeback {
    /// Evicts zspages of at least `frames` page frames in all, or all there are; returns the
    /// number freed.
    ///
    /// # Errors
    /// Why nothing can be evicted.
    pub(super) fn evict(&mut self, frames: u64) -> Result<u64, &'static str> {
        let before = self.appender.evicted_frames;
        let mut end = None;
        loop {
            let freed = self.appender.evicted_frames - before;
            let wanted = frames.saturating_sub(freed + self.appender.leaving_frames());
            let may_submit = end.is_none() && !self.engine.limit.throttle.is_closed();
            if wanted > 0 && may_submit && self.appender.is_open() {
                match self.submit_eviction(wanted) {
                    Ok(0) => end = Some(NOTHING),
                    Ok(_) => {}
                    Err(reason) => end = Some(reason),
                }
                continue;
            }
            match self.appender.complete() {
                Some(Ok(())) => {}
                Some(Err(reason)) => end = Some(reason),
                None => break,
            }
        }
        match (self.appender.evicted_frames - before, end) {
            (0, Some(reason)) if reason != NOTHING => Err(reason),
            (freed, _) => Ok(freed),
        }
    }

    /// Submits a batch of the oldest zspages, once another has been completed if all are in flight;
    /// returns the objects in it, none only if there is nothing to evict.
    ///
    /// # Errors
    /// Why nothing can be evicted: no backing, a full one, or one that fails.
    pub(super) fn submit_eviction(&mut self, frames: u64) -> Result<usize, &'static str> {
        let left = self.engine.spilled.may_write(&self.engine.time)?;
        let target = self.eviction_target()?;
        let mut batch = self.appender.take_batch().ok_or(NO_BACKING)?;
        let room = target.room().min(MAX_BATCH).min(left.bytes as usize) - target.start_len();
        let isolated = collect(&self.engine, &mut batch, room, frames, left.pages);
        let objects = batch.records();
        self.appender
            .submit(target, batch, Payload::Evicted(isolated));
        Ok(objects)
    }

    /// Where to write, cleaning a segment first if there is no free one.
    pub(super) fn eviction_target(&mut self) -> Result<Target, &'static str> {
        let mut wasted = Duration::ZERO;
        loop {
            if !self.engine.spilled.stores.spills() {
                return Err(NO_BACKING);
            }
            if let Ok(target) = self.appender.log.target(Head::Evicted, CLEANING_RESERVE) {
                return Ok(target);
            }
            if self.appender.log.free_emptied(FREED_AT_ONCE) > 0 {
                continue;
            }
            // What is in flight may fill, or empty, a segment that could be cleaned.
            if self.appender.in_flight() > 0 {
                self.appender.complete_all()?;
                continue;
            }
            let began = Instant::now();
            let reason = match self.clean_emptiest()? {
                Cleaned::All => continue,
                Cleaned::NoRoom => return Err(FULL),
                // It is left alone, for a while or for good: another may do.
                Cleaned::Damaged => FULL,
                Cleaned::Unreadable => UNREADABLE,
            };
            wasted += began.elapsed();
            if wasted > CLEANING_TIMEOUT || self.engine.limit.throttle.is_closed() {
                return Err(reason);
            }
        }
    }
}

/// Isolates the oldest zspages, until they have `frames` or the batch has about `room` bytes, and
/// fills the batch with their objects, at most `pages`.
fn collect(
    engine: &Engine,
    batch: &mut Batch,
    room: usize,
    frames: u64,
    pages: u64,
) -> Vec<Isolated> {
    let mut chances = CHANCES;
    // The records of a zspage never take more than MIN_APPEND.
    let has_room = |batch: &Batch| {
        batch.len() + MIN_APPEND as usize <= room && (batch.records() as u64) < pages
    };
    isolate_oldest(
        engine,
        frames,
        batch,
        has_room,
        |batch, index, shard, zspage| {
            let before = batch.records();
            shard.empty_isolated(zspage, &mut chances, &mut |evicted| {
                // What is too much stays where it is.
                if (batch.records() as u64) < pages {
                    let page = engine.shards.layout.page(index, evicted.index);
                    batch.push(index, page, evicted);
                }
            });
            batch.records() != before
        },
    )
}
