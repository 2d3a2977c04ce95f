//! Page frames for one pool, in runs.
#![expect(unsafe_code, reason = "lends out the bytes of a mapping")]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::mapping::Mapping;
use super::publish::crash_point;
use super::source::MemorySource;
use crate::units::PAGE_SIZE;

/// Longest run of frames: the most a zspage may chain (`ZS_MAX_PAGES_PER_ZSPAGE` at its default).
const MAX_RUN: usize = 8;

/// Bytes that a cache fetches at a time.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// Frames made accessible at a time, 64 MiB: changing protection is a system call.
const OPEN_STEP: usize = 16384;

/// A page frame of an arena, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FrameIndex(pub(crate) u32);

/// How many frames a run has, 1..=8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainLen(u8);

impl ChainLen {
    pub(crate) const MAX: usize = MAX_RUN;

    pub(crate) fn new(frames: usize) -> Self {
        assert!((1..=MAX_RUN).contains(&frames));
        Self(frames as u8)
    }

    pub(crate) fn frames(self) -> usize {
        usize::from(self.0)
    }

    pub(crate) fn bytes(self) -> usize {
        self.frames() * PAGE_SIZE
    }

    fn index(self) -> usize {
        self.frames() - 1
    }
}

/// Hands out runs of 1 to 8 page frames whose addresses are consecutive, so that an object that
/// straddles frames is still one slice.
///
/// What such runs fragment is address space, not memory: runs of each length have free lists of
/// their own, and since the runs of one length never hold more frames than the pool may,
/// addresses for eight times what the pool may hold never run out.
///
/// Invariants:
/// 1. Each frame below `fresh` belongs to exactly one run, which is in use, in `warm`, in `cold`
///    or in an [`IdleRuns`].
/// 2. Frames below `opened` are accessible; `fresh <= opened <= frames`.
/// 3. `warm_frames` is the sum of the lengths of the runs in `warm`.
pub(crate) struct Arena {
    mapping: Arc<Mapping>,
    frames: usize,
    opened: usize,
    fresh: usize,
    /// Freed runs whose memory we still hold, by length.
    warm: [Vec<FrameIndex>; MAX_RUN],
    /// Freed runs whose memory the kernel has back, by length.
    cold: [Vec<FrameIndex>; MAX_RUN],
    warm_frames: usize,
}

