//! A page frame with up to three objects in it.
//!
//! ```text
//!  chunk 0                                                   chunk 64
//!  |  first buddy  |  middle buddy  |     room     |  last buddy  |
//! ```
//!
//! The first buddy starts where the frame does and the last one ends where it does. The middle one
//! lies where it was put, and is moved to make one room of two when that is needed: objects are
//! known by their buddy, not by their place.

use std::ops::Range;

use zerocopy::FromZeros;

use crate::pool::Owner;
use crate::units::PAGE_SIZE;

/// Bytes that objects' lengths are rounded up to (`CHUNK_SIZE`).
pub(super) const CHUNK: usize = 64;

/// Chunks in a frame (`NCHUNKS`, which lacks those of the kernel's header).
pub(super) const CHUNKS: u8 = (PAGE_SIZE / CHUNK) as u8;

/// Which object of a frame (`enum buddy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buddy {
    First = 0,
    Middle = 1,
    Last = 2,
}

impl Buddy {
    pub(super) const ALL: [Self; 3] = [Self::First, Self::Middle, Self::Last];
}

/// Chunks that an object of `len` bytes takes.
pub(super) fn chunks(len: usize) -> u8 {
    len.div_ceil(CHUNK) as u8
}

/// The bytes of chunks in their frame.
pub(super) fn bytes(chunks: Range<u8>) -> Range<usize> {
    usize::from(chunks.start) * CHUNK..usize::from(chunks.end) * CHUNK
}

/// The descriptor of a frame.
///
/// Invariant: the chunks of buddies do not overlap.
#[derive(Clone, Copy, FromZeros)]
pub(super) struct Frame {
    pub(super) prev: u32,
    pub(super) next: u32,
    owners: [u32; 3],
    /// Lengths of the buddies; 0 for one that is free.
    chunks: [u8; 3],
    /// Where the middle buddy starts.
    middle: u8,
    /// What list it is in, by its room; 0 for none.
    pub(super) listed: u8,
    pub(super) isolated: bool,
}

impl Frame {
    pub(super) const EMPTY: Self = Self {
        prev: 0,
        next: 0,
        owners: [0; 3],
        chunks: [0; 3],
        middle: 0,
        listed: 0,
        isolated: false,
    };

    fn len(&self, buddy: Buddy) -> u8 {
        self.chunks[buddy as usize]
    }

    pub(super) fn is_used(&self, buddy: Buddy) -> bool {
        self.len(buddy) != 0
    }

    /// How many objects there are.
    pub(super) fn objects(&self) -> usize {
        self.chunks.iter().filter(|&&chunks| chunks != 0).count()
    }

    /// Chunks that another object may take, if there may be `buddies` in all.
    pub(super) fn room(&self, buddies: usize) -> u8 {
        if self.objects() < buddies {
            CHUNKS - self.chunks.iter().sum::<u8>()
        } else {
            0
        }
    }

    /// Where a buddy lies.
    pub(super) fn place(&self, buddy: Buddy) -> Range<u8> {
        let len = self.len(buddy);
        let start = match buddy {
            Buddy::First => 0,
            Buddy::Middle => self.middle,
            Buddy::Last => CHUNKS - len,
        };
        start..start + len
    }

    pub(super) fn owner(&self, buddy: Buddy) -> Owner {
        Owner(self.owners[buddy as usize])
    }

    /// Takes a buddy for `chunks` chunks, of which there is room. `shift` is told from where to
    /// where the middle one has to be moved for that.
    pub(super) fn take(
        &mut self,
        owner: Owner,
        chunks: u8,
        shift: impl FnOnce(Range<u8>, u8),
    ) -> Buddy {
        let buddy = if !self.is_used(Buddy::Last) {
            Buddy::Last
        } else if !self.is_used(Buddy::First) {
            Buddy::First
        } else {
            Buddy::Middle
        };
        let after_first = self.len(Buddy::First);
        match buddy {
            Buddy::Middle => self.middle = after_first,
            // All room is to be on the one side.
            Buddy::Last => self.move_middle(after_first, shift),
            Buddy::First => {
                let before_last = self.place(Buddy::Last).start - self.len(Buddy::Middle);
                self.move_middle(before_last, shift);
            }
        }
        self.chunks[buddy as usize] = chunks;
        self.owners[buddy as usize] = owner.0;
        buddy
    }

    fn move_middle(&mut self, to: u8, shift: impl FnOnce(Range<u8>, u8)) {
        if self.is_used(Buddy::Middle) && self.middle != to {
            shift(self.place(Buddy::Middle), to);
            self.middle = to;
        }
    }

    pub(super) fn give_back(&mut self, buddy: Buddy) {
        debug_assert!(self.is_used(buddy), "{buddy:?} freed twice");
        self.chunks[buddy as usize] = 0;
    }

    /// Has a buddy be in use that was found, whose middle would start at a chunk; returns whether it was free.
    pub(super) fn find(&mut self, buddy: Buddy, owner: Owner, chunks: u8, middle: u8) -> bool {
        let was_free = !self.is_used(buddy);
        self.chunks[buddy as usize] = chunks;
        self.owners[buddy as usize] = owner.0;
        if buddy == Buddy::Middle {
            // One that would reach beyond the frame is found out.
            self.middle = middle.min(CHUNKS);
        }
        was_free
    }

    /// Whether the invariant holds.
    pub(super) fn is_disjoint(&self) -> bool {
        let mut end = 0;
        let used = Buddy::ALL.into_iter().filter(|&buddy| self.is_used(buddy));
        used.map(|buddy| self.place(buddy)).all(|place| {
            let follows = end <= place.start && place.end <= CHUNKS;
            end = place.end;
            follows
        })
    }

    /// Asserts the invariant.
    pub(super) fn check(&self, buddies: usize) {
        assert!(self.objects() <= buddies);
        assert!(self.is_disjoint());
    }
}
