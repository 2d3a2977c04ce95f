//! A pool that is made of the objects that were found in its memory.

use std::io;

use super::frame::{Frame, chunks};
use super::{Buddies, Buddy, parts};
use crate::memory::{ChainLen, FrameIndex};
use crate::pool::{FoundObject, ZspageId};

fn contradiction() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "two of its slots contradict each other",
    )
}

impl Buddies {
    pub(super) fn adopt_objects(&mut self, objects: &[FoundObject]) -> io::Result<Vec<ZspageId>> {
        if objects.iter().any(|found| found.object.0 & 3 > 2) {
            return Err(contradiction());
        }
        let zspage = |found: &FoundObject| parts(found.object).0;
        let zspages: Vec<ZspageId> = objects.iter().map(zspage).collect();
        let mut used = zspages.clone();
        used.sort_unstable();
        used.dedup();
        if used.first().is_some_and(|first| first.0 == 0) {
            return Err(contradiction());
        }
        let frames = used
            .iter()
            .map(|id| (FrameIndex(id.0 - 1), ChainLen::new(1)));
        self.arena.adopt(frames)?;
        self.middles.adopt(&mut self.arena);
        for &id in &used {
            *self.frame_mut(id) = Frame::EMPTY;
        }
        for &FoundObject { object, len, owner } in objects {
            let (id, buddy) = parts(object);
            let middle = self.middles.get(id);
            let is_new = self.frame_mut(id).find(buddy, owner, chunks(len), middle);
            if !is_new || buddy == Buddy::Middle && self.buddies < 3 {
                return Err(contradiction());
            }
        }
        self.budget.take(used.len() as u64);
        self.frames = used.len() as u64;
        for id in used {
            if !self.frame(id).is_disjoint() {
                return Err(contradiction());
            }
            self.list(id);
        }
        Ok(zspages)
    }
}
