//! What is live in a segment, by the slots that refer to it: for one in which a record does not
//! verify. Where the next one starts is unknown then, but the slots know where theirs are.

use super::Batch;
use super::clean::Source;
use crate::engine::{Engine, ShardIndex};
use crate::shard::{Evicted, Slot, SlotIndex, SlotState};
use crate::spill::{MAX_RECORD_LEN, RecordAddress, SegmentIndex};

/// Slots looked at while a lock is held.
const SLOTS_AT_ONCE: u32 = 1 << 16;

/// A slot that refers to a record in the segment.
#[derive(Clone, Copy)]
struct Reference {
    record: RecordAddress,
    shard: ShardIndex,
    index: SlotIndex,
    slot: Slot,
}

/// A walk through the records that slots refer to.
pub(super) struct Salvage {
    segment: SegmentIndex,
    references: Vec<Reference>,
    at: usize,
    /// Records found to be damaged.
    pub(super) damaged: usize,
}

impl Salvage {
    /// Looks at all slots of the device. None may be about to refer to another segment.
    pub(super) fn new(engine: &Engine, segment: SegmentIndex) -> Self {
        let mut references = Vec::new();
        for shard in engine.shards.layout.shards() {
            collect(engine, shard, segment, &mut references);
        }
        references.sort_unstable_by_key(|reference| reference.record.0);
        Self {
            segment,
            references,
            at: 0,
            damaged: 0,
        }
    }

    /// Adds a record of the segment's `bytes` to the batch; returns false if it is damaged.
    fn pick(&self, engine: &Engine, batch: &mut Batch, bytes: &[u8], reference: Reference) -> bool {
        let Reference {
            record: address,
            shard,
            index,
            slot,
        } = reference;
        let page = engine.shards.layout.page(shard, index);
        let sequence = engine.spilled.segments.sequence_at(address);
        let from = (address.byte() - self.segment.byte()) as usize;
        let bytes = bytes.get(from..).unwrap_or_default();
        let mut scratch = [0; MAX_RECORD_LEN];
        let record =
            engine
                .spilled
                .formats
                .at(address)
                .open(bytes, &mut scratch, address, sequence);
        let names = |codec, len| slot.same_place(Slot::written_back(address, len, codec));
        match record {
            Ok(record) if record.page == page && names(record.codec, record.data.len()) => {
                let live = Evicted {
                    index,
                    slot,
                    codec: record.codec,
                    data: record.data,
                };
                batch.push(shard, page, live);
                true
            }
            // It was written to or discarded meanwhile.
            _ if !engine.shards.lock(shard).slot(index).same_place(slot) => true,
            _ => {
                let (spilled, limit) = (&engine.spilled, &engine.log_limit);
                spilled.note_damage(page, address, sequence, limit);
                false
            }
        }
    }
}

impl Source for Salvage {
    fn is_over(&self) -> bool {
        self.at == self.references.len()
    }

    fn pick_live(&mut self, engine: &Engine, batch: &mut Batch, bytes: &[u8], limit: usize) {
        while let Some(&reference) = self.references.get(self.at)
            && batch.len() + MAX_RECORD_LEN <= limit
        {
            let intact = self.pick(engine, batch, bytes, reference);
            self.damaged += usize::from(!intact);
            self.at += 1;
        }
    }
}

/// Adds the slots of a shard that refer to records in a segment.
fn collect(engine: &Engine, shard: ShardIndex, segment: SegmentIndex, found: &mut Vec<Reference>) {
    let slots = engine.shards.layout.slots(shard);
    let mut at = 0;
    while at < slots {
        let end = slots.min(at.saturating_add(SLOTS_AT_ONCE));
        let locked = engine.shards.lock(shard);
        while let Some(index) = locked.next_used(at..end) {
            let slot = locked.slot(index);
            if let SlotState::WrittenBack { record, .. } = slot.state()
                && SegmentIndex::of(record) == segment
            {
                found.push(Reference {
                    record,
                    shard,
                    index,
                    slot,
                });
            }
            at = index.0 + 1;
        }
        at = end;
    }
}
