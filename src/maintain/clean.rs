//! Cleaning: the live records of a segment move to the log's end, and the segment is free.

use std::io;
use std::ops::Range;

use crate::engine::Engine;
use crate::io::has_room_to_restore;
use crate::shard::{Evicted, Slot};
use crate::spill::{
    Head, Leave, MAX_RECORD_LEN, Record, RecordAddress, SEGMENT_BYTES, SegmentIndex,
};

use super::append::{FAILING, Payload};
use super::batch::MAX_BATCH;
use super::salvage::Salvage;
use super::{Batch, Progress, Writeback};

/// Above this many live bytes a segment is not worth cleaning: what moving it would gain is less
/// than what an append may leave unused at a segment's end.
const MAX_LIVE: u32 = (SEGMENT_BYTES - SEGMENT_BYTES / 16) as u32;

/// Bytes of spill below which it is not worth cleaning.
const SMALL: u64 = 4 * SEGMENT_BYTES;

/// Percent of what the spill occupies that are kept live.
const KEPT_LIVE: u64 = 73;

pub(super) const UNREADABLE: &str =
    "the memory limit is reached and the backing cannot be read to clean it";

const UNREADABLE_TO_LEAVE: &str = "it cannot be read";

impl Writeback {
    /// Whether so much of the spill is dead that cleaning must keep pace with eviction even while
    /// memory is short: a file without a bound would fill its file system.
    pub(super) fn is_bloated(&self) -> bool {
        let (used, live) = self.spill_bytes();
        used > SMALL && live * 100 < used * KEPT_LIVE
    }

    /// Cleans a few segments if that is so, about as many as an append has filled.
    pub(super) fn keep_pace(&mut self) {
        const SEGMENTS: usize = 3;
        for _ in 0..SEGMENTS {
            // What fails here is logged, and fails a writer only if it comes to need the space.
            if !self.is_bloated() || !self.clean_best() {
                return;
            }
        }
    }

    /// Cleans while less than [`KEPT_LIVE`] of what the spill occupies is live, unless memory is
    /// short: eviction comes first. There is more to do if it was interrupted.
    pub(super) fn clean_sparse_segments(&mut self) -> Progress {
        loop {
            if self.engine.limit.is_short() || !self.is_bloated() {
                return Progress::Idle;
            }
            // What fails here is logged, and fails a writer only if it comes to need the space.
            if !self.clean_best() {
                return Progress::Idle;
            }
            if self.should_yield() {
                return Progress::More;
            }
        }
    }

    /// Bytes that the spill occupies, and the live ones among them.
    fn spill_bytes(&self) -> (u64, u64) {
        (
            self.engine.spilled.log_counts.used_bytes(),
            self.engine.spilled.segments.live_bytes(),
        )
    }

    /// Cleans the segment that it pays most to clean; returns whether there may be another.
    fn clean_best(&mut self) -> bool {
        let most_live = SEGMENT_BYTES as u32 / 100 * KEPT_LIVE as u32;
        let best = self.appender.log.best_to_clean(most_live);
        let cleaned = best.map(|segment| self.clean(segment));
        matches!(cleaned, Some(Ok(Cleaned::All | Cleaned::Damaged)))
    }

