//! Zspages: their descriptors, and the lists they stand in.

use std::collections::HashSet;
use std::io;

use zerocopy::FromZeros;

use super::class::{Class, ClassIndex};
use crate::memory::{FrameIndex, LazyTable};
use crate::pool::ZspageId;

/// Bands of usage, each a tenth of a zspage's objects (`enum fullness_group`).
pub(super) const FULLNESS_GROUPS: usize = 10;

/// Standing of a zspage that is in no list because every object is in use. Below it are the
/// fullness groups.
pub(super) const FULL: u8 = FULLNESS_GROUPS as u8;
/// Standing of a zspage that is in no list because it is being evicted.
pub(super) const ISOLATED: u8 = FULL + 1;
/// Standing of a zspage that is in no list because it is being changed.
pub(super) const DETACHED: u8 = FULL + 2;

/// The descriptor of a zspage.
///
/// Invariants:
/// 1. Objects `0..carved` have been used; of these, `carved - in_use` are free and form a list
///    from `free_head` through their headers.
/// 2. `standing` names the one list it is in, if any: the fullness group of `in_use`.
/// 3. Its first `held` frames have memory, or may have some, and objects `0..carved` lie in them.
#[derive(FromZeros)]
pub(super) struct Zspage {
    prev: u32,
    next: u32,
    first_frame: u32,
    /// Owner of the object of a huge zspage, which has no room for a header.
    pub(super) huge_owner: u32,
    pub(super) free_head: u16,
    pub(super) carved: u16,
    pub(super) in_use: u16,
    class: u8,
    standing: u8,
    pub(super) held: u8,
}

impl Zspage {
    pub(super) fn class(&self) -> ClassIndex {
        ClassIndex(self.class)
    }

    pub(super) fn first_frame(&self) -> FrameIndex {
        FrameIndex(self.first_frame)
    }

    pub(super) fn standing(&self) -> u8 {
        self.standing
    }

    /// Whether its next object lies where it has no memory yet.
    pub(super) fn must_grow(&self, class: Class) -> bool {
        self.in_use == self.carved && class.frames_of(self.carved + 1) > usize::from(self.held)
    }

    /// Where it belongs by its usage.
    fn fullness(&self, class: Class) -> u8 {
        (usize::from(self.in_use) * FULLNESS_GROUPS / usize::from(class.objects)) as u8
    }
}

/// The lists of one class, one for each fullness group: doubly linked through the descriptors.
#[derive(Clone, Default)]
pub(super) struct Lists {
    heads: [u32; FULLNESS_GROUPS],
}

impl Lists {
    /// A zspage with free objects, of the fullest group that has one.
    pub(super) fn fullest(&self) -> Option<ZspageId> {
        self.heads
            .iter()
            .rev()
            .copied()
            .find(|&id| id != 0)
            .map(ZspageId)
    }

    /// A zspage with free objects, of the emptiest group that has one.
    pub(super) fn emptiest(&self) -> Option<ZspageId> {
        self.heads.iter().copied().find(|&id| id != 0).map(ZspageId)
    }
}

/// All descriptors of a pool. Slot 0 is never used, so that 0 ends a list.
pub(super) struct ZspageTable {
    zspages: LazyTable<Zspage>,
    /// Descriptors `1..fresh` have been used.
    fresh: u32,
    /// Unused descriptors among them, linked through `next`.
    unused: u32,
}

