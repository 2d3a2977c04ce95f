//! What a request finds in a slot, and what it takes from there: looked at under the lock, used without it.

use super::read_ahead::Place;
use crate::codec::Codec;
use crate::shard::{EvictionGeneration, Slot};
use crate::spill::{RecordAddress, RecordBuf, RecordFormats};
use crate::units::{Page, PageIndex};

/// A page as it was found under the lock.
#[derive(Clone, Copy)]
pub(super) enum Found {
    SameFilled(u32),
    /// Compressed at `start` in the scratch.
    Copied {
        codec: Codec,
        start: usize,
        len: usize,
    },
    WrittenBack(Spilled),
    /// Only in the image, since that eviction generation.
    Absent(EvictionGeneration),
}

/// A page that only the image has, and its eviction generation when that was found.
pub(super) type AbsentPage = (PageIndex, EvictionGeneration);

/// A record to read, as its slot named it.
#[derive(Clone, Copy)]
pub(super) struct Spilled {
    pub(super) slot: Slot,
    pub(super) record: RecordAddress,
    pub(super) len: usize,
    pub(super) codec: Codec,
    /// The number that the record was written under.
    pub(super) sequence: u64,
    pub(super) promote: Promote,
}

/// Whether a page that is read back returns to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promote {
    /// It does not: it was not read for long, and may not be again.
    No,
    /// It was read back or evicted not long ago (a refault, as in the kernel's `mm/workingset.c`). It
    /// does unless a scan reads it.
    OnRefault,
    /// It is asked for, or comes from an image, which is to be emptied.
    Always,
}

impl Spilled {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.slot.same_place(other.slot) && self.sequence == other.sequence
    }

    /// Whether the page's record starts `bytes`.
    pub(super) fn is_in(
        &self,
        page: PageIndex,
        formats: &RecordFormats,
        bytes: &[u8],
        scratch: &mut RecordBuf,
    ) -> bool {
        let format = formats.at(self.record);
        let record = format.open(bytes, scratch, self.record, self.sequence);
        record.is_ok_and(|record| {
            (record.page, record.codec, record.data.len()) == (page, self.codec, self.len)
        })
    }

    /// Where its record is.
    pub(super) fn place(&self, formats: &RecordFormats) -> Place {
        let len = formats.at(self.record).record_len(self.len);
        Place::of(self.record, len, self.sequence)
    }
}

/// A page and the record that its slot named.
pub(super) type SpilledPage = (PageIndex, Spilled);

/// A spilled page that was read back, and what from.
pub(super) struct PageCopy {
    slot: Slot,
    sequence: u64,
    pub(super) page: Page,
}

impl PageCopy {
    /// The page of a slot, whose record was written under that number; or, of an empty slot, from the image
    /// since that eviction generation.
    pub(super) fn new(slot: Slot, sequence: u64, page: Page) -> Self {
        Self {
            slot,
            sequence,
            page,
        }
    }

    /// Whether `slot`, whose record was written under `sequence`, names the record that was read.
    pub(super) fn is_of(&self, slot: Slot, sequence: u64) -> bool {
        self.slot.same_place(slot) && self.sequence == sequence
    }
}
