//! zbud and z3fold: two or three objects share a page frame (`mm/zbud.c`, `mm/z3fold.c`).
//!
//! They pack less than zsmalloc does, since a third of a frame is the least that an object costs,
//! and the less the better pages compress. What one gets for it is that a frame comes free with the
//! one, two or three pages in it: eviction takes those and no others along.
//!
//! An object goes where it leaves least room over. What is called a zspage elsewhere is one frame
//! here, and its number is the frame's, plus one. An object's address is its frame and which of
//! the buddies there it is, so that an object can be moved within its frame without anybody
//! noticing.

mod adopt;
mod frame;
mod middles;

use std::io;
use std::sync::Arc;

use self::frame::{Buddy, CHUNK, CHUNKS, Frame, bytes, chunks};
use self::middles::Middles;
use super::{
    ClassStats, Compacted, FoundObject, Moved, NoRoom, ObjectAddress, Owner, Pool, Stored, ZspageId,
};
use crate::memory::{Arena, ChainLen, FrameBudget, FrameIndex, IdleRuns, LazyTable, MemorySource};
use crate::units::PAGE_SIZE;

/// Lists of frames by their room, and one that stays empty for those without.
const LISTS: usize = CHUNKS as usize + 1;

/// The pool.
///
/// Invariants, proved by [`Pool::check`]:
/// 1. A frame with room that is not isolated is in the list of its room, and no other frame is.
/// 2. `single[c]` is how many of the listed frames have one object, of `c` chunks.
/// 3. `frames` is how many frames have an object or are isolated; they are taken from `budget`.
pub(crate) struct Buddies {
    arena: Arena,
    budget: Arc<FrameBudget>,
    /// By zspage: the first is no frame's, so that 0 ends a list.
    table: LazyTable<Frame>,
    middles: Middles,
    /// Heads of the lists.
    heads: [u32; LISTS],
    single: [u64; LISTS],
    /// Most objects of a frame.
    buddies: usize,
    frames: u64,
}

