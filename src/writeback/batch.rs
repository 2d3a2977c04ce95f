//! A batch: records on their way to one append, and the slots to change once it is done.

use std::collections::HashMap;

use super::evictor::MAX_BATCH;
use crate::device::core::Core;
use crate::device::layout::ShardIndex;
use crate::shard::{Evicted, Slot, SlotIndex, SlotState};
use crate::spill::{Record, SegmentIndex, Target, record_len};
use crate::units::PageIndex;

/// A record in the batch.
struct Entry {
    shard: ShardIndex,
    index: SlotIndex,
    /// What the slot must still be when the append is done.
    expected: Slot,
    /// Where the record starts in the append.
    at: usize,
    /// Bytes of the object.
    len: usize,
}

/// The bytes of an append, and what is in them.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Batch {
    /// A batch with room for any that is collected, so that no memory is needed when it is short.
    pub(super) fn new() -> Self {
        const SMALLEST_RECORD: usize = 32;
        Self {
            bytes: Vec::with_capacity(MAX_BATCH),
            entries: Vec::with_capacity(MAX_BATCH / SMALLEST_RECORD),
        }
    }

    /// Starts a batch for `target`.
    pub(super) fn start(&mut self, target: &Target) {
        self.bytes.clear();
        self.entries.clear();
        target.start(&mut self.bytes);
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records so far.
    pub(super) fn records(&self) -> usize {
        self.entries.len()
    }

    /// Adds the record of an object.
    pub(super) fn push(&mut self, shard: ShardIndex, page: PageIndex, evicted: Evicted<'_>) {
        let Evicted {
            index,
            slot,
            codec,
            data,
        } = evicted;
        let at = self.bytes.len();
        Record { page, codec, data }.encode(&mut self.bytes);
        self.entries.push(Entry {
            shard,
            index,
            expected: slot,
            at,
            len: data.len(),
        });
    }

    /// Writes the records' checksums and returns the bytes to append at `target`.
    pub(super) fn seal(&mut self, target: &Target) -> &[u8] {
        for entry in &self.entries {
            target.seal(&mut self.bytes, entry.at, entry.len);
        }
        &self.bytes
    }

    /// After the append: points the slots at their records, those that are as they were.
    pub(super) fn settle(&self, core: &Core, target: &Target) {
        for run in self.entries.chunk_by(|a, b| a.shard == b.shard) {
            // Short holds: a run may be thousands of slots.
            for some in run.chunks(128) {
                let mut shard = core.shard(some[0].shard);
                for entry in some {
                    shard.settle(entry.index, entry.expected, target.address(entry.at));
                }
            }
        }
    }
}

/// Adds up the live bytes of the segment that a written-back slot refers to.
pub(super) fn count_live(live: &mut HashMap<SegmentIndex, u32>, slot: Slot) {
    if let SlotState::WrittenBack { record, len, .. } = slot.state() {
        *live.entry(SegmentIndex::of(record)).or_default() += record_len(len) as u32;
    }
}