impl Arena {
    /// An arena with addresses for `frames` frames, fewer than 2^32.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn new(frames: usize, source: &MemorySource) -> io::Result<Self> {
        assert!(u32::try_from(frames).is_ok());
        let bytes = frames * PAGE_SIZE;
        Ok(Self {
            mapping: Arc::new(Mapping::reserve(bytes, source.take(bytes)?)?),
            frames,
            opened: 0,
            fresh: 0,
            warm: Default::default(),
            cold: Default::default(),
            warm_frames: 0,
        })
    }

    /// Whether there is a run whose memory we still hold.
    pub(crate) fn has_held(&self, len: ChainLen) -> bool {
        !self.warm[len.index()].is_empty()
    }

    /// Takes a run whose memory we still hold, its contents undefined, if there is one.
    pub(crate) fn take_held(&mut self, len: ChainLen) -> Option<FrameIndex> {
        let run = self.warm[len.index()].pop()?;
        self.warm_frames -= len.frames();
        Some(run)
    }

    /// Takes a run that has no memory yet: each of its frames gets some when it is first written.
    /// `None` if the kernel has no memory or addresses left.
    pub(crate) fn take_untouched(&mut self, len: ChainLen) -> Option<FrameIndex> {
        let cold = self.cold[len.index()].pop();
        cold.or_else(|| self.carve(len))
            .or_else(|| self.split_longer(len))
    }

    /// The start of a longer run whose memory the kernel has back. Only after adoptions, which cut what is free
    /// anew, can addresses be short.
    fn split_longer(&mut self, len: ChainLen) -> Option<FrameIndex> {
        let longer = (len.frames() + 1..=MAX_RUN).map(ChainLen::new);
        let (run, whole) = longer
            .filter_map(|longer| Some((self.cold[longer.index()].pop()?, longer)))
            .next()?;
        let rest = FrameIndex(run.0 + len.frames() as u32);
        let rest_len = ChainLen::new(whole.frames() - len.frames());
        self.cold[rest_len.index()].push(rest);
        Some(run)
    }

    fn carve(&mut self, len: ChainLen) -> Option<FrameIndex> {
        let end = self.fresh + len.frames();
        if end > self.opened {
            let opened = (self.opened + OPEN_STEP).min(self.frames);
            if end > opened {
                return None;
            }
            self.mapping
                .open(self.opened * PAGE_SIZE..opened * PAGE_SIZE)
                .ok()?;
            self.opened = opened;
        }
        let run = FrameIndex(self.fresh as u32);
        self.fresh = end;
        Some(run)
    }

    /// Takes back a run that was taken.
    pub(crate) fn give_back(&mut self, run: FrameIndex, len: ChainLen) {
        self.warm[len.index()].push(run);
        self.warm_frames += len.frames();
    }

    /// Freed frames whose memory we still hold.
    pub(crate) fn warm_frames(&self) -> usize {
        self.warm_frames
    }

    /// Takes freed runs out until at most `keep` warm frames are left. The caller releases their
    /// memory without holding a lock, and returns them with [`Arena::accept`].
    pub(crate) fn take_warm(&mut self, keep: usize) -> IdleRuns {
        let mut runs = Vec::new();
        for len in (1..=MAX_RUN).map(ChainLen::new) {
            // The runs freed first are the ones least likely to be in a cache.
            let list = &mut self.warm[len.index()];
            let surplus = self.warm_frames.saturating_sub(keep);
            let count = surplus.div_ceil(len.frames()).min(list.len());
            runs.extend(list.drain(..count).map(|run| (run, len)));
            self.warm_frames -= count * len.frames();
        }
        IdleRuns {
            mapping: Arc::clone(&self.mapping),
            runs,
            released: false,
        }
    }

    /// Takes back runs whose memory was released, or could not be.
    pub(crate) fn accept(&mut self, idle: IdleRuns) {
        for (run, len) in idle.runs {
            if idle.released {
                self.cold[len.index()].push(run);
            } else {
                self.give_back(run, len);
            }
        }
    }

    /// The bytes of a range, counted from the start of the arena.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.check(&range);
        // SAFETY: frames below `fresh` are accessible (invariant 2), any byte is a valid `u8`, and
        // writes need `&mut self`. The bytes of an `IdleRuns` may change meanwhile; whoever takes
        // one out owes that nothing refers to its runs, and the pool keeps no object in them.
        unsafe {
            let start = self.mapping.base().add(range.start);
            std::slice::from_raw_parts(start.as_ptr(), range.len())
        }
    }

    /// Has the cache fetch bytes that are going to be read, if that is possible; a hint.
    pub(crate) fn prefetch(&self, range: Range<usize>) {
        self.check(&range);
        #[cfg(target_arch = "x86_64")]
        for at in range.step_by(CACHE_LINE) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: the address lies in the mapping, and a prefetch neither reads nor faults.
            // Without it a copy waits for memory at the start of each object.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.mapping.base().add(at).as_ptr().cast()) };
        }
    }

    /// The bytes of a range, to write.
    pub(crate) fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        self.check(&range);
        crash_point();
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe {
            let start = self.mapping.base().add(range.start);
            std::slice::from_raw_parts_mut(start.as_ptr(), range.len())
        }
    }

    /// Copies `len` bytes within the arena.
    pub(crate) fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.check(&(from..from + len));
        self.check(&(to..to + len));
        crash_point();
        // SAFETY: both ranges are accessible, we hold `&mut self`, and `copy_to` allows overlap.
        unsafe {
            self.mapping
                .base()
                .add(from)
                .copy_to(self.mapping.base().add(to), len);
        };
    }

    fn check(&self, range: &Range<usize>) {
        let fresh = self.fresh * PAGE_SIZE;
        assert!(
            range.start <= range.end && range.end <= fresh,
            "{range:?} of {fresh} bytes"
        );
    }

    /// Has the runs that objects were found in be in use, and what is between them free, of an arena from which
    /// nothing was taken yet. `runs` are in the order of their addresses, and do not overlap.
    ///
    /// # Errors
    /// The kernel's, if it has no memory for tables of pages; or [`io::ErrorKind::InvalidData`] if they do overlap, or
    /// do not lie in the arena.
    pub(crate) fn adopt(
        &mut self,
        runs: impl Iterator<Item = (FrameIndex, ChainLen)>,
    ) -> io::Result<()> {
        debug_assert_eq!(self.fresh, 0);
        for (run, len) in runs {
            let (start, end) = (run.0 as usize, run.0 as usize + len.frames());
            if start < self.fresh || end > self.frames {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // Any of it may have been written to.
            while self.fresh < start {
                let len = ChainLen::new((start - self.fresh).min(MAX_RUN));
                self.give_back(FrameIndex(self.fresh as u32), len);
                self.fresh += len.frames();
            }
            self.fresh = end;
        }
        self.opened = self.fresh.next_multiple_of(OPEN_STEP).min(self.frames);
        self.mapping.open(0..self.opened * PAGE_SIZE)?;
        // What was taken last and given back lies behind all that is in use.
        let data = self.mapping.data_ranges()?;
        let behind = self.fresh * PAGE_SIZE;
        for data in data.into_iter().filter(|data| data.end > behind) {
            self.mapping.release(data.start.max(behind)..data.end)?;
        }
        Ok(())
    }

    /// Frames at the start of the arena that were ever taken.
    pub(crate) fn frames_ever_taken(&self) -> usize {
        self.fresh
    }

    /// Asserts the accounting, given how many frames the pool has in use:
    /// `fresh = in use + warm + cold`. No run may be out for release.
    pub(crate) fn check_accounting(&self, in_use: usize) {
        let sum = |lists: &[Vec<FrameIndex>; MAX_RUN]| -> usize {
            lists
                .iter()
                .zip(1..)
                .map(|(list, frames)| list.len() * frames)
                .sum()
        };
        let (warm, cold) = (sum(&self.warm), sum(&self.cold));
        assert_eq!(warm, self.warm_frames);
        assert_eq!(self.fresh, in_use + warm + cold, "warm {warm}, cold {cold}");
        assert!(self.fresh <= self.opened && self.opened <= self.frames);
    }
}

