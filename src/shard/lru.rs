//! zspages in order of their last allocation.

use std::io;
use std::sync::Arc;

use zerocopy::FromZeros;

use super::AgeRanks;
use crate::memory::LazyTable;
use crate::pool::ZspageId;
use crate::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The clock that the lists of a device's shards share, so that their oldest zspages can be
/// compared. It ticks when a zspage joins a list, which is rare beside allocations.
pub(crate) type Clock = Arc<AtomicU32>;

#[derive(Clone, Copy, FromZeros)]
struct Links {
    older: u32,
    newer: u32,
    /// Time of the last touch; 0 for a zspage that is not in the list.
    touched: u32,
}

/// A list of zspages, doubly linked by id.
///
/// Invariant: from `oldest` by `newer` to `newest`, every zspage with `touched != 0` is met once.
pub(crate) struct Lru {
    links: LazyTable<Links>,
    oldest: u32,
    newest: u32,
    clock: Clock,
}

impl Lru {
    /// An empty list for zspages with ids of at most `max_id`.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(max_id: usize, clock: Clock) -> io::Result<Self> {
        Ok(Self {
            links: LazyTable::new(max_id + 1)?,
            oldest: 0,
            newest: 0,
            clock,
        })
    }

    /// Makes a zspage the newest, adding it if it is not in the list.
    pub(crate) fn touch(&mut self, zspage: ZspageId) {
        let joins = self.links[zspage.0 as usize].touched == 0;
        let now = if joins {
            self.clock.fetch_add(1, Relaxed)
        } else {
            self.clock.load(Relaxed)
        };
        if self.newest != zspage.0 {
            self.remove(zspage);
            self.insert(zspage, self.newest, 0);
        }
        self.links[zspage.0 as usize].touched = now.max(1);
    }

    /// Adds a zspage at the old end, if it is not in the list.
    pub(crate) fn join_oldest(&mut self, zspage: ZspageId) {
        if self.links[zspage.0 as usize].touched == 0 {
            self.put_back(zspage);
        }
    }

    /// Puts a zspage that is not in the list back where it was taken from: at the old end.
    pub(crate) fn put_back(&mut self, zspage: ZspageId) {
        let now = self.clock.load(Relaxed);
        let touched = self.oldest().map_or(now, |(_, touched)| touched);
        self.insert(zspage, 0, self.oldest);
        self.links[zspage.0 as usize].touched = touched.max(1);
    }

    /// Gives a zspage the place of `from`, whose objects it takes, if it was touched earlier or is
    /// not in the list.
    pub(crate) fn inherit(&mut self, zspage: ZspageId, from: ZspageId) {
        let touched = self.links[from.0 as usize].touched;
        let own = self.links[zspage.0 as usize].touched;
        debug_assert!(touched != 0 && zspage != from);
        // The clock wraps.
        if own != 0 && own.wrapping_sub(touched) as i32 >= 0 {
            return;
        }
        self.remove(zspage);
        self.insert(zspage, self.links[from.0 as usize].older, from.0);
        self.links[zspage.0 as usize].touched = touched;
    }

    /// Fills the list, which is empty, with zspages by the ranks of their objects: each is as new as the newest of
    /// them.
    pub(crate) fn adopt(&mut self, objects: impl Iterator<Item = (ZspageId, u8)>) {
        let mut newest: Vec<(ZspageId, u8)> = Vec::new();
        for (zspage, rank) in objects {
            // Until they are listed, `older` says where they are in `newest`.
            let at = &mut self.links[zspage.0 as usize].older;
            match newest.get_mut(*at as usize) {
                Some((id, newest)) if *id == zspage => *newest = rank.max(*newest),
                _ => {
                    *at = newest.len() as u32;
                    newest.push((zspage, rank));
                }
            }
        }
        newest.sort_by_key(|&(_, rank)| rank);
        for (zspage, rank) in newest {
            self.insert(zspage, self.newest, 0);
            // The same for all of a rank, in all shards.
            self.links[zspage.0 as usize].touched = u32::from(rank) + 1;
        }
        // What is touched from here on is newer.
        self.clock.fetch_max(AgeRanks::COUNT as u32 + 1, Relaxed);
    }

    /// Takes a zspage out, if it is in the list.
    pub(crate) fn remove(&mut self, zspage: ZspageId) {
        let Links {
            older,
            newer,
            touched,
        } = self.links[zspage.0 as usize];
        if touched == 0 {
            return;
        }
        match older {
            0 => self.oldest = newer,
            _ => self.links[older as usize].newer = newer,
        }
        match newer {
            0 => self.newest = older,
            _ => self.links[newer as usize].older = older,
        }
        self.links[zspage.0 as usize].touched = 0;
    }

    /// The zspage touched longest ago, and when.
    pub(crate) fn oldest(&self) -> Option<(ZspageId, u32)> {
        let touched = self.links[self.oldest as usize].touched;
        (self.oldest != 0).then_some((ZspageId(self.oldest), touched))
    }

    fn insert(&mut self, zspage: ZspageId, older: u32, newer: u32) {
        let links = &mut self.links[zspage.0 as usize];
        (links.older, links.newer) = (older, newer);
        match older {
            0 => self.oldest = zspage.0,
            _ => self.links[older as usize].newer = zspage.0,
        }
        match newer {
            0 => self.newest = zspage.0,
            _ => self.links[newer as usize].older = zspage.0,
        }
    }

    /// The zspages from old to new, with a check of the links.
    pub(crate) fn check(&self) -> Vec<ZspageId> {
        let mut order = Vec::new();
        let (mut older, mut at) = (0, self.oldest);
        while at != 0 {
            let links = self.links[at as usize];
            assert_eq!(links.older, older);
            assert_ne!(links.touched, 0);
            order.push(ZspageId(at));
            (older, at) = (at, links.newer);
        }
        assert_eq!(self.newest, older);
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_of_touches() {
        let mut lru = Lru::new(10, Clock::default()).expect("addresses");
        let ids = [3, 1, 4, 5].map(ZspageId);
        for id in ids {
            lru.touch(id);
        }
        lru.touch(ZspageId(1));
        lru.touch(ZspageId(1));
        assert_eq!(lru.check(), [3, 4, 5, 1].map(ZspageId));
        let (oldest, _) = lru.oldest().expect("not empty");
        lru.remove(oldest);
        lru.remove(ZspageId(5));
        lru.remove(ZspageId(5));
        assert_eq!(lru.check(), [4, 1].map(ZspageId));
        lru.put_back(oldest);
        assert_eq!(lru.check(), [3, 4, 1].map(ZspageId));
        for id in [1, 3, 4] {
            lru.remove(ZspageId(id));
        }
        assert_eq!((lru.check().len(), lru.oldest()), (0, None));
    }

    #[test]
    fn what_takes_objects_is_as_new_as_they_were() {
        let mut lru = Lru::new(10, Clock::default()).expect("addresses");
        let order = |lru: &Lru| lru.check().iter().map(|id| id.0).collect::<Vec<_>>();
        for id in [1, 2, 3, 4] {
            lru.touch(ZspageId(id));
        }
        let touched = |lru: &Lru, id: usize| lru.links[id].touched;
        lru.inherit(ZspageId(1), ZspageId(3));
        assert_eq!(order(&lru), [2, 1, 3, 4]);
        assert_eq!(touched(&lru, 1), touched(&lru, 3));
        lru.inherit(ZspageId(1), ZspageId(3));
        lru.inherit(ZspageId(4), ZspageId(2));
        assert_eq!(order(&lru), [2, 1, 3, 4]);
        lru.inherit(ZspageId(7), ZspageId(4));
        lru.inherit(ZspageId(8), ZspageId(2));
        assert_eq!(order(&lru), [8, 2, 1, 3, 7, 4]);
        // Across the wrap of the clock.
        lru.links[4].touched = u32::MAX - 1;
        lru.links[7].touched = 5;
        lru.inherit(ZspageId(7), ZspageId(4));
        assert_eq!(touched(&lru, 7), 5);
        lru.inherit(ZspageId(4), ZspageId(7));
        assert_eq!((order(&lru), touched(&lru, 4)), (vec![8, 2, 1, 3, 4, 7], 5));
    }
}