impl ZspageTable {
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            zspages: LazyTable::new(capacity + 1)?,
            fresh: 1,
            unused: 0,
        })
    }

    pub(super) fn get(&self, id: ZspageId) -> &Zspage {
        &self.zspages[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: ZspageId) -> &mut Zspage {
        &mut self.zspages[id.0 as usize]
    }

    /// A new empty zspage, in no list. There are as many descriptors as frames, so one is left.
    pub(super) fn create(&mut self, class: ClassIndex, first_frame: FrameIndex) -> ZspageId {
        let id = if self.unused != 0 {
            let id = self.unused;
            self.unused = self.zspages[id as usize].next;
            id
        } else {
            self.fresh += 1;
            self.fresh - 1
        };
        self.zspages[id as usize] = Zspage {
            prev: 0,
            next: 0,
            first_frame: first_frame.0,
            huge_owner: 0,
            free_head: 0,
            carved: 0,
            in_use: 0,
            class: class.0,
            standing: DETACHED,
            held: 0,
        };
        ZspageId(id)
    }

    /// Forgets an empty zspage that is in no list.
    pub(super) fn remove(&mut self, id: ZspageId) {
        let next = self.unused;
        let zspage = self.get_mut(id);
        debug_assert_eq!((zspage.in_use, zspage.standing), (0, DETACHED));
        zspage.next = next;
        self.unused = id.0;
    }

    /// Moves a zspage to where its usage belongs, unless it is isolated or already there.
    pub(super) fn restand(&mut self, lists: &mut Lists, id: ZspageId, class: Class) {
        let zspage = self.get(id);
        let (from, to) = (zspage.standing, zspage.fullness(class));
        if from == to || from == ISOLATED {
            return;
        }
        self.detach(lists, id);
        self.get_mut(id).standing = to;
        if to < FULL {
            let head = lists.heads[usize::from(to)];
            self.get_mut(id).next = head;
            self.get_mut(id).prev = 0;
            if head != 0 {
                self.zspages[head as usize].prev = id.0;
            }
            lists.heads[usize::from(to)] = id.0;
        }
    }

    /// Takes a zspage out of its list, if it is in one.
    pub(super) fn detach(&mut self, lists: &mut Lists, id: ZspageId) {
        let Zspage {
            prev,
            next,
            standing,
            ..
        } = *self.get(id);
        self.get_mut(id).standing = DETACHED;
        if standing >= FULL {
            return;
        }
        if prev != 0 {
            self.zspages[prev as usize].next = next;
        } else {
            lists.heads[usize::from(standing)] = next;
        }
        if next != 0 {
            self.zspages[next as usize].prev = prev;
        }
    }

    /// Takes a zspage out of its list to be evicted.
    pub(super) fn isolate(&mut self, lists: &mut Lists, id: ZspageId) {
        debug_assert_ne!(self.get(id).standing, ISOLATED);
        self.detach(lists, id);
        self.get_mut(id).standing = ISOLATED;
    }

    /// The fullest zspage with free objects of which one lies where there is memory.
    pub(super) fn fullest_with_memory(&self, lists: &Lists, class: Class) -> Option<ZspageId> {
        // Those passed over are few: a zspage is made only when no other has room.
        (0..FULLNESS_GROUPS)
            .rev()
            .flat_map(|group| self.in_list(lists, group))
            .find(|&id| !self.get(id).must_grow(class))
    }

    /// The zspages in a list, first to last, with a check of its links.
    pub(super) fn in_list<'a>(
        &'a self,
        lists: &Lists,
        group: usize,
    ) -> impl Iterator<Item = ZspageId> + use<'a> {
        let (mut prev, mut at) = (0, lists.heads[group]);
        std::iter::from_fn(move || {
            let id = (at != 0).then_some(ZspageId(at))?;
            let zspage = self.get(id);
            assert_eq!((zspage.prev, usize::from(zspage.standing)), (prev, group));
            (prev, at) = (at, zspage.next);
            Some(id)
        })
    }

    /// Descriptors that are not in use now.
    pub(super) fn unused(&self) -> HashSet<ZspageId> {
        std::iter::successors(Some(self.unused), |&id| {
            Some(self.zspages[id as usize].next)
        })
        .take_while(|&id| id != 0)
        .map(ZspageId)
        .collect()
    }

    /// Descriptors that were ever used.
    pub(super) fn used(&self) -> impl Iterator<Item = ZspageId> + use<> {
        (1..self.fresh).map(ZspageId)
    }
}
