//! zsmalloc: objects of one size class share zspages of 1 to 8 page frames (`mm/zsmalloc.c`).
//!
//! An object is a header of 4 bytes, which names its owner while it is in use and links the free
//! list while it is not, and its data. New objects go to the fullest zspage that has room, which
//! keeps the sparse ones sparse for compaction. A zspage's frames have consecutive addresses, so
//! an object that straddles two of them is still one slice, and an [`ObjectAddress`] leads to its
//! bytes without looking at any descriptor.
//!
//! A zspage of untouched frames grows: it holds only those that its objects lie in so far. Else
//! each class of each shard would hold half a zspage of nothing.

mod adopt;
mod check;
mod class;
mod zspage;

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;

use self::class::{Class, ClassIndex, GEOMETRY, HEADER_LEN};
use self::zspage::{ISOLATED, Lists, ZspageTable};
use super::{
    Compacted, FoundObject, Moved, NoRoom, OBJECT_ALIGN, ObjectAddress, Owner, Pool, Stored,
    ZspageId,
};
use crate::memory::{Arena, FrameBudget, FrameIndex, IdleRuns, LazyTable, MemorySource};
use crate::units::PAGE_SIZE;

/// Header bit of an object in use (`OBJ_ALLOCATED_TAG`).
const IN_USE: u32 = 1;

/// Usage of one size class, as in the kernel's `/sys/kernel/debug/zsmalloc/*/classes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes of an object, its header included.
    pub size: u64,
    /// Objects there is room for.
    pub objects: u64,
    /// Objects in use.
    pub objects_used: u64,
    /// Page frames held.
    pub frames: u64,
    /// Page frames in a zspage.
    pub frames_per_zspage: u64,
    /// Page frames that compaction could free.
    pub frames_freeable: u64,
}

/// What a pool keeps for each class.
#[derive(Clone, Default)]
struct ClassUse {
    lists: Lists,
    zspages: u64,
    objects: u64,
    frames: u64,
}

impl ClassUse {
    /// Frames that its objects do not need.
    fn freeable_frames(&self, class: Class) -> u64 {
        self.frames - class.fewest_frames(self.objects)
    }
}

/// Page frames at most, beyond one for each object, that a pool holds once compaction finds nothing to do:
/// what is free in each class is less than a zspage.
pub(super) fn most_waste() -> u64 {
    let chains = GEOMETRY
        .classes()
        .iter()
        .map(|class| class.chain.frames() as u64);
    chains.sum()
}

/// The pool.
///
/// Invariants, proved by [`Pool::check`]:
/// 1. For each class, `objects` is the sum of its zspages' objects in use, and `frames` of the
///    frames they hold, isolated ones included.
/// 2. `frames` is the sum of the frames of all classes, and is taken from `budget`.
/// 3. `zspage_of` names, for each frame that is held, the zspage it is in.
pub(crate) struct Zsmalloc {
    arena: Arena,
    budget: Arc<FrameBudget>,
    zspages: ZspageTable,
    zspage_of: LazyTable<u32>,
    classes: Vec<ClassUse>,
    frames: u64,
}