    /// Cleans the segment that gains most space at once.
    ///
    /// # Errors
    /// Why the backing cannot be written.
    pub(super) fn clean_emptiest(&mut self) -> Result<Cleaned, &'static str> {
        match self.appender.log.emptiest() {
            Some((segment, live)) if live <= MAX_LIVE => self.clean(segment),
            _ => Ok(Cleaned::NoRoom),
        }
    }

    fn clean(&mut self, segment: SegmentIndex) -> Result<Cleaned, &'static str> {
        if self.engine.spilled.may_write(&self.engine.time).is_err() {
            return Ok(Cleaned::NoRoom);
        }
        match self.read_segment(segment) {
            Some(written) => self.empty_and_complete(segment, &written, To::Log),
            None => Ok(Cleaned::Unreadable),
        }
    }

    /// Empties the segment whose contents are in `self.segment`, in the ranges that were `written`,
    /// and waits for what that takes.
    ///
    /// # Errors
    /// That not all of it could be written.
    pub(super) fn empty_and_complete(
        &mut self,
        segment: SegmentIndex,
        written: &[Range<u32>],
        to: To,
    ) -> Result<Cleaned, &'static str> {
        self.appender.moves_failed = false;
        let cleaned = self.empty(segment, written, to);
        let completed = self.appender.complete_all();
        let completed = if self.appender.moves_failed {
            Err(FAILING)
        } else {
            completed
        };
        // Where everything else has moved, what is left cannot be: it is never to be tried again.
        let stays = cleaned == Cleaned::All && self.engine.spilled.segments.live(segment) > 0;
        let damaged = completed.is_ok() && (cleaned == Cleaned::Damaged || stays);
        self.appender.log.end_cleaning(segment, damaged);
        completed.map(|()| if damaged { Cleaned::Damaged } else { cleaned })
    }

    /// Moves the live records of the segment whose contents are in `self.segment`, in the ranges
    /// that were `written`.
    fn empty(&mut self, segment: SegmentIndex, written: &[Range<u32>], to: To) -> Cleaned {
        let mut walk = Walk::new(segment, written);
        if !self.move_from(&mut walk, to) {
            return Cleaned::NoRoom;
        }
        if !walk.damaged {
            return Cleaned::All;
        }
        // What is on its way no longer refers to the segment once it is written. A failure is noted
        // and logged, and the next append tells.
        let _ = self.appender.complete_all();
        let mut salvage = Salvage::new(&self.engine, segment);
        match (self.move_from(&mut salvage, to), salvage.damaged) {
            (false, _) => Cleaned::NoRoom,
            (true, 0) => Cleaned::All,
            (true, _) => Cleaned::Damaged,
        }
    }

    /// Returns false if there was no room.
    fn move_from(&mut self, source: &mut dyn Source, to: To) -> bool {
        match to {
            To::Log | To::SpareLog => self.move_live(source, to),
            To::Memory | To::SpareMemory => self.move_to_memory(source, to),
        }
    }

    /// Reads what was written to a segment to `self.segment`; returns where in it that is, `None` if
    /// it cannot be read, which is logged.
    fn read_segment(&mut self, segment: SegmentIndex) -> Option<Vec<Range<u32>>> {
        let read = self.appender.log.begin_cleaning(segment, &mut self.segment);
        let note = |error: &io::Error| self.note_unreadable(segment, error);
        read.inspect_err(note).ok()
    }

    /// Logs that a segment cannot be read, the first time.
    pub(super) fn note_unreadable(&self, segment: SegmentIndex, error: &io::Error) {
        if self.appender.log.failed_reads(segment) == 1
            && let Some(end) = self.engine.log_limit.admit()
        {
            let path = self.engine.spilled.stores.path_of(segment);
            let (segment, path) = (segment.within_store().0, path.display());
            tracing::warn!("cannot read segment {segment} of {path}: {error}{end}");
        }
    }

    /// Sends live records, whose segment's contents are in `self.segment`, to the log's end.
    fn move_live(&mut self, source: &mut dyn Source, to: To) -> bool {
        while !source.is_over() {
            if self.appender.log.free_segments() == 0 {
                // One after the other, so that the place of one that fails can be used again.
                let _ = self.appender.complete_all();
            }
            // The batch first: until it is taken others may be completed and change where the log ends.
            let Some(mut batch) = self.appender.take_batch() else {
                return false;
            };
            let spare = match to {
                To::SpareLog => self.appender.log.kept_from_image(),
                _ => 0,
            };
            let Ok(target) = self.appender.log.target(Head::Moved, spare) else {
                self.appender.give_back(batch);
                return false;
            };
            let Some(bytes) = self.bytes_to_move(to) else {
                self.appender.give_back(batch);
                return false;
            };
            let room = target.room().min(MAX_BATCH).min(bytes) - target.start_len();
            source.pick_live(&self.engine, &mut batch, &self.segment, room);
            let payload = match to {
                To::SpareLog => Payload::Restored,
                _ => Payload::Moved,
            };
            self.appender.submit(target, batch, payload);
        }
        true
    }

    /// Bytes that the next append may take, if it may take any.
    fn bytes_to_move(&self, to: To) -> Option<usize> {
        match to {
            // What may be written is for what has nowhere else to go.
            To::SpareLog => (!self.engine.spilled.quota.is_limited()).then_some(MAX_BATCH),
            // A backing may leave whatever that takes: somebody asked for it.
            _ if self.replaced.is_some() => Some(MAX_BATCH),
            _ => self
                .engine
                .spilled
                .may_write(&self.engine.time)
                .ok()
                .map(|left| left.bytes as usize),
        }
    }

    /// Does a step of draining a backing: moves the live records of one of its segments to the
    /// current backing, or to memory if there is none. It is drained once there is no more to do.
    ///
    /// # Errors
    /// Why it cannot be drained.
    pub(super) fn drain_some(&mut self) -> Result<Progress, &'static str> {
        let segment = match self.appender.log.leave() {
            Leave::Done => return Ok(Progress::Idle),
            Leave::Damaged => {
                return Err("some of what it holds is damaged and cannot be moved");
            }
            Leave::Complete => {
                // What failed is logged.
                let _ = self.appender.complete_all();
                return Ok(Progress::More);
            }
            Leave::Move(segment) => segment,
        };
        let written = self.read_segment(segment).ok_or(UNREADABLE_TO_LEAVE)?;
        let to = match self.engine.spilled.stores.spills() {
            true => To::Log,
            false => To::Memory,
        };
        let cleaned = self.empty_and_complete(segment, &written, to);
        match cleaned.map_err(|_| "the backing that takes its place cannot be written to")? {
            Cleaned::NoRoom => Err("there is no room for what it holds"),
            Cleaned::Unreadable => Err(UNREADABLE_TO_LEAVE),
            Cleaned::All | Cleaned::Damaged => Ok(Progress::More),
        }
    }

    /// Stores live records, whose segment's contents are in `self.segment`, in memory.
    fn move_to_memory(&mut self, source: &mut dyn Source, to: To) -> bool {
        let Some(mut batch) = self.appender.take_batch() else {
            return false;
        };
        let mut stored = true;
        while stored && !source.is_over() {
            batch.clear();
            source.pick_live(&self.engine, &mut batch, &self.segment, MAX_BATCH);
            let engine = &*self.engine;
            let has_room = || to != To::SpareMemory || has_room_to_restore(engine);
            stored = batch.store(engine, has_room);
        }
        self.appender.give_back(batch);
        stored
    }
}

