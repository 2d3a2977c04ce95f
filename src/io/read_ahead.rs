//! What was read of the backing lately, and a little beyond: eviction puts neighbours on the device
//! near each other, so who reads pages in order finds the next records here. They are in the appends
//! of a few batches that were collected about the same time, hence several windows.
//!
//! What is written at an offset under one sequence number stays, so a window of that number holds it,
//! or what was there before it was written, which does not verify. One mutex, which is held to look
//! and to copy, never while the backing is read; no other lock is taken under it.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use super::sequential::Streams;
use crate::spill::{BLOCK, BlockBuf, RecordAddress, SEGMENT_BYTES, SegmentIndex, Store};
use crate::sync::Mutex;
use crate::units::PageIndex;

/// Bytes read beyond what is asked for once pages are read in order.
const AHEAD: u32 = 64 << 10;

/// Places that are remembered.
const WINDOWS: usize = 24;

/// Bytes of a segment that were written under one sequence number, and may be followed by others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: SegmentIndex,
    pub(super) sequence: u64,
    pub(super) bytes: Range<u32>,
}

impl Place {
    /// Where in its store the first of the bytes is.
    fn start(&self) -> u64 {
        self.segment.within_store().byte() + u64::from(self.bytes.start)
    }

    /// Where a record of `len` bytes is.
    pub(super) fn of(record: RecordAddress, len: usize, sequence: u64) -> Self {
        let segment = SegmentIndex::of(record);
        let start = (record.byte() - segment.byte()) as u32;
        Self {
            segment,
            sequence,
            bytes: start..start + len as u32,
        }
    }

    /// Extends this place to the end of another that starts in it or behind it, if both are of one
    /// segment and less than `gap` apart; returns whether they are.
    pub(super) fn join(&mut self, next: &Self, gap: u32, most: u32) -> bool {
        let fits = (self.segment, self.sequence) == (next.segment, next.sequence)
            && next.bytes.start <= self.bytes.end + gap
            && next.bytes.end - self.bytes.start <= most;
        if fits {
            self.bytes.end = self.bytes.end.max(next.bytes.end);
        }
        fits
    }

    fn covers(&self, other: &Self) -> bool {
        (self.segment, self.sequence) == (other.segment, other.sequence)
            && self.bytes.start <= other.bytes.start
            && other.bytes.end <= self.bytes.end
    }
}

/// What a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// What was read earlier: if it does not verify, it may have been read too early.
    Window,
    Backing,
}

/// What was read in one go.
#[derive(Default)]
struct Window {
    /// Where `bytes` are from.
    place: Option<Place>,
    bytes: BlockBuf,
    epoch: u64,
}

#[derive(Default)]
struct State {
    /// The one used last is the first.
    windows: VecDeque<Window>,
    readers: Streams,
    /// Counts [`ReadAhead::forget`]: what was being read then is not kept.
    epoch: u64,
}

/// The windows of a device.
#[derive(Default)]
pub(crate) struct ReadAhead {
    state: Mutex<State>,
}

impl ReadAhead {
    /// Fills `buf` with the bytes of a place, which are a record of `page`; a `small` request may
    /// be one of many in order.
    ///
    /// # Errors
    /// The backing's.
    pub(super) fn read(
        &self,
        backing: &dyn Store,
        page: PageIndex,
        small: bool,
        place: &Place,
        buf: &mut [u8],
    ) -> io::Result<Source> {
        let mut state = self.state.lock();
        let in_order = small && state.readers.note(page);
        if state.copy(place, buf) {
            return Ok(Source::Window);
        }
        drop(state);
        // A read beyond what there is fails; what is asked for may be there all the same.
        if in_order && let Ok(window) = self.load(backing, place.clone(), AHEAD) {
            window.copy(place, buf);
            self.keep(window);
            return Ok(Source::Backing);
        }
        backing.read_at(place.start(), buf)?;
        Ok(Source::Backing)
    }

