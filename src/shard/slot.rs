//! Slots: where each page's data is, in 8 bytes a page.

use std::io;
use std::ops::Range;

use crate::codec::Codec;
use crate::memory::LazyTable;
use crate::pool::ObjectAddress;
use crate::spill::RecordAddress;

/// Slots whose use is counted together: a page frame of the table.
pub(crate) const SLOTS_PER_BLOCK: u32 = 512;

/// The index of a slot in its shard, below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotIndex(pub(crate) u32);

/// Where a page's data is.
///
/// | bits   | empty | same-filled | resident, written back                |
/// |--------|-------|-------------|---------------------------------------|
/// | 0..2   | 0     | 1           | 2, 3                                  |
/// | 2      | 0     | 0           | accessed since it was stored          |
/// | 4..7   | 0     | 0           | codec                                 |
/// | 7..19  | 0     | 0           | bytes of the object, less one         |
/// | 23..64 | 0     | pattern     | address of the object, of the record  |
///
/// Of a page that is written back, bits 2, 3 and 19..23 are its [`ReadBackEpoch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u64);

/// When a page that is written back was last wanted: 6 bits of a count of epochs, that of its
/// shard (`recent.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReadBackEpoch(u8);

impl ReadBackEpoch {
    const BITS: u32 = 6;

    /// The epoch of a count that goes on for ever.
    pub(crate) fn new(epoch: u64) -> Self {
        Self((epoch % (1 << Self::BITS)) as u8)
    }

    /// Epochs from an earlier one to this one, if that was less than a round of them ago.
    pub(crate) fn since(self, earlier: Self) -> u8 {
        self.0.wrapping_sub(earlier.0) % (1 << Self::BITS)
    }
}

/// A [`Slot`], taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    Empty,
    SameFilled {
        pattern: u32,
    },
    Resident {
        object: ObjectAddress,
        len: usize,
        codec: Codec,
    },
    WrittenBack {
        record: RecordAddress,
        len: usize,
        codec: Codec,
    },
}

const SAME_FILLED: u64 = 1;
const RESIDENT: u64 = 2;
const WRITTEN_BACK: u64 = 3;
const STATE_MASK: u64 = 3;
const ACCESSED: u64 = 1 << 2;
const CODEC_SHIFT: u32 = 4;
const CODEC_MASK: u64 = 7;
const LEN_SHIFT: u32 = 7;
const LEN_MASK: u64 = 0xfff;
const PLACE_SHIFT: u32 = 23;
/// What is noted of the use of a page, as opposed to where it is.
const NOTES: u64 = 0b11 << 2 | 0b1111 << 19;

impl Slot {
    pub(crate) const EMPTY: Self = Self(0);

    pub(crate) fn same_filled(pattern: u32) -> Self {
        Self(SAME_FILLED | u64::from(pattern) << PLACE_SHIFT)
    }

    pub(crate) fn resident(object: ObjectAddress, len: usize, codec: Codec) -> Self {
        Self::stored(RESIDENT, object.0, len, codec)
    }

    pub(crate) fn written_back(record: RecordAddress, len: usize, codec: Codec) -> Self {
        Self::stored(WRITTEN_BACK, record.0, len, codec)
    }

    fn stored(state: u64, place: u64, len: usize, codec: Codec) -> Self {
        debug_assert!(place < 1 << (64 - PLACE_SHIFT) && (1..=4096).contains(&len));
        let len = (len as u64 - 1) << LEN_SHIFT;
        Self(state | (codec as u64) << CODEC_SHIFT | len | place << PLACE_SHIFT)
    }

    pub(crate) fn state(self) -> SlotState {
        let place = self.0 >> PLACE_SHIFT;
        let len = (self.0 >> LEN_SHIFT & LEN_MASK) as usize + 1;
        let codec = || {
            let bits = (self.0 >> CODEC_SHIFT & CODEC_MASK) as u8;
            Codec::from_bits(bits).expect("a slot's codec was written by `Slot::stored`")
        };
        match self.0 & STATE_MASK {
            SAME_FILLED => SlotState::SameFilled {
                pattern: place as u32,
            },
            RESIDENT => SlotState::Resident {
                object: ObjectAddress(place),
                len,
                codec: codec(),
            },
            WRITTEN_BACK => SlotState::WrittenBack {
                record: RecordAddress(place),
                len,
                codec: codec(),
            },
            _ => SlotState::Empty,
        }
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::EMPTY
    }

    /// Whether the object was read since it was stored.
    pub(crate) fn accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }

    pub(crate) fn set_accessed(&mut self) {
        self.0 |= ACCESSED;
    }

    /// Whether both are the same but for what is noted of the page's use.
    pub(crate) fn same_place(self, other: Self) -> bool {
        (self.0 ^ other.0) & !NOTES == 0
    }

    /// When the page, which is written back, was last wanted.
    pub(crate) fn read_back_epoch(self) -> ReadBackEpoch {
        ReadBackEpoch((self.0 >> 2 & 0b11 | (self.0 >> 19 & 0b1111) << 2) as u8)
    }

    /// Notes when the page, which is written back, was wanted.
    pub(crate) fn set_read_back_epoch(&mut self, ReadBackEpoch(epoch): ReadBackEpoch) {
        let epoch = u64::from(epoch);
        self.0 = self.0 & !NOTES | (epoch & 0b11) << 2 | (epoch >> 2) << 19;
    }
}