/// What finds the live records of a segment.
pub(super) trait Source {
    /// Whether all were found.
    fn is_over(&self) -> bool;

    /// Adds some from the segment's `bytes` to the batch, until it has `limit` bytes.
    fn pick_live(&mut self, engine: &Engine, batch: &mut Batch, bytes: &[u8], limit: usize);
}

/// Where what is live in a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// To the log's end.
    Log,
    Memory,
    /// To the log's end, if that leaves enough for what has nowhere else to go.
    SpareLog,
    /// To memory, under the same condition.
    SpareMemory,
}

/// How cleaning a segment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cleaned {
    All,
    /// But for records that do not verify.
    Damaged,
    /// Until there was nowhere to write; or nothing was, because that gains nothing.
    NoRoom,
    /// Not at all.
    Unreadable,
}

/// A walk through the records of a segment.
struct Walk<'a> {
    segment: SegmentIndex,
    /// What was written and has not been looked at, with how far the first was.
    written: &'a [Range<u32>],
    at: usize,
    damaged: bool,
}

impl<'a> Walk<'a> {
    fn new(segment: SegmentIndex, written: &'a [Range<u32>]) -> Self {
        Self {
            segment,
            written,
            at: written.first().map_or(0, |first| first.start as usize),
            damaged: false,
        }
    }

    fn next_append(&mut self) {
        self.written = &self.written[1..];
        self.at = self.written.first().map_or(0, |next| next.start as usize);
    }
}

impl Source for Walk<'_> {
    fn is_over(&self) -> bool {
        self.written.is_empty()
    }

    /// Where the next record starts after one that does not verify is unknown, so it goes on with
    /// the next append.
    fn pick_live(&mut self, engine: &Engine, batch: &mut Batch, bytes: &[u8], limit: usize) {
        let mut scratch = [0; MAX_RECORD_LEN];
        while let Some(append) = self.written.first() {
            let end = append.end as usize;
            if self.at >= end {
                self.next_append();
                continue;
            }
            let address = RecordAddress::from_byte(self.segment.byte() + self.at as u64);
            let bytes = &bytes[self.at..end];
            let sequence = engine.spilled.segments.sequence_at(address);
            let format = engine.spilled.formats.at(address);
            let record = format.open(bytes, &mut scratch, address, sequence);
            let known = record
                .ok()
                .filter(|record| u64::from(record.page.0) < engine.shards.layout.capacity());
            let Some(record) = known else {
                tracing::debug!("segment {} is damaged at byte {}", self.segment.0, self.at);
                self.damaged = true;
                self.next_append();
                continue;
            };
            // It may be longer where it goes than where it is.
            let len = engine.spilled.formats.spilled.record_len(record.data.len());
            if batch.len() + len > limit {
                return;
            }
            push_if_live(engine, batch, address, record);
            self.at += format.record_len(record.data.len());
        }
    }
}

fn push_if_live(engine: &Engine, batch: &mut Batch, at: RecordAddress, record: Record<'_>) {
    let Record { page, codec, data } = record;
    let run = engine.shards.layout.run_of(page);
    let index = run.slot;
    let slot = engine.shards.lock(run.shard).slot(index);
    if slot.same_place(Slot::written_back(at, data.len(), codec)) {
        let live = Evicted {
            index,
            slot,
            codec,
            data,
        };
        batch.push(run.shard, page, live);
    }
}
