//! zsmalloc: objects of one size class share zspages of 1 to 8 page frames (`mm/zsmalloc.c`).
//!
//! An object is a header of 4 bytes, which names its owner while it is in use and links the free
//! list while it is not, and its data. New objects go to the fullest zspage that has room, which
//! keeps the sparse ones sparse for compaction. A zspage's frames have consecutive addresses, so
//! an object that straddles two of them is still one slice, and an [`ObjectAddress`] leads to its
//! bytes without looking at any descriptor.

mod check;
mod class;
mod zspage;

use std::io;
use std::ops::Range;
use std::sync::Arc;

use self::class::{Class, ClassIndex, GEOMETRY, HEADER_LEN};
use self::zspage::{ISOLATED, Lists, ZspageTable};
use super::{
    Compacted, FrameBudget, NoRoom, OBJECT_ALIGN, ObjectAddress, Owner, Pool, Stored, ZspageId,
};
use crate::memory::{Arena, ChainLen, FrameIndex, IdleRuns, LazyTable};
use crate::units::PAGE_SIZE;

/// Header bit of an object in use (`OBJ_ALLOCATED_TAG`).
const IN_USE: u32 = 1;

/// Usage of one size class, as in the kernel's `/sys/kernel/debug/zsmalloc/*/classes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl ClassUse {
    /// Zspages' worth of free objects (`zs_can_compact`).
    fn spare_zspages(&self, class: Class) -> u64 {
        let per_zspage = u64::from(class.objects);
        (self.zspages * per_zspage - self.objects) / per_zspage
    }
}

/// The pool.
///
/// Invariants, proved by [`Pool::check`]:
/// 1. For each class, `objects` is the sum of its zspages' objects in use, isolated ones included.
/// 2. `frames` is the sum of the chains of all zspages, and is taken from `budget`.
/// 3. `zspage_of` names, for each frame in use, the zspage it is in.
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
    pub(crate) fn new(address_frames: usize, budget: Arc<FrameBudget>) -> io::Result<Self> {
        Ok(Self {
            arena: Arena::new(address_frames)?,
            budget,
            zspages: ZspageTable::new(address_frames)?,
            zspage_of: LazyTable::new(address_frames)?,
            classes: vec![ClassUse::default(); GEOMETRY.classes().len()],
            frames: 0,
        })
    }

    /// A zspage of the class with a free object: the fullest, or a new one.
    fn zspage_with_room(&mut self, class: ClassIndex) -> Result<ZspageId, NoRoom> {
        let lists = &self.classes[usize::from(class.0)].lists;
        match lists.fullest() {
            Some(zspage) => Ok(zspage),
            None => self.create_zspage(class),
        }
    }

    fn create_zspage(&mut self, class: ClassIndex) -> Result<ZspageId, NoRoom> {
        let chain = GEOMETRY.class(class).chain;
        if !self.budget.try_take(chain.frames() as u64) {
            return Err(NoRoom::OverLimit);
        }
        let Some(first) = self.arena.take(chain) else {
            self.budget.give_back(chain.frames() as u64);
            return Err(NoRoom::NoMemory);
        };
        let id = self.zspages.create(class, first);
        self.zspage_of[frames(first, chain)].fill(id.0);
        self.classes[usize::from(class.0)].zspages += 1;
        self.frames += chain.frames() as u64;
        Ok(id)
    }

    /// Frees an empty zspage, which may stand in a list.
    fn free_zspage(&mut self, id: ZspageId) {
        let zspage = self.zspages.get(id);
        let (index, first) = (zspage.class(), zspage.first_frame());
        let chain = GEOMETRY.class(index).chain;
        let class = &mut self.classes[usize::from(index.0)];
        self.zspages.detach(&mut class.lists, id);
        self.zspages.remove(id);
        class.zspages -= 1;
        self.frames -= chain.frames() as u64;
        self.arena.give_back(first, chain);
        self.budget.give_back(chain.frames() as u64);
    }

    /// Takes a free object of `id`, which has one, and writes its owner; the zspage is left in
    /// the list it was in.
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

    /// Moves the objects of `from`, which is in no list, to other zspages of its class; returns
    /// whether they all found room there.
    fn empty_zspage(
        &mut self,
        from: ZspageId,
        moved: &mut dyn FnMut(Owner, ObjectAddress, ObjectAddress),
    ) -> bool {
        let index = self.zspages.get(from).class();
        let size = GEOMETRY.class(index).size;
        let mut objects = Vec::with_capacity(usize::from(self.zspages.get(from).in_use));
        self.objects(from, &mut |object, owner| objects.push((object, owner)));
        for (object, owner) in objects {
            let Some(to) = self.classes[usize::from(index.0)].lists.fullest() else {
                return false;
            };
            let target = self.take_object(to, owner);
            self.restand(to);
            let (source, len) = (byte(object) + HEADER_LEN, size - HEADER_LEN);
            self.arena.copy(source, byte(target) + HEADER_LEN, len);
            self.give_back_object(from, object);
            moved(owner, object, target);
        }
        true
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
        let zspage = self.zspage_with_room(GEOMETRY.class_for(data.len()))?;
        let object = self.take_object(zspage, owner);
        self.restand(zspage);
        let at = byte(object)
            + if data.len() == PAGE_SIZE {
                0
            } else {
                HEADER_LEN
            };
        self.arena
            .bytes_mut(at..at + data.len())
            .copy_from_slice(data);
        Ok(Stored { object, zspage })
    }

    fn bytes(&self, object: ObjectAddress, len: usize) -> &[u8] {
        // Only raw pages are as long as a page, and only they have no header.
        let at = byte(object) + if len == PAGE_SIZE { 0 } else { HEADER_LEN };
        self.arena.bytes(at..at + len)
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
        GEOMETRY.class(index).chain.frames() as u64
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

    fn compact(
        &mut self,
        moved: &mut dyn FnMut(Owner, ObjectAddress, ObjectAddress),
    ) -> Option<Compacted> {
        for (index, class) in (0..).map(ClassIndex).zip(GEOMETRY.classes()) {
            let class_use = &mut self.classes[usize::from(index.0)];
            if class_use.spare_zspages(*class) == 0 {
                continue;
            }
            let Some(from) = class_use.lists.emptiest() else {
                continue;
            };
            // Out of its list, so that its own free objects are not taken for the target's.
            self.zspages.detach(&mut class_use.lists, from);
            if self.empty_zspage(from, moved) {
                self.free_zspage(from);
                return Some(Compacted {
                    zspage: from,
                    frames: class.chain.frames() as u64,
                });
            }
            // The spare room is in zspages that are being evicted.
            self.restand(from);
        }
        None
    }

    fn frames_in_use(&self) -> u64 {
        self.frames
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
                frames: class_use.zspages * chain,
                frames_per_zspage: chain,
                frames_freeable: class_use.spare_zspages(*class) * chain,
            }
        };
        GEOMETRY
            .classes()
            .iter()
            .zip(&self.classes)
            .map(stats)
            .collect()
    }

    fn check(&self) {
        self.check_accounting();
    }
}

/// The first byte of an object in the arena.
fn byte(object: ObjectAddress) -> usize {
    object.0 as usize * OBJECT_ALIGN
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

/// The frames of a run.
fn frames(first: FrameIndex, chain: ChainLen) -> Range<usize> {
    let first = first.0 as usize;
    first..first + chain.frames()
}
