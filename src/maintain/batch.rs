//! A batch: records on their way to one append, and the slots to change once it is done.

use std::collections::HashMap;

use crate::engine::{Engine, ShardIndex};
use crate::io::storable;
use crate::shard::{Evicted, Shard, Slot, SlotIndex, SlotState};
use crate::spill::{BLOCK, BlockBuf, Record, RecordFormat, RecordFormats, SegmentIndex, Target};
use crate::sync::{Protection, without};
use crate::units::{PAGE_SIZE, PageIndex};

/// Most bytes of one append, a multiple of [`BLOCK`].
pub(super) const MAX_BATCH: usize = 1 << 20;

/// A record in the batch.
pub(super) struct Entry {
    shard: ShardIndex,
    pub(super) index: SlotIndex,
    page: PageIndex,
    /// What the slot was when the object was collected.
    pub(super) expected: Slot,
    /// Where the record starts in `collected`, later in the append.
    pub(super) at: usize,
    /// Bytes of the object.
    len: usize,
}

/// The bytes of an append, and what is in them.
#[derive(Default)]
pub(super) struct Batch {
    format: RecordFormat,
    /// Records in the order in which they came.
    collected: BlockBuf,
    entries: Vec<Entry>,
    /// Entries in the order of their pages.
    order: Vec<u32>,
    /// Records as they are written.
    append: BlockBuf,
}

impl Batch {
    /// A batch with room for any that is collected, so that no memory is needed when it is short.
    pub(super) fn new(format: RecordFormat) -> Self {
        const SMALLEST_RECORD: usize = 32;
        const ENTRIES: usize = MAX_BATCH / SMALLEST_RECORD;
        Self {
            format,
            collected: BlockBuf::with_capacity(MAX_BATCH),
            entries: Vec::with_capacity(ENTRIES),
            order: Vec::with_capacity(ENTRIES),
            append: BlockBuf::with_capacity(MAX_BATCH),
        }
    }

    pub(super) fn clear(&mut self) {
        self.collected.clear();
        self.entries.clear();
    }

    /// Bytes of the records so far.
    pub(super) fn len(&self) -> usize {
        self.collected.len()
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
        let at = self.collected.len();
        let record = Record { page, codec, data };
        self.format.encode(record, &mut self.collected);
        self.entries.push(Entry {
            shard,
            index,
            page,
            expected: slot,
            at,
            len: data.len(),
        });
    }

    /// Bytes of the append at `target`, without padding.
    pub(super) fn append_len(&self, target: &Target) -> usize {
        target.start_len() + self.len()
    }

    /// Lays the records out for `target`, sealed for their places, and returns the bytes to append.
    /// They go by page, so that neighbours on the device, which are often read together, are
    /// neighbours in the segment.
    pub(super) fn lay_out(&mut self, target: &Target) -> &[u8] {
        let Self {
            format,
            collected,
            entries,
            order,
            append,
        } = self;
        order.clear();
        order.extend(0..entries.len() as u32);
        order.sort_unstable_by_key(|&i| entries[i as usize].page);
        append.clear();
        target.start(append);
        for &i in &*order {
            let entry = &mut entries[i as usize];
            let record = &collected[entry.at..][..format.record_len(entry.len)];
            entry.at = append.len();
            append.extend_from_slice(record);
            target.seal(format, append, entry.at, entry.len);
        }
        append.pad_to(append.len().next_multiple_of(BLOCK));
        append
    }

    /// After the append: points the slots at their records, those that are as they were.
    pub(super) fn settle(&self, engine: &Engine, target: &Target) {
        self.visit(engine, &mut |shard, entry| {
            shard.settle(entry.index, entry.expected, target.address(entry.at));
        });
    }

    /// Visits the records, each with its shard locked.
    pub(super) fn visit(&self, engine: &Engine, visit: &mut dyn FnMut(&mut Shard, &Entry)) {
        for run in self.entries.chunk_by(|a, b| a.shard == b.shard) {
            // Short holds: a run may be thousands of slots.
            for some in run.chunks(128) {
                let mut shard = engine.shards.lock(some[0].shard);
                for entry in some {
                    visit(&mut shard, entry);
                }
            }
        }
    }
}

impl Batch {
    /// Stores the objects in memory, those whose slots are as they were, while `has_room`; returns
    /// false if there is no room for all of them.
    pub(super) fn store(&self, engine: &Engine, has_room: impl Fn() -> bool) -> bool {
        let mut raw = [0; PAGE_SIZE];
        self.entries.iter().all(|entry| {
            if !has_room() {
                return false;
            }
            let Ok(record) = self.format.parse(&self.collected[entry.at..]) else {
                unreachable!("the record was encoded by `push`");
            };
            let storable = storable(engine, record.page, record.codec, record.data, &mut raw);
            let Ok((codec, data)) = storable else {
                // It stays where it is.
                return true;
            };
            let mut shard = engine.shards.lock(entry.shard);
            let unchanged = shard.slot(entry.index).same_place(entry.expected)
                || without(Protection::BroughtBackIfUnchanged);
            !unchanged || shard.promote(entry.index, codec, data).is_ok()
        })
    }
}

/// Adds up the live bytes of the segment that a written-back slot refers to.
pub(super) fn count_live(
    live: &mut HashMap<SegmentIndex, u32>,
    formats: &RecordFormats,
    slot: Slot,
) {
    if let SlotState::WrittenBack { record, len, .. } = slot.state() {
        let bytes = formats.at(record).record_len(len) as u32;
        *live.entry(SegmentIndex::of(record)).or_default() += bytes;
    }
}