impl Buddies {
    /// An empty pool of frames with two objects.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn zbud(
        address_frames: usize,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Self::new(2, address_frames, budget, memory)
    }

    /// An empty pool of frames with three objects.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn z3fold(
        address_frames: usize,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Self::new(3, address_frames, budget, memory)
    }

    fn new(
        buddies: usize,
        address_frames: usize,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Ok(Self {
            arena: Arena::new(address_frames, memory)?,
            budget,
            table: LazyTable::new(address_frames + 1)?,
            middles: Middles::new(address_frames + 1, memory)?,
            heads: [0; LISTS],
            single: [0; LISTS],
            buddies,
            frames: 0,
        })
    }

    /// A frame with room for `chunks` more, the fullest there is, taken out of its list.
    fn frame_with_room(&mut self, chunks: u8) -> Option<ZspageId> {
        let heads = &self.heads[usize::from(chunks)..];
        let id = heads.iter().copied().find(|&id| id != 0).map(ZspageId)?;
        self.unlist(id);
        Some(id)
    }

    /// An empty frame, in no list.
    fn create_frame(&mut self) -> Result<ZspageId, NoRoom> {
        if !self.budget.try_take(1) {
            return Err(NoRoom::OverLimit);
        }
        let one = ChainLen::new(1);
        let held = self.arena.take_held(one);
        let Some(frame) = held.or_else(|| self.arena.take_untouched(one)) else {
            self.budget.give_back(1);
            return Err(NoRoom::NoMemory);
        };
        let id = ZspageId(frame.0 + 1);
        *self.frame_mut(id) = Frame::EMPTY;
        self.frames += 1;
        Ok(id)
    }

    /// Frees a frame that is empty and in no list.
    fn free_frame(&mut self, id: ZspageId) {
        self.arena.give_back(FrameIndex(id.0 - 1), ChainLen::new(1));
        self.budget.give_back(1);
        self.frames -= 1;
    }

    /// Stores data in a frame with room for it, and lists that by what it has left.
    fn store_in(&mut self, id: ZspageId, owner: Owner, data: &[u8]) -> ObjectAddress {
        let Self {
            table,
            arena,
            middles,
            ..
        } = self;
        let frame = &mut table[id.0 as usize];
        let buddy = frame.take(owner, chunks(data.len()), |from, to| {
            middles.shift(arena, id, from, to);
        });
        if buddy == Buddy::Middle {
            middles.set(id, frame.place(buddy).start);
        }
        let object = address(id, buddy);
        let at = self.start_of(object);
        self.arena
            .bytes_mut(at..at + data.len())
            .copy_from_slice(data);
        self.list(id);
        object
    }

    /// Puts a frame that is in no list in the one where it belongs, if it belongs in any.
    fn list(&mut self, id: ZspageId) {
        let frame = *self.frame(id);
        let room = frame.room(self.buddies);
        if room == 0 || frame.isolated {
            return;
        }
        let head = std::mem::replace(&mut self.heads[usize::from(room)], id.0);
        let frame = self.frame_mut(id);
        (frame.listed, frame.prev, frame.next) = (room, 0, head);
        let single = frame.objects() == 1;
        if head != 0 {
            self.frame_mut(ZspageId(head)).prev = id.0;
        }
        self.single[usize::from(CHUNKS - room)] += u64::from(single);
    }

    /// Takes a frame out of the list that it is in, if it is in one; its objects are those with
    /// which it was listed.
    fn unlist(&mut self, id: ZspageId) {
        let frame = *self.frame(id);
        let room = std::mem::take(&mut self.frame_mut(id).listed);
        if room == 0 {
            return;
        }
        match frame.prev {
            0 => self.heads[usize::from(room)] = frame.next,
            prev => self.frame_mut(ZspageId(prev)).next = frame.next,
        }
        if frame.next != 0 {
            self.frame_mut(ZspageId(frame.next)).prev = frame.prev;
        }
        self.single[usize::from(CHUNKS - room)] -= u64::from(frame.objects() == 1);
    }

    fn frame(&self, id: ZspageId) -> &Frame {
        &self.table[id.0 as usize]
    }

    fn frame_mut(&mut self, id: ZspageId) -> &mut Frame {
        &mut self.table[id.0 as usize]
    }

    /// The first byte of an object in the arena.
    fn start_of(&self, object: ObjectAddress) -> usize {
        let (id, buddy) = parts(object);
        start(id) + bytes(self.frame(id).place(buddy)).start
    }

    /// The frames in a list.
    fn in_list(&self, room: usize) -> impl Iterator<Item = ZspageId> {
        let mut at = self.heads[room];
        std::iter::from_fn(move || {
            let id = (at != 0).then_some(ZspageId(at))?;
            at = self.frame(id).next;
            Some(id)
        })
    }
}

impl Pool for Buddies {
    fn max_zspages(&self) -> usize {
        self.table.len()
    }

    fn max_compressed_len(&self) -> usize {
        PAGE_SIZE - CHUNK
    }

    fn object_size(&self, len: usize) -> usize {
        usize::from(chunks(len)) * CHUNK
    }

    fn store(&mut self, owner: Owner, data: &[u8]) -> Result<Stored, NoRoom> {
        assert!(owner.0 < 1 << 31 && !data.is_empty());
        let zspage = match self.frame_with_room(chunks(data.len())) {
            Some(frame) => frame,
            None => self.create_frame()?,
        };
        let object = self.store_in(zspage, owner, data);
        Ok(Stored { object, zspage })
    }

    fn bytes(&self, object: ObjectAddress, len: usize) -> &[u8] {
        let at = self.start_of(object);
        self.arena.bytes(at..at + len)
    }

    fn prefetch(&self, object: ObjectAddress, len: usize) {
        let at = self.start_of(object);
        self.arena.prefetch(at..at + len);
    }

    fn free(&mut self, object: ObjectAddress) -> Option<ZspageId> {
        let (id, buddy) = parts(object);
        self.unlist(id);
        let frame = self.frame_mut(id);
        frame.give_back(buddy);
        if frame.objects() == 0 && !frame.isolated {
            self.free_frame(id);
            return Some(id);
        }
        self.list(id);
        None
    }

    fn isolate(&mut self, zspage: ZspageId) -> u64 {
        self.unlist(zspage);
        self.frame_mut(zspage).isolated = true;
        1
    }

    fn put_back(&mut self, zspage: ZspageId) -> bool {
        let frame = self.frame_mut(zspage);
        debug_assert!(frame.isolated);
        frame.isolated = false;
        if frame.objects() == 0 {
            self.free_frame(zspage);
            return true;
        }
        self.list(zspage);
        false
    }

