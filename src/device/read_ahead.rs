//! What a thread has read of the backing lately, and a little beyond: eviction puts neighbours on
//! the device near each other, so who reads in order finds the next records here.
//!
//! Nothing has to be invalidated. What is written at an offset of one use of a segment stays, so a
//! window holds it, or what was there before it was written, which does not verify. Locks nothing.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use crate::spill::{BLOCK, Backing, BlockBuf, RecordAddress, SEGMENT_BYTES, SegmentIndex};

/// Bytes read beyond what is asked for once reads are in order.
const AHEAD: u32 = 128 << 10;

/// Most bytes between two reads that are in order.
const NEAR: u32 = 64 << 10;

/// Reads in order before the first that goes beyond.
const IN_ORDER: u32 = 2;

/// Bytes of a use of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: SegmentIndex,
    pub(super) sequence: u64,
    pub(super) bytes: Range<u32>,
}

impl Place {
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

    /// Whether `next` goes on where this one ends.
    fn leads_to(&self, next: &Self) -> bool {
        (self.segment, self.sequence) == (next.segment, next.sequence)
            && (self.bytes.start..self.bytes.end + NEAR).contains(&next.bytes.start)
    }
}

/// What a read came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// What was read earlier: if it does not verify, it may have been read too early.
    Window,
    Backing,
}

#[derive(Default)]
struct Window {
    /// Where `bytes` are from.
    place: Option<Place>,
    bytes: BlockBuf,
    last: Option<Place>,
    /// Reads in order up to the last.
    in_order: u32,
}

thread_local! {
    static WINDOW: RefCell<Window> = RefCell::default();
}

/// Fills `buf` with the bytes of a place.
///
/// # Errors
/// The backing's.
pub(super) fn read(backing: &dyn Backing, place: &Place, buf: &mut [u8]) -> io::Result<Source> {
    WINDOW.with_borrow_mut(|window| {
        window.note(place);
        if window.copy(place, buf) {
            return Ok(Source::Window);
        }
        // A read beyond what there is fails; what is asked for may be there all the same.
        if window.in_order >= IN_ORDER
            && window.load(backing, place.clone(), AHEAD).is_ok()
            && window.copy(place, buf)
        {
            return Ok(Source::Backing);
        }
        backing.read(place.segment.within_store(), place.bytes.start, buf)?;
        Ok(Source::Backing)
    })
}

/// Reads a place in one go for the reads that follow. That it fails is theirs to find.
pub(super) fn load(backing: &dyn Backing, place: Place) {
    WINDOW.with_borrow_mut(|window| {
        let goes_on = window
            .last
            .as_ref()
            .is_some_and(|last| last.leads_to(&place));
        let loaded = goes_on && window.load(backing, place.clone(), AHEAD).is_ok();
        if !loaded {
            let _ = window.load(backing, place, 0);
        }
    });
}

/// Forgets what was read.
pub(super) fn forget() {
    WINDOW.with_borrow_mut(|window| window.place = None);
}

impl Window {
    fn note(&mut self, place: &Place) {
        let in_order = self.last.as_ref().is_some_and(|last| last.leads_to(place));
        self.in_order = if in_order { self.in_order + 1 } else { 0 };
        self.last = Some(place.clone());
    }

    fn copy(&self, place: &Place, buf: &mut [u8]) -> bool {
        let Some(window) = self.place.as_ref().filter(|window| window.covers(place)) else {
            return false;
        };
        let from = (place.bytes.start - window.bytes.start) as usize;
        buf.copy_from_slice(&self.bytes[from..from + buf.len()]);
        true
    }

    /// Reads the blocks of a place and `ahead` bytes more.
    fn load(&mut self, backing: &dyn Backing, mut place: Place, ahead: u32) -> io::Result<()> {
        let block = BLOCK as u32;
        let end = (place.bytes.end + ahead).next_multiple_of(block);
        place.bytes = place.bytes.start / block * block..end.min(SEGMENT_BYTES as u32);
        self.place = None;
        self.bytes.resize(place.bytes.len());
        let segment = place.segment.within_store();
        backing.read(segment, place.bytes.start, &mut self.bytes)?;
        self.place = Some(place);
        Ok(())
    }
}
