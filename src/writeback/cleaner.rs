//! Cleaning: the live records of a sparse segment move to the log's end, and the segment is free.

use crate::device::core::Core;
use crate::shard::{Evicted, Slot};
use crate::spill::{Record, RecordAddress, SEGMENT_BYTES, SEGMENT_HEADER_LEN, SegmentIndex};

use super::evictor::MAX_BATCH;
use super::{Batch, Writeback};

/// Above this many live bytes a segment is not worth cleaning: what moving it would gain is less
/// than what an append may leave unused at a segment's end.
const MAX_LIVE: u32 = (SEGMENT_BYTES - SEGMENT_BYTES / 16) as u32;

impl Writeback {
    /// Cleans while less than seven tenths of what the spill occupies is live, unless memory is
    /// short: eviction comes first.
    pub(super) fn clean_sparse_segments(&mut self) {
        let core = std::sync::Arc::clone(&self.core);
        let is_sparse = || {
            let used = core.log_counts.used_bytes();
            used > 4 * SEGMENT_BYTES && core.segments.live_bytes() * 10 < used * 7
        };
        while is_sparse() && core.budget.used() <= core.watermarks().high {
            // What fails here is logged, and fails a writer only if it comes to need the space.
            if !matches!(self.clean_one(), Ok(true)) {
                return;
            }
            if let Some(log) = &mut self.log {
                log.free_emptied();
            }
        }
    }

    /// Cleans the emptiest segment; returns whether there was one worth it.
    ///
    /// # Errors
    /// Why the backing cannot be written to.
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
        if let Err(error) = log.read_segment(segment, &mut self.segment) {
            tracing::error!("cannot read segment {} of the backing: {error}", segment.0);
            log.mark_damaged(segment);
            return Ok(true);
        }
        let mut at = SEGMENT_HEADER_LEN as usize;
        while at < self.segment.len() {
            let log = self.log.as_mut().expect("checked above");
            let Ok(target) = log.target(0) else {
                return Ok(false);
            };
            self.batch.start(&target);
            let limit = target.room().min(MAX_BATCH);
            let moved = pick_live(
                &self.core,
                &mut self.batch,
                segment,
                &self.segment,
                at,
                limit,
            );
            self.write_batch(&target)?;
            match moved {
                Ok(next) => at = next,
                Err(DamagedAt(byte)) => {
                    let SegmentIndex(segment_number) = segment;
                    tracing::error!("segment {segment_number} is damaged at byte {byte}");
                    self.log
                        .as_mut()
                        .expect("checked above")
                        .mark_damaged(segment);
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }
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