impl Zsmalloc {
    /// An empty pool with addresses for `address_frames` frames, fewer than 2^32.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(
        address_frames: usize,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Ok(Self {
            arena: Arena::new(address_frames, memory)?,
            budget,
            zspages: ZspageTable::new(address_frames)?,
            zspage_of: LazyTable::new(address_frames)?,
            classes: vec![ClassUse::default(); GEOMETRY.classes().len()],
            frames: 0,
        })
    }

    /// A zspage of the class with memory for a free object: the fullest.
    fn zspage_with_room(&mut self, index: ClassIndex) -> Option<ZspageId> {
        let lists = &self.classes[usize::from(index.0)].lists;
        let fullest = lists.fullest()?;
        let class = GEOMETRY.class(index);
        if !self.zspages.get(fullest).must_grow(class) {
            return Some(fullest);
        }
        if self.budget.try_take(1) {
            self.hold(fullest, 1);
            return Some(fullest);
        }
        self.zspages.fullest_with_memory(lists, class)
    }

    /// A new zspage, in no list, with memory for an object.
    fn create_zspage(&mut self, index: ClassIndex) -> Result<ZspageId, NoRoom> {
        let chain = GEOMETRY.class(index).chain;
        // Only what is there is asked of the budget: others may be after its last frames.
        if self.arena.has_held(chain) && self.budget.try_take(chain.frames() as u64) {
            if let Some(first) = self.arena.take_held(chain) {
                let id = self.add_zspage(index, first);
                self.hold(id, chain.frames());
                return Ok(id);
            }
            self.budget.give_back(chain.frames() as u64);
        }
        self.create_untouched(index, 1)
    }

    /// A new zspage, in no list, that holds the first `frames` frames of an untouched run.
    fn create_untouched(&mut self, index: ClassIndex, frames: usize) -> Result<ZspageId, NoRoom> {
        if !self.budget.try_take(frames as u64) {
            return Err(NoRoom::OverLimit);
        }
        let Some(first) = self.arena.take_untouched(GEOMETRY.class(index).chain) else {
            self.budget.give_back(frames as u64);
            return Err(NoRoom::NoMemory);
        };
        let id = self.add_zspage(index, first);
        self.hold(id, frames);
        Ok(id)
    }

    fn add_zspage(&mut self, index: ClassIndex, first: FrameIndex) -> ZspageId {
        self.classes[usize::from(index.0)].zspages += 1;
        self.zspages.create(index, first)
    }

    /// Adds frames, which are taken from the budget, to what a zspage holds.
    fn hold(&mut self, id: ZspageId, frames: usize) {
        let zspage = self.zspages.get_mut(id);
        let start = zspage.first_frame().0 as usize + usize::from(zspage.held);
        zspage.held += frames as u8;
        let index = zspage.class();
        self.zspage_of[start..start + frames].fill(id.0);
        self.classes[usize::from(index.0)].frames += frames as u64;
        self.frames += frames as u64;
    }

    /// Frees an empty zspage, which may stand in a list.
    fn free_zspage(&mut self, id: ZspageId) {
        let zspage = self.zspages.get(id);
        let (index, first) = (zspage.class(), zspage.first_frame());
        let held = u64::from(zspage.held);
        let class = &mut self.classes[usize::from(index.0)];
        self.zspages.detach(&mut class.lists, id);
        self.zspages.remove(id);
        class.zspages -= 1;
        class.frames -= held;
        self.frames -= held;
        self.arena.give_back(first, GEOMETRY.class(index).chain);
        self.budget.give_back(held);
    }

    /// Takes a free object of `id`, which has memory for one, and writes its owner; the zspage is
    /// left in the list it was in.
    fn take_object(&mut self, id: ZspageId, owner: Owner) -> ObjectAddress {
        let zspage = self.zspages.get_mut(id);
        let index = zspage.class();
        let reused = zspage.in_use < zspage.carved;
        let nth = if reused {
            zspage.free_head
        } else {
            zspage.carved
        };
        zspage.carved += u16::from(!reused);
        zspage.in_use += 1;
        if index == GEOMETRY.huge() {
            zspage.huge_owner = owner.0;
        }
        let object = address(zspage.first_frame(), GEOMETRY.class(index), nth);
        if index != GEOMETRY.huge() {
            if reused {
                let next = self.header(object);
                self.zspages.get_mut(id).free_head = (next >> 1) as u16;
            }
            self.set_header(object, owner.0 << 1 | IN_USE);
        }
        self.classes[usize::from(index.0)].objects += 1;
        object
    }

    /// Gives an object back to its zspage, which is left in the list it was in.
    fn give_back_object(&mut self, id: ZspageId, object: ObjectAddress) {
        let zspage = self.zspages.get_mut(id);
        let index = zspage.class();
        let nth = nth(zspage.first_frame(), GEOMETRY.class(index), object);
        let next = zspage.free_head;
        zspage.free_head = nth;
        zspage.in_use -= 1;
        if index != GEOMETRY.huge() {
            debug_assert_eq!(
                self.header(object) & IN_USE,
                IN_USE,
                "{object:?} freed twice"
            );
            self.set_header(object, u32::from(next) << 1);
        }
        self.classes[usize::from(index.0)].objects -= 1;
    }

    /// Frames that the objects of each class do not need.
    fn freeable(&self) -> impl Iterator<Item = u64> {
        let classes = GEOMETRY.classes().iter().zip(&self.classes);
        classes.map(|(class, class_use)| class_use.freeable_frames(*class))
    }

    /// Moves a zspage to the list its usage calls for.
    fn restand(&mut self, id: ZspageId) {
        let index = self.zspages.get(id).class();
        let lists = &mut self.classes[usize::from(index.0)].lists;
        self.zspages.restand(lists, id, GEOMETRY.class(index));
    }

    fn zspage_of(&self, object: ObjectAddress) -> ZspageId {
        ZspageId(self.zspage_of[byte(object) / PAGE_SIZE])
    }

    fn header(&self, object: ObjectAddress) -> u32 {
        let at = byte(object);
        let bytes = self.arena.bytes(at..at + HEADER_LEN);
        u32::from_ne_bytes(bytes.try_into().expect("HEADER_LEN bytes"))
    }

    fn set_header(&mut self, object: ObjectAddress, header: u32) {
        let at = byte(object);
        self.arena
            .bytes_mut(at..at + HEADER_LEN)
            .copy_from_slice(&header.to_ne_bytes());
    }

    /// Empties the emptiest zspage of a class into fuller ones, or into a new one that holds fewer
    /// frames, and frees it; returns it and those. `None` if that is not possible.
    fn compact_class(
        &mut self,
        index: ClassIndex,
        moved: Moved<'_>,
    ) -> Option<(ZspageId, Vec<ZspageId>)> {
        let class_use = &mut self.classes[usize::from(index.0)];
        let from = class_use.lists.emptiest()?;
        // Out of its list, so that its own free objects are not taken for the target's.
        self.zspages.detach(&mut class_use.lists, from);
        let mut objects = Vec::with_capacity(usize::from(self.zspages.get(from).in_use));
        self.objects(from, &mut |object, owner| objects.push((object, owner)));
        let mut left = objects.into_iter().peekable();
        let mut into = Vec::new();
        while left.peek().is_some()
            && let Some(to) = self.zspage_with_room(index)
            && let Some((object, owner)) = left.next()
        {
            self.move_object(from, object, owner, to, moved);
            self.restand(to);
            if into.last() != Some(&to) {
                into.push(to);
            }
        }
        if left.peek().is_some() {
            let zspage = self.zspages.get(from);
            let frames = GEOMETRY.class(index).frames_of(zspage.in_use);
            let saves = frames < usize::from(zspage.held);
            let Some(to) = saves
                .then(|| self.create_untouched(index, frames).ok())
                .flatten()
            else {
                self.restand(from);
                return None;
            };
            for (object, owner) in left {
                self.move_object(from, object, owner, to, moved);
            }
            self.restand(to);
            into.push(to);
        }
        self.free_zspage(from);
        Some((from, into))
    }

    /// Moves an object to a zspage with memory for it; neither zspage changes lists.
    fn move_object(
        &mut self,
        from: ZspageId,
        object: ObjectAddress,
        owner: Owner,
        to: ZspageId,
        moved: Moved<'_>,
    ) {
        let len = GEOMETRY.class(self.zspages.get(from).class()).size - HEADER_LEN;
        let target = self.take_object(to, owner);
        self.arena
            .copy(byte(object) + HEADER_LEN, byte(target) + HEADER_LEN, len);
        moved(owner, object, target);
        self.give_back_object(from, object);
    }
}

