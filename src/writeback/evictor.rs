//! Eviction: the oldest zspages of all shards leave for the backing.
//!
//! One batch: isolate zspages, oldest first; copy their objects out under the lock of their shard;
//! have them written, with no lock held and while the next batch is collected; point the slots that
//! are still what they were at the records, which frees the objects; put the zspages back, which
//! frees those that are empty.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::allowance::Taken;
use super::batch::MAX_BATCH;
use super::cleaner::{Cleaned, UNREADABLE};
use super::flights::{Flight, Landed};
use super::{Batch, FREED_AT_ONCE, Writeback};
use crate::device::core::Core;
use crate::device::layout::ShardIndex;
use crate::device::room::RoundEnd;
use crate::latency::Operation;
use crate::pool::ZspageId;
use crate::shard::Chances;
use crate::spill::{BLOCK, Head, MIN_APPEND, Target};
use crate::sync::atomic::Ordering::Relaxed;

/// Objects of one batch that may be spared because they were accessed.
const CHANCES: Chances = Chances(1024);

/// Segments that eviction leaves free, so that cleaning always has one to write to.
const CLEANING_RESERVE: u32 = 1;

/// How long, at one go, segments are tried from which cleaning gains nothing.
const CLEANING_PATIENCE: Duration = Duration::from_secs(5);

/// What a reason says to a writer, before what it says to anybody.
pub(super) const AT_LIMIT: &str = "the memory limit is reached and ";
pub(super) const NOTHING: &str = "the memory limit is reached and there is nothing to evict";
const NO_BACKING: &str = "the memory limit is reached and there is no backing to spill to";
const FULL: &str = "the memory limit is reached and the backing is full";
pub(super) const FAILING: &str = "the memory limit is reached and the backing cannot be written to";

/// A zspage that this thread has isolated.
pub(super) struct Isolated {
    pub(super) shard: ShardIndex,
    pub(super) zspage: ZspageId,
    pub(super) frames: u64,
}

/// What a batch is made of.
pub(super) enum Cargo {
    /// Objects of zspages that are isolated while they are written.
    Evicted(Vec<Isolated>),
    /// Objects of chosen pages.
    Selected,
    /// Records that cleaning moves.
    Moved,
    /// Records of a saved image.
    Restored,
}

impl Cargo {
    /// What writing a batch of it takes of what may be written.
    fn taken(&self, batch: &Batch, target: &Target) -> Taken {
        let pages = match self {
            Self::Evicted(_) | Self::Selected | Self::Restored => batch.records() as u64,
            Self::Moved => 0,
        };
        let bytes = batch.append_len(target).next_multiple_of(BLOCK) as u64;
        Taken { pages, bytes }
    }

    /// Page frames of the isolated zspages.
    fn frames(&self) -> u64 {
        match self {
            Self::Evicted(isolated) => isolated.iter().map(|isolated| isolated.frames).sum(),
            Self::Selected | Self::Moved | Self::Restored => 0,
        }
    }

    /// Whether slots point at its records as they did at what these are made of.
    fn moves(&self) -> bool {
        matches!(self, Self::Moved | Self::Restored)
    }
}

