//! The proof that a pool's accounting adds up.

use super::class::{ClassIndex, GEOMETRY};
use super::zspage::{FULL, FULLNESS_GROUPS, ISOLATED};
use super::{IN_USE, Zsmalloc, address};
use crate::pool::{Pool, ZspageId};

impl Zsmalloc {
    /// Asserts invariants 1 to 3, those of the lists and descriptors, and the arena's.
    pub(super) fn check_accounting(&self) {
        let unused = self.zspages.unused();
        let (mut held_frames, mut run_frames) = (0, 0);
        let mut tally = vec![(0u64, 0u64, 0u64); self.classes.len()];
        for id in self.zspages.used().filter(|id| !unused.contains(id)) {
            let zspage = self.zspages.get(id);
            let class = GEOMETRY.class(zspage.class());
            self.check_objects(id);
            let (first, held) = (zspage.first_frame().0 as usize, usize::from(zspage.held));
            assert!(class.frames_of(zspage.carved) <= held && held <= class.chain.frames());
            let named = &self.zspage_of[first..first + held];
            assert!(named.iter().all(|&named| named == id.0));
            held_frames += held as u64;
            run_frames += class.chain.frames();
            let (zspages, objects, frames) = &mut tally[usize::from(zspage.class().0)];
            *zspages += 1;
            *objects += u64::from(zspage.in_use);
            *frames += held as u64;
        }
        let counted: Vec<_> = self
            .classes
            .iter()
            .map(|c| (c.zspages, c.objects, c.frames))
            .collect();
        assert_eq!(tally, counted);
        assert_eq!(self.frames, held_frames);
        self.arena.check_accounting(run_frames);
        self.check_lists();
    }

    /// Every zspage but the full and the isolated ones stands in the list of its fullness.
    fn check_lists(&self) {
        let mut listed = 0;
        for (index, class_use) in (0..).map(ClassIndex).zip(&self.classes) {
            let objects = usize::from(GEOMETRY.class(index).objects);
            for group in 0..FULLNESS_GROUPS {
                for id in self.zspages.in_list(&class_use.lists, group) {
                    let zspage = self.zspages.get(id);
                    assert_eq!(zspage.class(), index);
                    assert_eq!(
                        usize::from(zspage.in_use) * FULLNESS_GROUPS / objects,
                        group
                    );
                    listed += 1;
                }
            }
        }
        let unused = self.zspages.unused();
        let unlisted = self
            .zspages
            .used()
            .filter(|id| !unused.contains(id))
            .filter(|&id| {
                let zspage = self.zspages.get(id);
                let full = zspage.in_use == GEOMETRY.class(zspage.class()).objects;
                assert!(zspage.standing() != FULL || full);
                zspage.standing() == FULL || zspage.standing() == ISOLATED
            });
        let zspages: u64 = self.classes.iter().map(|class| class.zspages).sum();
        assert_eq!(listed + unlisted.count() as u64, zspages);
    }

    /// The free list and the headers agree on which objects are in use.
    fn check_objects(&self, id: ZspageId) {
        let zspage = self.zspages.get(id);
        let class = GEOMETRY.class(zspage.class());
        assert!(zspage.in_use <= zspage.carved && zspage.carved <= class.objects);
        let mut in_use = 0;
        self.objects(id, &mut |_, _| in_use += 1);
        assert_eq!(zspage.in_use, in_use);
        if zspage.class() == GEOMETRY.huge() {
            return;
        }
        let mut free = zspage.free_head;
        for _ in zspage.in_use..zspage.carved {
            assert!(free < zspage.carved);
            let header = self.header(address(zspage.first_frame(), class, free));
            assert_eq!(header & IN_USE, 0, "an object in use is in the free list");
            free = (header >> 1) as u16;
        }
    }
}