    /// Notes that a small request reads a page; returns whether the pages before it were read, in
    /// order.
    pub(super) fn is_in_order(&self, page: PageIndex) -> bool {
        self.state.lock().readers.note(page)
    }

    /// Notes that a request that is not small reads so many pages, from `page` on.
    pub(super) fn note_large(&self, page: PageIndex, pages: usize) {
        self.state.lock().readers.note_large(page, pages);
    }

    /// Whether a scan has come by a page, not long ago.
    pub(super) fn is_scanned(&self, page: PageIndex) -> bool {
        self.state.lock().readers.is_scanned(page)
    }

    /// Reads a place in one go for the reads that follow. That it fails is theirs to find.
    pub(super) fn prepare(&self, backing: &dyn Store, place: Place) {
        if self.state.lock().find(&place).is_none()
            && let Ok(window) = self.load(backing, place, 0)
        {
            self.keep(window);
        }
    }

    /// Forgets all that was read, also what is being read.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        state.windows.clear();
        state.epoch += 1;
    }

    fn keep(&self, window: Window) {
        let mut state = self.state.lock();
        if window.epoch == state.epoch {
            state.windows.push_front(window);
        }
    }

    /// Reads the blocks of a place and `ahead` bytes more, to the memory of the window that was
    /// used longest ago.
    fn load(&self, backing: &dyn Store, mut place: Place, ahead: u32) -> io::Result<Window> {
        let mut window = self.state.lock().take_oldest();
        let block = BLOCK as u32;
        let end = (place.bytes.end + ahead).next_multiple_of(block);
        place.bytes = place.bytes.start / block * block..end.min(SEGMENT_BYTES as u32);
        window.bytes.resize(place.bytes.len());
        backing.read_at(place.start(), &mut window.bytes)?;
        window.place = Some(place);
        Ok(window)
    }
}

impl State {
    fn find(&self, place: &Place) -> Option<usize> {
        let covers = |window: &Window| window.place.as_ref().is_some_and(|at| at.covers(place));
        self.windows.iter().position(covers)
    }

    fn copy(&mut self, place: &Place, buf: &mut [u8]) -> bool {
        let Some(window) = self.find(place).and_then(|at| self.windows.remove(at)) else {
            return false;
        };
        window.copy(place, buf);
        self.windows.push_front(window);
        true
    }

    fn take_oldest(&mut self) -> Window {
        let full = self.windows.len() >= WINDOWS;
        let oldest = if full { self.windows.pop_back() } else { None };
        let mut window = oldest.unwrap_or_default();
        window.epoch = self.epoch;
        window
    }
}

impl Window {
    /// Copies from a place that the window covers.
    fn copy(&self, place: &Place, buf: &mut [u8]) {
        if let Some(window) = &self.place {
            let from = (place.bytes.start - window.bytes.start) as usize;
            buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::{Backing, FaultyBacking, MAX_RECORD_LEN};

    fn place(at: u32) -> Place {
        Place::of(RecordAddress::from_byte(u64::from(at)), 100, 1)
    }

    #[test]
    fn what_was_read_too_early_is_read_again_once_forgotten() {
        let backing = FaultyBacking::new(4);
        let mut data = BlockBuf::default();
        data.pad_to(8 * MAX_RECORD_LEN.next_multiple_of(BLOCK));
        backing.write_at(0, &data).expect("written");
        let (ahead, mut buf) = (ReadAhead::default(), [1; 100]);
        for page in 0..4 {
            let read = ahead.read(
                &backing,
                PageIndex(page),
                true,
                &place(page * 112),
                &mut buf,
            );
            let from = [Source::Backing, Source::Window][usize::from(page == 3)];
            assert_eq!((read.expect("read"), buf), (from, [0; 100]));
        }
        data.fill(7);
        backing.write_at(0, &data).expect("written");
        ahead.forget();
        let read = ahead.read(&backing, PageIndex(4), true, &place(448), &mut buf);
        assert_eq!((read.expect("read"), buf), (Source::Backing, [7; 100]));
    }
}