impl Pool for Zsmalloc {
    fn max_zspages(&self) -> usize {
        self.zspage_of.len()
    }

    fn max_compressed_len(&self) -> usize {
        GEOMETRY.max_len()
    }

    fn object_size(&self, len: usize) -> usize {
        GEOMETRY.class(GEOMETRY.class_for(len)).size
    }

    fn store(&mut self, owner: Owner, data: &[u8]) -> Result<Stored, NoRoom> {
        assert!(owner.0 < 1 << 31 && !data.is_empty());
        let index = GEOMETRY.class_for(data.len());
        let zspage = match self.zspage_with_room(index) {
            Some(zspage) => zspage,
            None => self.create_zspage(index)?,
        };
        let object = self.take_object(zspage, owner);
        self.restand(zspage);
        let at = self::data(object, data.len());
        self.arena
            .bytes_mut(at..at + data.len())
            .copy_from_slice(data);
        Ok(Stored { object, zspage })
    }

    fn bytes(&self, object: ObjectAddress, len: usize) -> &[u8] {
        let at = data(object, len);
        self.arena.bytes(at..at + len)
    }

    fn prefetch(&self, object: ObjectAddress, len: usize) {
        let at = data(object, len);
        self.arena.prefetch(at..at + len);
    }

    fn free(&mut self, object: ObjectAddress) -> Option<ZspageId> {
        let id = self.zspage_of(object);
        self.give_back_object(id, object);
        let zspage = self.zspages.get(id);
        if zspage.in_use == 0 && zspage.standing() != ISOLATED {
            self.free_zspage(id);
            return Some(id);
        }
        self.restand(id);
        None
    }

    fn isolate(&mut self, zspage: ZspageId) -> u64 {
        let index = self.zspages.get(zspage).class();
        self.zspages
            .isolate(&mut self.classes[usize::from(index.0)].lists, zspage);
        u64::from(self.zspages.get(zspage).held)
    }

    fn put_back(&mut self, zspage: ZspageId) -> bool {
        let index = self.zspages.get(zspage).class();
        debug_assert_eq!(self.zspages.get(zspage).standing(), ISOLATED);
        self.zspages
            .detach(&mut self.classes[usize::from(index.0)].lists, zspage);
        if self.zspages.get(zspage).in_use == 0 {
            self.free_zspage(zspage);
            return true;
        }
        self.restand(zspage);
        false
    }

