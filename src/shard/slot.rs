//! Slots: where each page's data is, in 8 bytes a page.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::age::AgeTag;
use super::table_pages::TablePages;
use crate::codec::Codec;
use crate::memory::{FrameBudget, IdlePages, LazyTable, MemorySource, Publish};
use crate::pool::{NoRoom, ObjectAddress};
use crate::spill::RecordAddress;

/// Slots whose use is counted together: a page frame of the table.
pub(crate) const SLOTS_PER_BLOCK: u32 = 512;

/// The index of a slot in its shard, below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SlotIndex(pub(crate) u32);

/// Where a page's data is.
///
/// | bits   | empty | same-filled | resident                      | written back          |
/// |--------|-------|-------------|-------------------------------|-----------------------|
/// | 0..2   | 0     | 1           | 2                             | 3                     |
/// | 2      | 0     | 0           | read since it was stored      | [`ReadBackEpoch`]     |
/// | 3      | 0     | 0           | idle: marked, not read since  | also                  |
/// | 4..6   | 0     | 0           | codec                         | codec                 |
/// | 6      | 0     | 0           | recompression was tried       | 0                     |
/// | 7..19  | 0     | 0           | bytes of the object, less one | bytes, less one       |
/// | 19..23 | 0     | 0           | generation of the last access | also                  |
/// |        |       |             | or, while it is chosen, for   |                       |
/// |        |       |             | what (`selected.rs`)          |                       |
/// | 23..64 | 0     | pattern     | address of the object         | address of the record |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(u64);

