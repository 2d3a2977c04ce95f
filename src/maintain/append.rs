//! Appending: batches of records go to the log's end, several at once, and what is to be done when one has
//! been written: slots are pointed at the records, zspages are freed.
//!
//! Eviction, cleaning, the writing of chosen pages and restoring all append here.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::Batch;
use super::in_flight::{Append, Completed, InFlight};
use crate::engine::{Engine, RoundEnd, ShardIndex, Taken};
use crate::latency::Operation;
use crate::pool::ZspageId;
use crate::spill::{BLOCK, SegmentLog, Target};
use crate::sync::atomic::Ordering::Relaxed;

pub(super) const FAILING: &str = "the memory limit is reached and the backing cannot be written to";

/// A zspage that this thread has isolated.
pub(super) struct Isolated {
    pub(super) shard: ShardIndex,
    pub(super) zspage: ZspageId,
    pub(super) frames: u64,
}

/// What a batch is made of.
pub(super) enum Payload {
    /// Objects of zspages that are isolated while they are written.
    Evicted(Vec<Isolated>),
    /// Objects of chosen pages.
    Selected,
    /// Records that cleaning moves.
    Moved,
    /// Records of a saved image.
    Restored,
}

impl Payload {
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

/// What has become of chosen pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SelectedOutcome {
    /// Pages that have left memory.
    pub(super) written: u64,
    /// Whether any batch could not be written.
    pub(super) failed: bool,
}

/// The log of the spill, and the appends to it that are in flight.
pub(super) struct Appender {
    engine: Arc<Engine>,
    pub(super) log: SegmentLog,
    in_flight: InFlight,
    /// Page frames of zspages that are isolated while their objects are being written.
    leaving_frames: u64,
    /// Page frames that eviction ever freed.
    pub(super) evicted_frames: u64,
    /// Whether an append of records that cleaning moves failed.
    pub(super) moves_failed: bool,
    /// Of the pages that were chosen last.
    pub(super) selected: SelectedOutcome,
    /// Whether the last attempt to write failed, so that it is logged once.
    pub(super) failing: bool,
}

impl Appender {
    /// An appender to a log whose segment uses have numbers behind `sequence`.
    pub(super) fn new(engine: Arc<Engine>, sequence: u64) -> Self {
        let spilled = &engine.spilled;
        let (stores, table) = (Arc::clone(&spilled.stores), Arc::clone(&spilled.segments));
        let counts = Arc::clone(&spilled.log_counts);
        Self {
            log: SegmentLog::new(stores, table, counts, sequence),
            in_flight: InFlight::new(spilled.formats.spilled.clone()),
            engine,
            leaving_frames: 0,
            evicted_frames: 0,
            moves_failed: false,
            selected: SelectedOutcome::default(),
            failing: false,
        }
    }

    /// Has what it takes to append.
    ///
    /// # Errors
    /// Why that cannot be had.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        self.engine
            .spilled
            .segments
            .make()
            .map_err(|error| format!("no address space for its segments: {error}"))?;
        self.in_flight
            .prepare()
            .map_err(|error| format!("cannot start a thread to write it: {error}"))
    }

    /// Appends in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether there is nothing to be gained by completing an append first.
    pub(super) fn is_open(&self) -> bool {
        self.in_flight.is_open()
    }

    /// Page frames of zspages that are isolated while their objects are being written.
    pub(super) fn leaving_frames(&self) -> u64 {
        self.leaving_frames
    }

    /// A batch, if not all are in flight.
    pub(super) fn try_take_batch(&mut self) -> Option<Batch> {
        self.in_flight.take_batch()
    }

    /// Takes a batch back that is not submitted.
    pub(super) fn give_back(&mut self, batch: Batch) {
        self.in_flight.give_back(batch);
    }

    /// A batch, after another has been completed if need be; `None` without a backing.
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        if !self.in_flight.can_submit() {
            // A failure is noted and logged, and the next append tells.
            let _ = self.complete();
        }
        self.in_flight.take_batch()
    }

    /// Submits a batch.
    pub(super) fn submit(&mut self, target: Target, batch: Batch, payload: Payload) {
        let backing = self.engine.spilled.stores.current();
        let (Some(backing), false) = (backing, batch.is_empty()) else {
            match payload {
                Payload::Evicted(isolated) => drop(self.put_back(isolated, true)),
                Payload::Selected => batch.unselect(&self.engine),
                Payload::Moved | Payload::Restored => {}
            }
            self.in_flight.give_back(batch);
            return;
        };
        self.engine
            .spilled
            .quota
            .begin(payload.taken(&batch, &target));
        self.log.begin_append(&target, batch.append_len(&target));
        self.leaving_frames += payload.frames();
        self.in_flight.submit(Append {
            target,
            backing: Arc::clone(&backing),
            batch,
            payload,
            started: Instant::now(),
        });
    }

    /// Waits for an append to end and does what comes after it; `None` if none is in flight.
    /// Writers that wait for room try again if it freed some.
    ///
    /// # Errors
    /// That the backing cannot be written to; logged when it starts and when it ends.
    pub(super) fn complete(&mut self) -> Option<Result<(), &'static str>> {
        let Completed { append, written } = self.in_flight.complete()?;
        let Append {
            target,
            batch,
            payload,
            started,
            ..
        } = append;
        self.note_health(&written);
        let written = written.is_ok();
        if !written {
            self.moves_failed |= payload.moves();
        }
        let taken = payload.taken(&batch, &target);
        self.engine
            .spilled
            .quota
            .end(taken, written, self.engine.time.now());
        self.engine.note_changes();
        match &payload {
            Payload::Selected => {
                let settled = if written {
                    batch.settle_selected(&self.engine, &target)
                } else {
                    batch.unselect(&self.engine);
                    0
                };
                self.selected.written += settled;
                self.selected.failed |= !written;
            }
            _ if written => batch.settle(&self.engine, &target),
            _ => {}
        }
        let bytes = batch.append_len(&target);
        self.log.end_append(&target, bytes, written);
        self.leaving_frames -= payload.frames();
        let moved = payload.moves();
        if let Payload::Evicted(isolated) = payload {
            self.evicted_frames += self.put_back(isolated, written);
        }
        self.in_flight.give_back(batch);
        if !written {
            return Some(Err(FAILING));
        }
        self.engine.counts.bd_writes.fetch_add(taken.pages, Relaxed);
        if !moved {
            let latencies = &self.engine.latencies;
            latencies.note(Operation::Eviction, started.elapsed(), 1);
            self.engine.limit.throttle.end_round(RoundEnd::Room);
        }
        Some(Ok(()))
    }

    /// Completes all that is in flight.
    ///
    /// # Errors
    /// As [`Appender::complete`], if any failed.
    pub(super) fn complete_all(&mut self) -> Result<(), &'static str> {
        let mut done = Ok(());
        while let Some(completed) = self.complete() {
            done = done.and(completed);
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
            let mut shard = self.engine.shards.lock(isolated.shard);
            if shard.put_back(isolated.zspage, written) {
                freed += isolated.frames;
            }
        }
        freed
    }
}