    fn objects(&self, zspage: ZspageId, visit: &mut dyn FnMut(ObjectAddress, Owner)) {
        let frame = self.frame(zspage);
        for buddy in Buddy::ALL {
            if frame.is_used(buddy) {
                visit(address(zspage, buddy), frame.owner(buddy));
            }
        }
    }

    /// Has the smallest of the objects that are alone in their frames join the one that it fits
    /// best.
    fn compact(&mut self, moved: Moved<'_>) -> Option<Compacted> {
        let room = (1..LISTS)
            .rev()
            .find(|&room| self.single[LISTS - 1 - room] > 0)?;
        let from = self
            .in_list(room)
            .find(|&id| self.frame(id).objects() == 1)?;
        self.unlist(from);
        let len = CHUNKS - room as u8;
        let Some(to) = self.frame_with_room(len) else {
            self.list(from);
            return None;
        };
        let frame = self.frame(from);
        let buddy = Buddy::ALL.into_iter().find(|&buddy| frame.is_used(buddy))?;
        let (object, owner) = (address(from, buddy), frame.owner(buddy));
        let mut data = [0; PAGE_SIZE];
        let data = &mut data[..usize::from(len) * CHUNK];
        data.copy_from_slice(self.bytes(object, data.len()));
        let target = self.store_in(to, owner, data);
        moved(owner, object, target);
        self.frame_mut(from).give_back(buddy);
        self.free_frame(from);
        Some(Compacted {
            zspage: from,
            into: vec![to],
            frames: 1,
        })
    }

    fn frames_in_use(&self) -> u64 {
        self.frames
    }

    /// Objects that are alone in their frames and fit another such frame.
    fn frames_freeable(&self) -> u64 {
        let mut single = self.single;
        let (mut small, mut large, mut pairs) = (1, LISTS - 1, 0);
        while small <= large {
            if single[small] == 0 {
                small += 1;
            } else if small + large > CHUNKS.into() || single[large] == 0 {
                large -= 1;
            } else if small == large {
                return pairs + single[small] / 2;
            } else {
                let some = single[small].min(single[large]);
                single[small] -= some;
                single[large] -= some;
                pairs += some;
            }
        }
        pairs
    }

    fn warm_frames(&self) -> usize {
        self.arena.warm_frames()
    }

    fn take_idle(&mut self, keep: usize) -> IdleRuns {
        self.arena.take_warm(keep)
    }

    fn accept_idle(&mut self, idle: IdleRuns) {
        self.arena.accept(idle);
    }

    /// There are no classes.
    fn class_stats(&self) -> Vec<ClassStats> {
        Vec::new()
    }

    fn adopt(&mut self, objects: &[FoundObject]) -> io::Result<Vec<ZspageId>> {
        self.adopt_objects(objects)
    }

    fn check(&self) {
        let mut single = [0; LISTS];
        for room in 1..LISTS {
            let mut prev = 0;
            for id in self.in_list(room) {
                let frame = self.frame(id);
                assert_eq!((frame.prev, usize::from(frame.listed)), (prev, room));
                single[LISTS - 1 - room] += u64::from(frame.objects() == 1);
                prev = id.0;
            }
        }
        assert_eq!((single, self.heads[0]), (self.single, 0));
        let mut frames = 0;
        for frame in &self.table[1..=self.arena.frames_ever_taken()] {
            frame.check(self.buddies);
            let in_use = frame.objects() > 0 || frame.isolated;
            frames += u64::from(in_use);
            let listed = if frame.isolated || !in_use {
                0
            } else {
                frame.room(self.buddies)
            };
            assert_eq!(frame.listed, listed);
        }
        assert_eq!(frames, self.frames);
        self.arena.check_accounting(frames as usize);
    }
}

fn address(ZspageId(id): ZspageId, buddy: Buddy) -> ObjectAddress {
    ObjectAddress(u64::from(id) << 2 | buddy as u64)
}

/// The frame and the buddy of an address.
fn parts(ObjectAddress(address): ObjectAddress) -> (ZspageId, Buddy) {
    (
        ZspageId((address >> 2) as u32),
        Buddy::ALL[(address & 3) as usize],
    )
}

/// The first byte of a frame in the arena.
fn start(ZspageId(id): ZspageId) -> usize {
    (id as usize - 1) * PAGE_SIZE
}
