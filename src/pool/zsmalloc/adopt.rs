//! A pool that is made of the objects that were found in its memory.
//!
//! Where an object lies and how long it is say which zspage it is in, so no descriptor has to outlive the process:
//! no two objects of a zspage start equally far into a page frame (`Class::places`). A zspage of which objects are
//! free gets its free list anew; the frames of the others are not touched.

use std::io;

use super::class::{Class, ClassIndex, GEOMETRY, NOWHERE, Places};
use super::{Zsmalloc, address, byte};
use crate::memory::FrameIndex;
use crate::pool::{FoundObject, ZspageId};
use crate::units::PAGE_SIZE;

/// Which objects of zspages are in use, a bit each.
#[derive(Default)]
struct InUse {
    words: Vec<u64>,
    /// The first word of each zspage, by id; there is no zspage 0.
    first: Vec<usize>,
}

impl InUse {
    /// Adds a zspage, whose id is the next one, with so many objects.
    fn add(&mut self, objects: u16) {
        if self.first.is_empty() {
            self.first.push(0);
        }
        self.first.push(self.words.len());
        let words = usize::from(objects).div_ceil(64);
        self.words.resize(self.words.len() + words, 0);
    }

    fn place(&self, ZspageId(id): ZspageId, nth: u16) -> (usize, u64) {
        (
            self.first[id as usize] + usize::from(nth / 64),
            1 << (nth % 64),
        )
    }

    /// Sets an object's bit; returns whether it was set.
    fn set(&mut self, zspage: ZspageId, nth: u16) -> bool {
        let (word, bit) = self.place(zspage, nth);
        let was = self.words[word] & bit != 0;
        self.words[word] |= bit;
        was
    }

    fn is_set(&self, zspage: ZspageId, nth: u16) -> bool {
        let (word, bit) = self.place(zspage, nth);
        self.words[word] & bit != 0
    }
}

fn contradiction() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "two of its slots contradict each other",
    )
}

impl Zsmalloc {
    pub(super) fn adopt_objects(&mut self, objects: &[FoundObject]) -> io::Result<Vec<ZspageId>> {
        let places: Vec<Places> = GEOMETRY.classes().iter().map(Class::places).collect();
        let mut in_use = InUse::default();
        let mut zspages = Vec::with_capacity(objects.len());
        for &found in objects {
            let index = GEOMETRY.class_for(found.len);
            let nth = places[usize::from(index.0)].nth(byte(found.object));
            zspages.push(self.adopt_object(found, index, nth, &mut in_use)?);
        }
        self.adopt_frames()?;
        for id in self.zspages.used() {
            self.link_free(id, &in_use);
            self.restand(id);
        }
        Ok(zspages)
    }

    /// Finds an object in a zspage, which is made if it is the first there.
    fn adopt_object(
        &mut self,
        found: FoundObject,
        index: ClassIndex,
        nth: u16,
        in_use: &mut InUse,
    ) -> io::Result<ZspageId> {
        let class = GEOMETRY.class(index);
        let before = usize::from(nth) * class.size;
        if nth == NOWHERE || byte(found.object) < before {
            return Err(contradiction());
        }
        let first = (byte(found.object) - before) / PAGE_SIZE;
        let frames = first..first + class.chain.frames();
        let named = self
            .zspage_of
            .get(frames.clone())
            .ok_or_else(contradiction)?;
        let id = match named[0] {
            0 => {
                if named.iter().any(|&id| id != 0) {
                    return Err(contradiction());
                }
                let id = self.add_zspage(index, FrameIndex(first as u32));
                // Any of its frames may have memory.
                self.hold(id, class.chain.frames());
                self.budget.take(class.chain.frames() as u64);
                in_use.add(class.objects);
                id
            }
            id => ZspageId(id),
        };
        let zspage = self.zspages.get_mut(id);
        if (zspage.class(), zspage.first_frame().0 as usize) != (index, first)
            || in_use.set(id, nth)
        {
            return Err(contradiction());
        }
        zspage.in_use += 1;
        zspage.carved = zspage.carved.max(nth + 1);
        if index == GEOMETRY.huge() {
            zspage.huge_owner = found.owner.0;
        }
        self.classes[usize::from(index.0)].objects += 1;
        Ok(id)
    }

    /// Has the frames of zspages be in use, and all others be free.
    fn adopt_frames(&mut self) -> io::Result<()> {
        let run = |id| {
            let zspage = self.zspages.get(id);
            (zspage.first_frame(), GEOMETRY.class(zspage.class()).chain)
        };
        let mut runs: Vec<_> = self.zspages.used().map(run).collect();
        runs.sort_unstable();
        self.arena.adopt(runs.into_iter())
    }

    /// Makes the free list of a zspage.
    fn link_free(&mut self, id: ZspageId, in_use: &InUse) {
        let zspage = self.zspages.get(id);
        if zspage.in_use == zspage.carved {
            return;
        }
        let (first, carved) = (zspage.first_frame(), zspage.carved);
        let class = GEOMETRY.class(zspage.class());
        for nth in (0..carved).rev().filter(|&nth| !in_use.is_set(id, nth)) {
            let next = self.zspages.get(id).free_head;
            self.set_header(address(first, class, nth), u32::from(next) << 1);
            self.zspages.get_mut(id).free_head = nth;
        }
    }
}
