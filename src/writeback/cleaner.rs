//! Cleaning: the live records of a sparse segment move to the log's end, and the segment is free.

use crate::device::core::Core;
use crate::shard::{Evicted, Slot};
use crate::spill::{Record, RecordAddress, SEGMENT_BYTES, SEGMENT_HEADER_LEN, SegmentIndex};

use super::evictor::MAX_BATCH;
use super::{Batch, Writeback};

/// Above this many live bytes a segment is not worth cleaning: what moving it would gain is less
/// than what an append may leave unused at a segment's end.
const MAX_LIVE: u32 = (SEGMENT_BYTES - SEGMENT_BYTES / 16) as u32;

/// Bytes of spill below which it is not worth cleaning.
const SMALL: u64 = 4 * SEGMENT_BYTES;

impl Writeback {
    /// Whether so much of the spill is dead that cleaning must go on even while memory is short:
    /// a file without a bound would fill its file system.
    pub(super) fn is_bloated(&self) -> bool {
        let (used, live) = self.spill_bytes();
        used > SMALL + live * 2
    }

    /// Cleans while less than seven tenths of what the spill occupies is live, unless memory is
    /// short: eviction comes first. Returns false if it was interrupted.
    pub(super) fn clean_sparse_segments(&mut self) -> bool {
        loop {
            let (used, live) = self.spill_bytes();
            let short = self.core.budget.used() > self.core.watermarks().high;
            if used <= SMALL || live * 10 >= used * 7 || short {
                return true;
            }
            // What fails here is logged, and fails a writer only if it comes to need the space.
            if !matches!(self.clean_one(), Ok(true)) {
                return true;
            }
            if self.should_yield() {
                return false;
            }
        }
    }

    /// Bytes that the spill occupies, and the live ones among them.
    fn spill_bytes(&self) -> (u64, u64) {
        (
            self.core.log_counts.used_bytes(),
            self.core.segments.live_bytes(),
        )
    }

    /// Cleans the emptiest segment; returns whether there was one worth it.
    ///
    /// # Errors
    /// Why the backing cannot be read or written.
    pub(super) fn clean_one(&mut self) -> Result<bool, &'static str> {
        let Some(log) = &mut self.log else {
            return Ok(false);
        };
        let Some((segment, live)) = log.emptiest() else {
            return Ok(false);
        };
        if live > MAX_LIVE {
            return Ok(false);
        }
        if let Err(error) = log.begin_cleaning(segment, &mut self.segment) {
            tracing::warn!("cannot read segment {} of the backing: {error}", segment.0);
            return Err("the memory limit is reached and the backing cannot be read to clean it");
        }
        let cleaned = self.move_live(segment);
        if let Some(log) = &mut self.log {
            log.end_cleaning(segment, matches!(cleaned, Ok(Cleaned::Damaged)));
        }
        Ok(cleaned? != Cleaned::NoRoom)
    }

    /// Moves the live records of the segment whose contents are in `self.segment`.
    fn move_live(&mut self, segment: SegmentIndex) -> Result<Cleaned, &'static str> {
        let mut at = SEGMENT_HEADER_LEN as usize;
        while at < self.segment.len() {
            let Some(Ok(target)) = self.log.as_mut().map(|log| log.target(0)) else {
                return Ok(Cleaned::NoRoom);
            };
            self.batch.start(&target);
            let limit = target.room().min(MAX_BATCH);
            let Self {
                core,
                batch,
                segment: bytes,
                ..
            } = self;
            let next = pick_live(core, batch, segment, bytes, at, limit);
            // What was found before the damage moves all the same.
            self.write_batch(&target)?;
            match next {
                Ok(next) => at = next,
                Err(DamagedAt(byte)) => {
                    tracing::error!("segment {} is damaged at byte {byte}", segment.0);
                    return Ok(Cleaned::Damaged);
                }
            }
        }
        Ok(Cleaned::All)
    }
}

/// How cleaning a segment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cleaned {
    All,
    /// Up to a record that does not verify.
    Damaged,
    /// Until there was nowhere to write.
    NoRoom,
}

/// Where in a segment a record does not verify. Where the next one starts is unknown, so the rest
/// of the segment stays where it is.
struct DamagedAt(usize);

/// Adds the live records of a segment's `bytes` to the batch, from `at` on, until it has `limit`
/// bytes; returns where to go on.
///
/// # Errors
/// [`DamagedAt`] a record that does not verify.
fn pick_live(
    core: &Core,
    batch: &mut Batch,
    segment: SegmentIndex,
    bytes: &[u8],
    mut at: usize,
    limit: usize,
) -> Result<usize, DamagedAt> {
    let sequence = core.segments.sequence(segment);
    while at < bytes.len() {
        let address = RecordAddress::from_byte(segment.byte() + at as u64);
        let record = Record::decode(&bytes[at..], address, sequence);
        let known = record
            .ok()
            .filter(|record| u64::from(record.page.0) < core.layout.pages());
        let Some(record) = known else {
            return Err(DamagedAt(at));
        };
        if batch.len() + record.len() > limit {
            break;
        }
        let run = core.layout.run(record.page, u64::from(record.page.0) + 1);
        let slot = core.shard(run.shard).slot(run.slot);
        if slot.same_place(Slot::written_back(address, record.data.len(), record.codec)) {
            let Record { codec, data, .. } = record;
            batch.push(
                run.shard,
                record.page,
                Evicted {
                    index: run.slot,
                    slot,
                    codec,
                    data,
                },
            );
        }
        at += record.len();
    }
    Ok(at)
}