/// When a page that is written back was last wanted: 6 bits of a count of epochs, that of its
/// shard (`refault.rs`).
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
const IDLE: u64 = 1 << 3;
const CODEC_SHIFT: u32 = 4;
const CODEC_MASK: u64 = 3;
const TRIED: u64 = 1 << 6;
const LEN_SHIFT: u32 = 7;
const LEN_MASK: u64 = 0xfff;
const AGE_SHIFT: u32 = 19;
const AGE_MASK: u64 = 15;
const PLACE_SHIFT: u32 = 23;
/// What is noted of the use of a page, as opposed to where it is.
const NOTES: u64 = USE | TRIED;
/// What is noted of its last access.
const USE: u64 = ACCESSED | IDLE | AGE_MASK << AGE_SHIFT;

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
            Codec::from_bits(bits).expect("a slot is given a codec when it is stored")
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

    /// Whether the page was read since it was stored.
    pub(crate) fn accessed(self) -> bool {
        self.0 & ACCESSED != 0
    }

    /// The slot after a read of its page.
    pub(crate) fn read_in(self, generation: AgeTag) -> Self {
        Self(self.0 & !USE | ACCESSED).with_age(generation)
    }

    /// The slot of a page that was stored just now.
    pub(crate) fn written_in(self, generation: AgeTag) -> Self {
        Self(self.0 & !NOTES).with_age(generation)
    }

    /// The slot with another generation.
    pub(crate) fn with_age(self, generation: AgeTag) -> Self {
        let Self(rest) = self;
        Self(rest & !(AGE_MASK << AGE_SHIFT) | u64::from(generation.0) << AGE_SHIFT)
    }

    /// The generation of the last access to the page, if it is resident.
    pub(crate) fn age(self) -> Option<AgeTag> {
        let age = (self.0 >> AGE_SHIFT & AGE_MASK) as u8;
        (self.0 & STATE_MASK == RESIDENT).then_some(AgeTag(age))
    }

    /// The slot with its page marked as idle.
    pub(crate) fn marked_idle(self) -> Self {
        Self(self.0 | IDLE)
    }

    /// The slot with its page not marked.
    #[cfg(test)]
    pub(crate) fn without_mark(self) -> Self {
        Self(self.0 & !IDLE)
    }

    /// Whether the page is resident and chosen, to be written back or recompressed.
    pub(crate) fn is_selected(self) -> bool {
        self.age().is_some_and(AgeTag::is_mark)
    }

    /// The slot with recompression tried: there is no point in trying it again.
    pub(crate) fn marked_tried(self) -> Self {
        Self(self.0 | TRIED)
    }

    /// The slot with recompression not tried.
    pub(crate) fn without_tried(self) -> Self {
        match self.0 & STATE_MASK {
            RESIDENT => Self(self.0 & !TRIED),
            _ => self,
        }
    }

    /// Whether the page is resident, and as small as recompression makes it.
    pub(crate) fn is_tried(self) -> bool {
        self.0 & STATE_MASK == RESIDENT && self.0 & TRIED != 0
    }

    /// Whether the page is resident and was stored raw.
    pub(crate) fn is_huge(self) -> bool {
        self.0 & (STATE_MASK | CODEC_MASK << CODEC_SHIFT)
            == RESIDENT | (Codec::Raw as u64) << CODEC_SHIFT
    }

    /// Whether the page was marked as idle, and neither read nor written since.
    pub(crate) fn is_idle(self) -> bool {
        self.0 & STATE_MASK == RESIDENT && self.0 & IDLE != 0
    }

    /// The slot of a page that another one moved to, or was moved from: as old, as idle.
    pub(crate) fn with_notes_of(self, other: Self) -> Self {
        Self(self.0 & !NOTES | other.0 & NOTES)
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
/// They may stand in memory that outlives the process, and then they are all that says what the device holds: what a
/// slot points at is there before the slot says so, and is changed only once it does not any more ([`Publish`]).
///
/// Invariant: `used` counts the slots of each block that are not empty, so that what walks a device
/// passes over what was never written without touching the table's memory, and that the memory of a
/// block goes back once it is empty. A block that is implied there is one of zeroes: each of its slots
/// is same-filled with them.
pub(crate) struct SlotTable {
    slots: LazyTable<AtomicU64>,
    used: TablePages,
}

impl SlotTable {
    /// A table of `len` slots, whose blocks are taken from `budget`.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(
        len: u32,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Ok(Self {
            slots: LazyTable::new_in(len as usize, memory)?,
            used: TablePages::new(len.div_ceil(SLOTS_PER_BLOCK), budget, memory)?,
        })
    }

    fn load(&self, index: SlotIndex) -> Slot {
        Slot(self.slots[index.0 as usize].load(Ordering::Relaxed))
    }

    fn store(&mut self, index: SlotIndex, slot: Slot) {
        self.slots[index.0 as usize].publish(slot.0);
    }

    /// Sees to it that an empty slot can be given data. If it is not, [`SlotTable::abandon`] has to
    /// follow.
    ///
    /// # Errors
    /// Those of [`TablePages::reserve`].
    pub(super) fn reserve(&mut self, index: SlotIndex) -> Result<(), NoRoom> {
        let block = index.0 / SLOTS_PER_BLOCK;
        self.used.reserve(block)?;
        if self.used.is_implied(block) {
            let slots = self.slots_of(block);
            for at in slots.clone() {
                self.store(SlotIndex(at as u32), Slot::same_filled(0));
            }
            self.used.end_implied(block, slots.len() as u32);
        }
        Ok(())
    }

    /// Where the slots of a block are.
    fn slots_of(&self, block: u32) -> Range<usize> {
        let first = (block * SLOTS_PER_BLOCK) as usize;
        first..(first + SLOTS_PER_BLOCK as usize).min(self.slots.len())
    }

    /// Whether a slot is in a block of zeroes.
    pub(super) fn is_in_zeroes(&self, index: SlotIndex) -> bool {
        self.used.is_implied(index.0 / SLOTS_PER_BLOCK)
    }

    /// Says that the block of a slot is about to be made one of zeroes: [`SlotTable::zero_block`] follows.
    pub(super) fn begin_zero_block(&mut self, index: SlotIndex) {
        self.used.begin_imply(index.0 / SLOTS_PER_BLOCK);
    }

    /// Makes the block of a slot, which is empty, one of zeroes; returns its slots.
    pub(super) fn zero_block(&mut self, index: SlotIndex) -> u32 {
        let block = index.0 / SLOTS_PER_BLOCK;
        self.used.imply(block);
        self.slots_of(block).len() as u32
    }

    /// Empties the block of a slot, which is one of zeroes; returns its slots.
    pub(super) fn empty_zeroes(&mut self, index: SlotIndex) -> u32 {
        let block = index.0 / SLOTS_PER_BLOCK;
        self.used.end_implied(block, 0);
        self.slots_of(block).len() as u32
    }

    pub(super) fn abandon(&mut self, index: SlotIndex) {
        self.used.abandon(index.0 / SLOTS_PER_BLOCK);
    }

    pub(super) fn pages(&self) -> &TablePages {
        &self.used
    }

    /// Takes empty blocks out to be released, as [`TablePages::take_out`] does.
    pub(super) fn take_out(&mut self, keep: usize, most: usize) -> IdlePages {
        self.slots.lend_out(self.used.take_out(keep, most))
    }

    /// Takes them back; returns how many the kernel has.
    pub(super) fn take_back(&mut self, idle: IdlePages) -> u64 {
        self.used.take_back(idle)
    }

    pub(crate) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    pub(crate) fn get(&self, index: SlotIndex) -> Slot {
        let slot = self.load(index);
        if slot.is_empty() && self.is_in_zeroes(index) {
            return Slot::same_filled(0);
        }
        slot
    }

    /// Changes a slot, not in a block of zeroes and reserved if it is empty, and returns what it was.
    pub(crate) fn replace(&mut self, index: SlotIndex, slot: Slot) -> Slot {
        let before = self.load(index);
        self.store(index, slot);
        match (before.is_empty(), slot.is_empty()) {
            (true, false) => self.used.add(index.0 / SLOTS_PER_BLOCK),
            (false, true) => self.used.remove(index.0 / SLOTS_PER_BLOCK),
            _ => {}
        }
        before
    }

    /// Notes a read of a resident page.
    pub(crate) fn note_read(&mut self, index: SlotIndex, generation: AgeTag) {
        let slot = self.get(index);
        let read = slot.read_in(generation);
        if read != slot {
            self.store(index, read);
        }
    }

    pub(crate) fn set_read_back_epoch(&mut self, index: SlotIndex, epoch: ReadBackEpoch) {
        let mut slot = self.get(index);
        slot.set_read_back_epoch(epoch);
        self.store(index, slot);
    }

    pub(crate) fn clear_accessed(&mut self, index: SlotIndex) {
        let Slot(slot) = self.load(index);
        self.store(index, Slot(slot & !ACCESSED));
    }

    /// The first slot of `range` that is not empty.
    pub(crate) fn next_used(&self, range: Range<u32>) -> Option<SlotIndex> {
        let mut at = range.start;
        while at < range.end {
            if self.is_in_zeroes(SlotIndex(at)) {
                return Some(SlotIndex(at));
            }
            if self.used.count(at / SLOTS_PER_BLOCK) == 0 {
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

    /// Looks at slots that are not empty, from the start of `range` on, and changes what `change`
    /// changes of each, which is not whether it is empty; returns where to go on. What it does at
    /// once is bounded, since a lock is held.
    pub(crate) fn sweep(
        &mut self,
        range: Range<u32>,
        change: &mut impl FnMut(SlotIndex, Slot) -> Slot,
    ) -> u32 {
        const BLOCKS_AT_ONCE: u32 = 8;
        const SEARCHED_AT_ONCE: u32 = 1024;
        let mut at = range.start;
        let (mut blocks, mut searched) = (0, 0);
        while at < range.end && blocks < BLOCKS_AT_ONCE && searched < SEARCHED_AT_ONCE {
            let block = at / SLOTS_PER_BLOCK;
            let end = ((block + 1) * SLOTS_PER_BLOCK).min(range.end);
            searched += 1;
            if self.used.count(block) > 0 {
                blocks += 1;
                self.sweep_block(at..end, change);
            }
            at = end;
        }
        at
    }

    fn sweep_block(&mut self, range: Range<u32>, change: &mut impl FnMut(SlotIndex, Slot) -> Slot) {
        for index in range.map(SlotIndex) {
            let slot = self.load(index);
            if !slot.is_empty() {
                let changed = change(index, slot);
                debug_assert!(!changed.is_empty());
                if changed != slot {
                    self.store(index, changed);
                }
            }
        }
    }

    /// Makes what is derived of the slots that were found in the memory, and calls `adopt` for each that is not empty;
    /// what it returns takes the slot's place, empty or not. Returns how many are in blocks of zeroes.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn adopt(
        &mut self,
        mut adopt: impl FnMut(SlotIndex, Slot) -> Slot,
    ) -> io::Result<u64> {
        let zeroes = self.used.adopt_implied()?;
        for data in self.slots.data_ranges()? {
            let blocks = data.start as u32..data.end as u32;
            for first in blocks.step_by(SLOTS_PER_BLOCK as usize) {
                let used = self.adopt_block(first / SLOTS_PER_BLOCK, &mut adopt);
                self.used.adopt(first / SLOTS_PER_BLOCK, used);
            }
        }
        Ok(zeroes.map(|block| self.slots_of(block).len() as u64).sum())
    }

    /// Returns how many slots of the block are in use then.
    fn adopt_block(&mut self, block: u32, adopt: &mut impl FnMut(SlotIndex, Slot) -> Slot) -> u32 {
        let mut used = 0;
        for at in self.slots_of(block) {
            let index = SlotIndex(at as u32);
            let slot = self.load(index);
            let now = match slot.is_empty() {
                true => slot,
                // A death came while it was made one of zeroes, or while those were written.
                false if self.used.is_implied(block) => Slot::EMPTY,
                false => adopt(index, slot),
            };
            if now != slot {
                self.store(index, now);
            }
            used += u32::from(!now.is_empty());
        }
        used
    }

    /// Asserts the invariant and returns the number of used slots.
    pub(crate) fn check(&self) -> u64 {
        let written = self.used.check(|block| {
            let slots = &self.slots[self.slots_of(block)];
            let used = |slot: &&AtomicU64| slot.load(Ordering::Relaxed) != 0;
            slots.iter().filter(used).count() as u32
        });
        let blocks = 0..self.len().div_ceil(SLOTS_PER_BLOCK);
        let zeroes = blocks.filter(|&block| self.used.is_implied(block));
        let implied: usize = zeroes.map(|block| self.slots_of(block).len()).sum();
        written + implied as u64
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
            for codec in [Codec::Raw, Codec::Lz4, Codec::Zstd, Codec::Tagged] {
                let object = ObjectAddress(place);
                let new = Slot::resident(object, len, codec).written_in(AgeTag(15));
                let slot = new.marked_idle().read_in(AgeTag(9)).marked_idle();
                assert_eq!(slot.state(), SlotState::Resident { object, len, codec });
                assert!(slot.accessed() && slot.is_idle() && slot.same_place(new));
                assert!(!new.accessed() && !new.is_idle() && !slot.read_in(AgeTag(1)).is_idle());
                assert_eq!((slot.age(), new.age()), (Some(AgeTag(9)), Some(AgeTag(15))));
                assert_eq!(new.with_notes_of(slot), slot);
                assert!(!slot.same_place(Slot::resident(ObjectAddress(0), len, codec)));
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

    fn table(len: u32) -> SlotTable {
        let budget = Arc::new(FrameBudget::new(FrameBudget::UNLIMITED));
        SlotTable::new(len, budget, &MemorySource::Process).expect("addresses")
    }

    fn fill(table: &mut SlotTable, at: u32, slot: Slot) -> Slot {
        table.reserve(SlotIndex(at)).expect("room");
        table.replace(SlotIndex(at), slot)
    }

    #[test]
    fn a_table_finds_its_used_slots() {
        let mut table = table(10_000);
        assert_eq!(table.next_used(0..10_000), None);
        for at in [511, 7000, 9999] {
            assert!(fill(&mut table, at, Slot::same_filled(0)).is_empty());
        }
        assert_eq!(table.next_used(0..10_000), Some(SlotIndex(511)));
        assert_eq!(table.next_used(512..7000), None);
        assert_eq!(table.next_used(512..7001), Some(SlotIndex(7000)));
        table.replace(SlotIndex(7000), Slot::EMPTY);
        assert_eq!(table.next_used(512..10_000), Some(SlotIndex(9999)));
        assert_eq!(table.check(), 2);
    }

    #[test]
    fn a_sweep_meets_every_used_slot_once() {
        const LEN: u32 = 2_000_000;
        let mut table = table(LEN);
        let used: Vec<u32> = (0..LEN).step_by(777).chain([LEN - 1]).collect();
        for &at in &used {
            fill(&mut table, at, Slot::same_filled(at));
        }
        let (mut at, mut met, mut holds) = (700, Vec::new(), 0);
        while at < LEN {
            at = table.sweep(at..LEN, &mut |index, slot| {
                met.push(index.0);
                assert_eq!(slot, Slot::same_filled(index.0));
                Slot::same_filled(1)
            });
            holds += 1;
        }
        assert_eq!(met, used[1..]);
        assert!(holds > 100, "{holds}");
        assert_eq!(table.get(SlotIndex(LEN - 1)), Slot::same_filled(1));
        table.check();
    }
}