impl Writeback {
    /// Evicts zspages of at least `frames` page frames in all, or all there are; returns the
    /// number freed.
    ///
    /// # Errors
    /// Why nothing can be evicted.
    pub(super) fn evict(&mut self, frames: u64) -> Result<u64, &'static str> {
        let before = self.evicted_frames;
        let mut end = None;
        loop {
            let freed = self.evicted_frames - before;
            let wanted = frames.saturating_sub(freed + self.leaving);
            let may_launch = end.is_none() && !self.core.room.is_closed();
            if wanted > 0 && may_launch && self.flights.is_open() {
                match self.launch_eviction(wanted) {
                    Ok(0) => end = Some(NOTHING),
                    Ok(_) => {}
                    Err(reason) => end = Some(reason),
                }
                continue;
            }
            match self.land() {
                Some(Ok(())) => {}
                Some(Err(reason)) => end = Some(reason),
                None => break,
            }
        }
        match (self.evicted_frames - before, end) {
            (0, Some(reason)) if reason != NOTHING => Err(reason),
            (freed, _) => Ok(freed),
        }
    }

    /// Sends a batch of the oldest zspages off, waiting for another to land if all are under way;
    /// returns the objects in it, none only if there is nothing to evict.
    ///
    /// # Errors
    /// Why nothing can be evicted: no backing, a full one, or one that fails.
    pub(super) fn launch_eviction(&mut self, frames: u64) -> Result<usize, &'static str> {
        let left = self.core.may_write()?;
        let target = self.eviction_target()?;
        let mut batch = self.take_batch().ok_or(NO_BACKING)?;
        let room = target.room().min(MAX_BATCH).min(left.bytes as usize) - target.start_len();
        let isolated = collect(&self.core, &mut batch, room, frames, left.pages);
        let objects = batch.records();
        self.launch(target, batch, Cargo::Evicted(isolated));
        Ok(objects)
    }

    /// A batch, after another has landed if need be; `None` without a backing.
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        if !self.flights.can_launch() {
            // A failure is noted and logged, and the next append tells.
            let _ = self.land();
        }
        self.flights.take_batch()
    }

    /// Sends a batch off.
    pub(super) fn launch(&mut self, target: Target, batch: Batch, cargo: Cargo) {
        let backing = self.core.stores.current();
        let (Some(backing), false) = (backing, batch.is_empty()) else {
            match cargo {
                Cargo::Evicted(isolated) => drop(self.put_back(isolated, true)),
                Cargo::Selected => batch.unselect(&self.core),
                Cargo::Moved | Cargo::Restored => {}
            }
            self.flights.give_back(batch);
            return;
        };
        self.core.allowance.begin(cargo.taken(&batch, &target));
        self.log.begin_append(&target, batch.append_len(&target));
        self.leaving += cargo.frames();
        self.flights.launch(Flight {
            target,
            backing: Arc::clone(&backing),
            batch,
            cargo,
            started: Instant::now(),
        });
    }

    /// Waits for an append to end and does what comes after it; `None` if none is under way.
    /// Writers that wait for room try again if it freed some.
    ///
    /// # Errors
    /// That the backing cannot be written to; logged when it starts and when it ends.
    pub(super) fn land(&mut self) -> Option<Result<(), &'static str>> {
        let Landed { flight, written } = self.flights.land()?;
        let Flight {
            target,
            batch,
            cargo,
            started,
            ..
        } = flight;
        self.note_health(&written);
        let written = written.is_ok();
        if !written {
            self.moves_failed |= cargo.moves();
        }
        let taken = cargo.taken(&batch, &target);
        self.core
            .allowance
            .end(taken, written, self.core.time.now());
        match &cargo {
            Cargo::Selected => self.land_selected(&batch, &target, written),
            _ if written => batch.settle(&self.core, &target),
            _ => {}
        }
        let bytes = batch.append_len(&target);
        self.log.end_append(&target, bytes, written);
        self.leaving -= cargo.frames();
        let moved = cargo.moves();
        if let Cargo::Evicted(isolated) = cargo {
            self.evicted_frames += self.put_back(isolated, written);
        }
        self.flights.give_back(batch);
        if !written {
            return Some(Err(FAILING));
        }
        self.core.requests.bd_writes.fetch_add(taken.pages, Relaxed);
        if !moved {
            let latencies = &self.core.latencies;
            latencies.note(Operation::Eviction, started.elapsed(), 1);
            self.core.room.end_round(RoundEnd::Room);
        }
        Some(Ok(()))
    }

    /// Lands all that is under way.
    ///
    /// # Errors
    /// As [`Writeback::land`], if any failed.
    pub(super) fn land_all(&mut self) -> Result<(), &'static str> {
        let mut done = Ok(());
        while let Some(landed) = self.land() {
            done = done.and(landed);
        }
        done
    }

    fn note_health(&mut self, written: &io::Result<()>) {
        match written {
            Ok(()) if std::mem::replace(&mut self.failing, false) => {
                tracing::info!("the backing takes writes again");
            }
            Err(error) if !std::mem::replace(&mut self.failing, true) => {
                tracing::error!("cannot write to the backing: {error}");
            }
            _ => {}
        }
    }

    /// Ends the isolation of zspages; returns the frames freed.
    pub(super) fn put_back(&self, isolated: Vec<Isolated>, written: bool) -> u64 {
        let mut freed = 0;
        // In the order opposite to that of isolation, so that what could not be written is again
        // the oldest first.
        for isolated in isolated.into_iter().rev() {
            let mut shard = self.core.shard(isolated.shard);
            if shard.put_back(isolated.zspage, written) {
                freed += isolated.frames;
            }
        }
        freed
    }

    /// Where to write, cleaning a segment first if there is no free one.
    pub(super) fn eviction_target(&mut self) -> Result<Target, &'static str> {
        let mut wasted = Duration::ZERO;
        loop {
            if !self.core.stores.spills() {
                return Err(NO_BACKING);
            }
            if let Ok(target) = self.log.target(Head::Evicted, CLEANING_RESERVE) {
                return Ok(target);
            }
            if self.log.free_emptied(FREED_AT_ONCE) > 0 {
                continue;
            }
            // What is under way may fill, or empty, a segment that could be cleaned.
            if self.flights.under_way() > 0 {
                self.land_all()?;
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
            if wasted > CLEANING_PATIENCE || self.core.room.is_closed() {
                return Err(reason);
            }
        }
    }
}

/// Isolates the oldest zspages, until they have `frames` or the batch has about `room` bytes, and
/// fills the batch with their objects, at most `pages`.
fn collect(core: &Core, batch: &mut Batch, room: usize, frames: u64, pages: u64) -> Vec<Isolated> {
    let mut chances = CHANCES;
    let mut isolated = Vec::new();
    let mut leaving = 0;
    let mut oldest: Vec<_> = core
        .layout
        .shards()
        .map(|index| (index, core.shard(index).oldest_touch()))
        .collect();
    // The records of a zspage never take more than MIN_APPEND.
    let has_room = |batch: &Batch| {
        batch.len() + MIN_APPEND as usize <= room && (batch.records() as u64) < pages
    };
    while leaving < frames && has_room(batch) {
        let Some((index, touched)) = oldest_shard(&mut oldest) else {
            break;
        };
        let mut shard = core.shard(*index);
        if let Some((zspage, frames)) = shard.isolate_oldest() {
            let before = batch.records();
            shard.empty_isolated(zspage, &mut chances, &mut |evicted| {
                // What is too much stays where it is.
                if (batch.records() as u64) < pages {
                    batch.push(*index, core.layout.page(*index, evicted.index), evicted);
                }
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
pub(super) fn oldest_shard(
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