/// The slots of a shard, all empty at first.
///
/// Invariant: `used[b]` is the number of slots in block `b` that are not empty, so that what walks
/// a device passes over what was never written without touching the table's memory.
pub(crate) struct SlotTable {
    slots: LazyTable<u64>,
    used: LazyTable<u32>,
}

impl SlotTable {
    /// A table of `len` slots.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(len: u32) -> io::Result<Self> {
        let blocks = len.div_ceil(SLOTS_PER_BLOCK);
        Ok(Self {
            slots: LazyTable::new(len as usize)?,
            used: LazyTable::new(blocks as usize)?,
        })
    }

    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn get(&self, index: SlotIndex) -> Slot {
        Slot(self.slots[index.0 as usize])
    }

    /// Changes a slot and returns what it was.
    pub(crate) fn replace(&mut self, index: SlotIndex, slot: Slot) -> Slot {
        let before = Slot(std::mem::replace(&mut self.slots[index.0 as usize], slot.0));
        let used = &mut self.used[(index.0 / SLOTS_PER_BLOCK) as usize];
        *used = *used + u32::from(!slot.is_empty()) - u32::from(!before.is_empty());
        before
    }

    pub(crate) fn set_accessed(&mut self, index: SlotIndex) {
        let mut slot = self.get(index);
        if !slot.accessed() {
            slot.set_accessed();
            self.slots[index.0 as usize] = slot.0;
        }
    }

    pub(crate) fn set_read_back_epoch(&mut self, index: SlotIndex, epoch: ReadBackEpoch) {
        let mut slot = self.get(index);
        slot.set_read_back_epoch(epoch);
        self.slots[index.0 as usize] = slot.0;
    }

    pub(crate) fn clear_accessed(&mut self, index: SlotIndex) {
        self.slots[index.0 as usize] &= !ACCESSED;
    }

    /// The first slot of `range` that is not empty.
    pub(crate) fn next_used(&self, range: Range<u32>) -> Option<SlotIndex> {
        let mut at = range.start;
        while at < range.end {
            if self.used[(at / SLOTS_PER_BLOCK) as usize] == 0 {
                at = (at / SLOTS_PER_BLOCK + 1) * SLOTS_PER_BLOCK;
                continue;
            }
            let index = SlotIndex(at);
            if !self.get(index).is_empty() {
                return Some(index);
            }
            at += 1;
        }
        None
    }

    /// Asserts the invariant and returns the number of used slots.
    pub(crate) fn check(&self) -> u64 {
        let mut total = 0;
        // A table of billions of slots is not read whole: most of it was never touched.
        let sparse = self.slots.len() > 1 << 24;
        for (block, &used) in self.used.iter().enumerate() {
            if sparse && used == 0 {
                continue;
            }
            let first = block * SLOTS_PER_BLOCK as usize;
            let end = (first + SLOTS_PER_BLOCK as usize).min(self.slots.len());
            let counted = self.slots[first..end]
                .iter()
                .filter(|&&slot| slot != 0)
                .count();
            assert_eq!(used as usize, counted, "block {block}");
            total += u64::from(used);
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_holds_what_it_was_made_of() {
        assert_eq!(Slot::EMPTY.state(), SlotState::Empty);
        let pattern = 0xdead_beef;
        assert_eq!(
            Slot::same_filled(pattern).state(),
            SlotState::SameFilled { pattern }
        );
        let place = (1 << 41) - 1;
        for len in [1, 4096] {
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd] {
                let object = ObjectAddress(place);
                let mut slot = Slot::resident(object, len, codec);
                slot.set_accessed();
                assert_eq!(slot.state(), SlotState::Resident { object, len, codec });
                assert!(slot.accessed() && slot.same_place(Slot::resident(object, len, codec)));
                let record = RecordAddress(place - 1);
                let mut slot = Slot::written_back(record, len, codec);
                for epoch in (0..200).map(ReadBackEpoch::new) {
                    slot.set_read_back_epoch(epoch);
                    assert_eq!(slot.state(), SlotState::WrittenBack { record, len, codec });
                    assert_eq!(slot.read_back_epoch(), epoch);
                    assert!(slot.same_place(Slot::written_back(record, len, codec)));
                }
            }
        }
    }

    #[test]
    fn a_table_finds_its_used_slots() {
        let mut table = SlotTable::new(10_000).expect("addresses");
        assert_eq!(table.next_used(0..10_000), None);
        for at in [511, 7000, 9999] {
            assert!(
                table
                    .replace(SlotIndex(at), Slot::same_filled(0))
                    .is_empty()
            );
        }
        assert_eq!(table.next_used(0..10_000), Some(SlotIndex(511)));
        assert_eq!(table.next_used(512..7000), None);
        assert_eq!(table.next_used(512..7001), Some(SlotIndex(7000)));
        table.replace(SlotIndex(7000), Slot::EMPTY);
        assert_eq!(table.next_used(512..10_000), Some(SlotIndex(9999)));
        assert_eq!(table.check(), 2);
    }
}
