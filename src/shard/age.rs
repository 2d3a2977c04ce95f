//! When a page was last accessed, in four bits of its slot.
//!
//! Time is cut into generations, and a slot has the tag of the one in which its page was last
//! written or read. [`Present`] says which that is now; what the others mean is known to
//! `engine::ages`. A read costs a look at a byte that rarely changes, and no look at a clock.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use crate::sync::atomic::{AtomicU8, Ordering::Relaxed};
use crate::waker::Waker;

/// A generation's name, 1 to 14, or a mark in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgeTag(pub(super) u8);

impl AgeTag {
    /// The mark of a slot whose page is being written back because it was chosen.
    pub(super) const WRITING_BACK: Self = Self(0);

    /// The mark of a slot whose page is being recompressed.
    pub(super) const RECOMPRESSING: Self = Self(15);

    /// The tag as a number.
    pub(crate) fn number(self) -> u8 {
        self.0
    }

    /// The tag of a generation with a number, if there is one.
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::all().find(|tag| tag.0 == number)
    }

    /// Every generation's.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (1..=14).map(Self)
    }

    /// Whether it is no generation's.
    pub(super) fn is_mark(self) -> bool {
        [Self::WRITING_BACK, Self::RECOMPRESSING].contains(&self)
    }
}

/// A set of generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AgeTags(u16);

impl AgeTags {
    pub(crate) fn insert(&mut self, tag: AgeTag) {
        self.0 |= 1 << tag.0;
    }

    pub(crate) fn contains(self, tag: AgeTag) -> bool {
        self.0 & 1 << tag.0 != 0
    }
}

/// Set until the first access of a generation.
const UNUSED: u8 = 1 << 7;

/// The generation that accesses belong to, shared by the shards of a device.
///
/// It is looked at with a shard's lock held. So once each shard's lock was taken after another
/// generation was opened, no slot gets the tag of the one before any more.
pub(crate) struct Present {
    tag: CachePadded<AtomicU8>,
    waker: Arc<Waker>,
}

impl Present {
    /// The first generation. Its first access and that of each later one wakes `waker`'s thread.
    pub(crate) fn new(first: AgeTag, waker: Arc<Waker>) -> Self {
        Self {
            tag: CachePadded::new(AtomicU8::new(first.0 | UNUSED)),
            waker,
        }
    }

    /// The tag for an access.
    pub(super) fn tag(&self) -> AgeTag {
        let tag = self.tag.load(Relaxed);
        if tag & UNUSED != 0 {
            self.begin_use();
        }
        AgeTag(tag & !UNUSED)
    }

    #[cold]
    fn begin_use(&self) {
        self.tag.fetch_and(!UNUSED, Relaxed);
        self.waker.wake();
    }

    /// Whether there was an access since the generation was opened.
    pub(crate) fn is_used(&self) -> bool {
        self.tag.load(Relaxed) & UNUSED == 0
    }

    /// Begins another generation.
    pub(crate) fn open(&self, tag: AgeTag) {
        self.tag.store(tag.0 | UNUSED, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_used_from_its_first_access_on() {
        let waker = Arc::new(Waker::default());
        waker.attach();
        let present = Present::new(AgeTag(3), Arc::clone(&waker));
        let woken = || waker.wait(Some(std::time::Duration::ZERO));
        assert!(!present.is_used() && !woken());
        assert_eq!((present.tag(), present.tag()), (AgeTag(3), AgeTag(3)));
        assert!(present.is_used() && woken() && !woken());
        present.open(AgeTag(4));
        assert!(!present.is_used());
        assert_eq!(present.tag(), AgeTag(4));
        assert!(woken());
    }
}