/// Freed runs on their way back to the kernel. They are in neither free list of their arena, and
/// until they are accepted there again nothing may look at their bytes.
#[must_use = "runs that are not given back to their arena are lost to it"]
pub(crate) struct IdleRuns {
    mapping: Arc<Mapping>,
    runs: Vec<(FrameIndex, ChainLen)>,
    released: bool,
}

impl IdleRuns {
    /// Gives the memory of all runs to the kernel, in as few calls as their addresses allow.
    ///
    /// # Errors
    /// The kernel's; the runs are as good as before, only not all released.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.runs.sort_unstable();
        let bytes = |&(run, len): &(FrameIndex, ChainLen)| {
            let start = run.0 as usize * PAGE_SIZE;
            start..start + len.bytes()
        };
        for neighbours in self.runs.chunk_by(|a, b| bytes(a).end == bytes(b).start) {
            if let [first, .., last] | [first @ last] = neighbours {
                self.mapping.release(bytes(first).start..bytes(last).end)?;
            }
        }
        self.released = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_disjoint_and_reused() {
        let mut arena = Arena::new(1000, &MemorySource::Process).expect("addresses");
        let lens = [3, 8, 1, 5, 3].map(ChainLen::new);
        let runs = lens.map(|len| arena.take_untouched(len).expect("a run"));
        for (i, (run, len)) in runs.iter().zip(lens).enumerate() {
            let start = run.0 as usize * PAGE_SIZE;
            arena
                .bytes_mut(start..start + len.bytes())
                .fill(i as u8 + 1);
        }
        for (i, (run, len)) in runs.iter().zip(lens).enumerate() {
            let start = run.0 as usize * PAGE_SIZE;
            assert!(
                arena
                    .bytes(start..start + len.bytes())
                    .iter()
                    .all(|&b| b == i as u8 + 1)
            );
        }
        arena.check_accounting(20);
        arena.give_back(runs[0], lens[0]);
        assert_eq!(arena.take_held(lens[4]), Some(runs[0]));
        assert_eq!(arena.take_held(lens[4]), None);
        arena.check_accounting(20);
    }

    #[test]
    fn released_runs_read_as_zero_and_come_back() {
        let mut arena = Arena::new(100, &MemorySource::Process).expect("addresses");
        let len = ChainLen::new(4);
        let runs = [(); 3].map(|()| arena.take_untouched(len).expect("a run"));
        arena.bytes_mut(0..3 * len.bytes()).fill(0xaa);
        for run in runs {
            arena.give_back(run, len);
        }
        let mut idle = arena.take_warm(4);
        assert_eq!((idle.runs.len(), arena.warm_frames()), (2, 4));
        idle.release().expect("madvise");
        arena.accept(idle);
        arena.check_accounting(0);
        assert_eq!(arena.bytes(0..1), [0]);
        let kept = 2 * len.bytes();
        assert_eq!(arena.bytes(kept..kept + 1), [0xaa]);
        let untouched = arena.take_untouched(len).expect("a run");
        assert!(untouched.0 as usize * PAGE_SIZE < kept);
    }

    #[test]
    fn ends_with_the_address_space() {
        let mut arena = Arena::new(16, &MemorySource::Process).expect("addresses");
        let runs = std::iter::from_fn(|| arena.take_untouched(ChainLen::new(8))).count();
        assert_eq!(runs, 2);
        assert!(arena.take_untouched(ChainLen::new(1)).is_none());
    }
}
