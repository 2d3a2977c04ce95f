//! Where the middle objects of frames lie: that is theirs alone to say, in memory that outlives the process, too.
//!
//! A middle object is moved within its frame, to where it may overlap itself. So it is copied to a spare page first,
//! and a word says where it belongs from there until it is in its new place: a death meanwhile is made good by
//! whoever adopts the memory.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::frame::{CHUNK, CHUNKS, bytes};
use super::start;
use crate::memory::{Arena, LazyTable, MemorySource, Publish};
use crate::pool::ZspageId;
use crate::units::PAGE_SIZE;

/// The places of middle objects.
pub(super) struct Middles {
    /// The chunk that the middle object of a frame starts at, by zspage.
    starts: LazyTable<AtomicU8>,
    /// Not 0 while what is in `spare` belongs in a frame: [`Shift`].
    shift: LazyTable<AtomicU64>,
    spare: LazyTable<u8>,
}

/// Where what is in the spare page belongs.
#[derive(Clone, Copy)]
struct Shift {
    zspage: ZspageId,
    /// In chunks.
    to: u8,
    len: u8,
}

impl Shift {
    fn word(self) -> u64 {
        u64::from(self.zspage.0) << 16 | u64::from(self.to) << 8 | u64::from(self.len)
    }

    /// What a word says that is not 0.
    fn of_word(word: u64) -> Self {
        Self {
            zspage: ZspageId((word >> 16) as u32),
            to: (word >> 8) as u8,
            len: word as u8,
        }
    }

    fn is_within_frame(self) -> bool {
        self.zspage.0 > 0 && u16::from(self.to) + u16::from(self.len) <= u16::from(CHUNKS)
    }
}

impl Middles {
    /// For so many zspages.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn new(zspages: usize, memory: &MemorySource) -> io::Result<Self> {
        Ok(Self {
            starts: LazyTable::new_in(zspages, memory)?,
            shift: LazyTable::new_in(1, memory)?,
            spare: LazyTable::new_in(PAGE_SIZE, memory)?,
        })
    }

    /// The chunk that the middle object of a frame starts at, if it has one.
    pub(super) fn get(&self, zspage: ZspageId) -> u8 {
        self.starts[zspage.0 as usize].load(Ordering::Relaxed)
    }

    /// Notes where the middle object, to which nothing refers yet, starts.
    pub(super) fn set(&mut self, zspage: ZspageId, start: u8) {
        self.starts[zspage.0 as usize].publish(start);
    }

    /// Moves the middle object of a frame.
    pub(super) fn shift(&mut self, arena: &mut Arena, zspage: ZspageId, from: Range<u8>, to: u8) {
        let len = from.end - from.start;
        let from = bytes(from);
        let from = start(zspage) + from.start..start(zspage) + from.end;
        self.spare[..usize::from(len) * CHUNK].copy_from_slice(arena.bytes(from));
        let shift = Shift { zspage, to, len };
        self.shift[0].publish(shift.word());
        self.finish(arena, shift);
    }

    fn finish(&mut self, arena: &mut Arena, Shift { zspage, to, len }: Shift) {
        let place = bytes(to..to + len);
        let place = start(zspage) + place.start..start(zspage) + place.end;
        let moved = &self.spare[..place.len()];
        arena.bytes_mut(place).copy_from_slice(moved);
        self.set(zspage, to);
        self.shift[0].publish(0);
    }

    /// Ends a move that a death has interrupted.
    pub(super) fn adopt(&mut self, arena: &mut Arena) {
        let word = self.shift[0].load(Ordering::Relaxed);
        let shift = Shift::of_word(word);
        let frames = arena.frames_ever_taken();
        if word != 0 && shift.is_within_frame() && shift.zspage.0 as usize <= frames {
            self.finish(arena, shift);
        }
        self.shift[0].publish(0);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    use super::*;
    use crate::memory::{DeviceMemory, FrameBudget, at_crash_points};
    use crate::pool::{FoundObject, Owner, Pool, PoolKind, new};

    fn pool(memory: DeviceMemory) -> Box<dyn Pool> {
        let budget = Arc::new(FrameBudget::new(FrameBudget::UNLIMITED));
        let source = MemorySource::Device(memory);
        new(PoolKind::Z3fold, 100, budget, &source).expect("addresses")
    }

    /// Wherever the process dies while the middle object moves to a place that overlaps its own.
    #[test]
    fn a_middle_object_survives_a_death_while_it_is_moved() {
        let memory = DeviceMemory::new().expect("memory");
        let mut first = pool(memory.clone());
        let data = |owner: u32, chunks: usize| {
            let bytes = 0..chunks * CHUNK;
            bytes
                .map(|at| (at as u32 * 7 + owner) as u8)
                .collect::<Vec<u8>>()
        };
        let store = |pool: &mut Box<dyn Pool>, owner, chunks| {
            let stored = pool
                .store(Owner(owner), &data(owner, chunks))
                .expect("room");
            FoundObject {
                object: stored.object,
                len: chunks * CHUNK,
                owner: Owner(owner),
            }
        };
        let last = store(&mut first, 1, 16);
        let before = store(&mut first, 2, 20);
        let middle = store(&mut first, 3, 20);
        first.free(before.object);
        let found = Rc::new(RefCell::new(Vec::new()));
        let copies = Rc::clone(&found);
        let copy = move || copies.borrow_mut().push(memory.copy());
        at_crash_points(copy, || store(&mut first, 4, 8));
        let found = found.take();
        assert!(found.len() > 4, "{} stores", found.len());
        for (memory, key) in found {
            let memory = DeviceMemory::open(memory, key).expect("memory");
            let mut second = pool(memory);
            second.adopt(&[last, middle]).expect("two objects");
            second.check();
            for FoundObject { object, len, owner } in [last, middle] {
                let expected = data(owner.0, len / CHUNK);
                assert!(second.bytes(object, len) == expected, "{owner:?}");
            }
        }
    }
}