    fn objects(&self, id: ZspageId, visit: &mut dyn FnMut(ObjectAddress, Owner)) {
        let zspage = self.zspages.get(id);
        let class = GEOMETRY.class(zspage.class());
        for nth in 0..zspage.carved {
            let object = address(zspage.first_frame(), class, nth);
            if zspage.class() == GEOMETRY.huge() {
                if zspage.in_use == 1 {
                    visit(object, Owner(zspage.huge_owner));
                }
                continue;
            }
            let header = self.header(object);
            if header & IN_USE != 0 {
                visit(object, Owner(header >> 1));
            }
        }
    }

    fn compact(&mut self, moved: Moved<'_>) -> Option<Compacted> {
        let mut freeable: Vec<_> = self
            .freeable()
            .zip((0..).map(ClassIndex))
            .filter(|&(frames, _)| frames > 0)
            .collect();
        // A class may have all its spare room in zspages that are being evicted.
        freeable.sort_unstable_by_key(|&(frames, _)| Reverse(frames));
        let before = self.frames;
        let (zspage, into) = freeable
            .into_iter()
            .find_map(|(_, index)| self.compact_class(index, moved))?;
        Some(Compacted {
            zspage,
            into,
            // Where the budget was short and then was not, zspages may even have grown by more.
            frames: before.saturating_sub(self.frames),
        })
    }

    fn frames_in_use(&self) -> u64 {
        self.frames
    }

    fn frames_freeable(&self) -> u64 {
        self.freeable().sum()
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

    fn class_stats(&self) -> Vec<ClassStats> {
        let stats = |(class, class_use): (&Class, &ClassUse)| {
            let chain = class.chain.frames() as u64;
            ClassStats {
                size: class.size as u64,
                objects: class_use.zspages * u64::from(class.objects),
                objects_used: class_use.objects,
                frames: class_use.frames,
                frames_per_zspage: chain,
                frames_freeable: class_use.freeable_frames(*class),
            }
        };
        GEOMETRY
            .classes()
            .iter()
            .zip(&self.classes)
            .map(stats)
            .collect()
    }

    fn adopt(&mut self, objects: &[FoundObject]) -> io::Result<Vec<ZspageId>> {
        self.adopt_objects(objects)
    }

    fn check(&self) {
        self.check_accounting();
    }
}

/// The first byte of an object in the arena.
fn byte(object: ObjectAddress) -> usize {
    object.0 as usize * OBJECT_ALIGN
}

/// The first byte of the data of an object of `len` bytes.
fn data(object: ObjectAddress, len: usize) -> usize {
    // Only raw pages are as long as a page, and only they have no header.
    byte(object) + if len == PAGE_SIZE { 0 } else { HEADER_LEN }
}

/// Where the `nth` object of a zspage lies.
fn address(first: FrameIndex, class: Class, nth: u16) -> ObjectAddress {
    let byte = first.0 as usize * PAGE_SIZE + usize::from(nth) * class.size;
    ObjectAddress((byte / OBJECT_ALIGN) as u64)
}

/// Which object of its zspage it is.
fn nth(first: FrameIndex, class: Class, object: ObjectAddress) -> u16 {
    ((byte(object) - first.0 as usize * PAGE_SIZE) / class.size) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compaction_begins_with_the_class_that_frees_most() {
        let budget = Arc::new(FrameBudget::new(FrameBudget::UNLIMITED));
        let mut pool = Zsmalloc::new(1 << 16, budget, &MemorySource::Process).expect("addresses");
        // One class before the one that is sparsest, and one behind it.
        for (len, objects) in [(500, 200), (1000, 1000), (2000, 60)] {
            let data = vec![1; len];
            let stored = (0..objects).map(|owner| pool.store(Owner(owner), &data).expect("room"));
            let stored: Vec<_> = stored.collect();
            for (_, stored) in (0..).zip(stored).filter(|(owner, _)| owner % 4 != 0) {
                pool.free(stored.object);
            }
        }
        let frames = |pool: &Zsmalloc| -> Vec<_> {
            let classes = pool.class_stats();
            classes
                .iter()
                .map(|class| (class.size, class.frames))
                .collect()
        };
        let before = frames(&pool);
        let size = pool.object_size(1000) as u64;
        pool.compact(&mut |_, _, _| {}).expect("sparse");
        for (before, after) in before.into_iter().zip(frames(&pool)) {
            assert_eq!(after != before, before.0 == size, "{before:?} {after:?}");
        }
        pool.check();
    }
}
