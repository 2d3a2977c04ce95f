//! The log: gives records places in segments, and knows which segments are free.
//!
//! A segment goes round: free, open (one that is appended to), sealed, free again once no slot
//! refers to it and no append to it is under way. The log belongs to the writeback thread, so
//! nothing here locks.
//!
//! Invariant: a place in a segment is given out at most once under one sequence number; there is a
//! new one for each use of a segment, and for a place that is given out again because an append to
//! it failed. So no two records ever have the same address and sequence number, which make a nonce,
//! and what a failed append left is no record of the next.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::address::{RecordAddress, SEGMENT_BYTES, STORES, SegmentIndex, StoreIndex};
use super::backing::Backing;
use super::blocks::{BLOCK, BlockBuf};
use super::record::RecordFormat;
use super::segment::{MAX_RETRIES, SegmentTable};
use super::stores::Stores;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::time::Instant;
use crate::sync::{Protection, without};

/// What a segment starts with: magic, version, sequence number, CRC-32C of these.
const MAGIC: [u8; 8] = *b"UZRAMSEG";
const VERSION: u32 = 1;
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_LEN: u32 = 32;

/// Bytes that an append may always have: less room than this, and the segment is sealed. Multiple
/// of [`BLOCK`].
pub(crate) const MIN_APPEND: u32 = 64 << 10;

pub(super) fn segment_header(sequence: u64) -> [u8; SEGMENT_HEADER_LEN as usize] {
    let mut header = [0; SEGMENT_HEADER_LEN as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..20]);
    header[20..24].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Whether `start` is the start of a segment that some device wrote.
pub(super) fn is_segment(start: &[u8]) -> bool {
    start.get(..24).is_some_and(|header| {
        header[..8] == MAGIC && crc32c::crc32c(&header[..20]).to_le_bytes() == header[20..24]
    })
}

/// How far apart the sequence numbers of two uses of segments are.
const USE: u64 = MAX_RETRIES + 1;

/// Every segment is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogFull;

/// What an append moves. Each kind has a segment of its own to go to, so that records that lived
/// long enough to be moved are not mixed with new ones: they die at different rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// Objects that leave memory.
    Evicted,
    /// Records that cleaning moves.
    Moved,
}

impl Head {
    const ALL: [Self; 2] = [Self::Evicted, Self::Moved];
}

/// Where an append goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    segment: SegmentIndex,
    offset: u32,
    sequence: u64,
}

impl Target {
    /// Bytes that fit: a multiple of [`BLOCK`].
    pub(crate) fn room(&self) -> usize {
        (SEGMENT_BYTES - u64::from(self.offset)) as usize
    }

    /// What the appended bytes start with: a new segment's header.
    pub(crate) fn start(&self, out: &mut BlockBuf) {
        if self.offset == 0 {
            out.extend_from_slice(&segment_header(self.sequence));
        }
    }

    /// Bytes of [`Target::start`].
    pub(crate) fn start_len(&self) -> usize {
        if self.offset == 0 {
            SEGMENT_HEADER_LEN as usize
        } else {
            0
        }
    }

    /// The address of a record that starts `at` bytes into the append.
    pub(crate) fn address(&self, at: usize) -> RecordAddress {
        RecordAddress::from_byte(self.segment.byte() + u64::from(self.offset) + at as u64)
    }

    /// Seals the record of an object of `len` bytes, `at` bytes into `append`, for its place.
    pub(crate) fn seal(&self, format: &RecordFormat, append: &mut [u8], at: usize, len: usize) {
        let (bytes, address) = (&mut append[at..], self.address(at));
        format.seal(bytes, len, address, self.sequence);
    }

    /// Writes the append. Any thread may call it.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) fn write(&self, backing: &dyn Backing, append: &[u8]) -> io::Result<()> {
        let at = self.segment.within_store().byte() + u64::from(self.offset);
        backing.write_at(at, append)
    }
}

/// Where records are, back to back, in each of an image's segments.
#[derive(Debug, Default)]
pub(crate) struct Imported(pub(super) Vec<Vec<Range<u32>>>);

impl Imported {
    /// Whether there are no records.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a record of `len` bytes, counted from the image's start; returns whether it is the first of its
    /// segment.
    pub(crate) fn add(&mut self, record: RecordAddress, len: usize) -> bool {
        let segment = SegmentIndex::of(record);
        let (at, start) = (segment.0 as usize, (record.byte() - segment.byte()) as u32);
        if self.0.len() <= at {
            self.0.resize(at + 1, Vec::new());
        }
        let ranges = &mut self.0[at];
        let is_first = ranges.is_empty();
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += len as u32,
            _ => ranges.push(start..start + len as u32),
        }
        is_first
    }
}

/// What the log has used and written, for statistics.
#[derive(Debug, Default)]
pub(crate) struct LogCounts {
    used_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl LogCounts {
    /// Bytes in segments that are not free.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Relaxed)
    }

    /// Bytes ever written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Relaxed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Open,
    Sealed,
    /// Sealed, and its live records are being moved.
    Cleaning,
    /// Sealed, and a record in it did not verify: it is never cleaned, only emptied.
    Damaged,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) state: State,
    /// Bytes given out.
    pub(super) end: u32,
    /// Bytes written, or under way. An image's count nowhere else.
    pub(super) used: u32,
    /// Appends under way.
    pub(super) in_flight: u32,
    /// When to try again to read it, which failed.
    pub(super) read_again: Option<Instant>,
    /// How often in a row that failed.
    pub(super) failed_reads: u32,
    /// Where the records of appends that succeeded are.
    pub(super) written: Vec<Range<u32>>,
}

impl Segment {
    pub(super) const FREE: Self = Self {
        state: State::Free,
        end: 0,
        used: 0,
        in_flight: 0,
        read_again: None,
        failed_reads: 0,
        written: Vec::new(),
    };
}

/// Bytes that an append of `len` takes.
fn padded(len: usize) -> u32 {
    len.next_multiple_of(BLOCK) as u32
}

/// The segments of one backing.
#[derive(Default)]
pub(super) struct Space {
    /// Those that have been used: the first so many of the backing.
    pub(super) segments: Vec<Segment>,
    /// The free ones among them; the lowest is taken first, so that a file stays short.
    pub(super) free: BTreeSet<SegmentIndex>,
    /// Segments the backing may hold.
    pub(super) capacity: u32,
}

/// The log.
pub(crate) struct SegmentLog {
    pub(super) stores: Arc<Stores>,
    pub(super) table: Arc<SegmentTable>,
    counts: Arc<LogCounts>,
    pub(super) spaces: [Space; STORES],
    /// Which of them is appended to; none without a backing.
    pub(super) current: Option<StoreIndex>,
    /// Which of them was before, and is again if it cannot leave.
    pub(super) retired: Option<StoreIndex>,
    /// The segment of the image that is looked at next, to be emptied.
    pub(super) image_cursor: u32,
    /// The open segment of each [`Head`].
    heads: [Option<SegmentIndex>; 2],
    pub(super) last_sequence: u64,
}

impl SegmentLog {
    /// A log without a backing, whose segment uses have numbers behind `sequence`.
    pub(crate) fn new(
        stores: Arc<Stores>,
        table: Arc<SegmentTable>,
        counts: Arc<LogCounts>,
        sequence: u64,
    ) -> Self {
        Self {
            stores,
            table,
            counts,
            spaces: Default::default(),
            current: None,
            image_cursor: 0,
            retired: None,
            heads: [None; 2],
            last_sequence: sequence,
        }
    }

    /// Where to append at least [`MIN_APPEND`] bytes, leaving `spare` segments free.
    ///
    /// # Errors
    /// [`LogFull`] if that takes a segment more than there are.
    pub(crate) fn target(&mut self, head: Head, spare: u32) -> Result<Target, LogFull> {
        let segment = match self.heads[head as usize] {
            Some(open) if self.room(open) >= MIN_APPEND => open,
            _ => self.open_segment(head, spare)?,
        };
        let offset = self.segment(segment).end;
        let place = RecordAddress::from_byte(segment.byte() + u64::from(offset));
        Ok(Target {
            segment,
            offset,
            sequence: self.table.sequence_at(place),
        })
    }

    fn open_segment(&mut self, head: Head, spare: u32) -> Result<SegmentIndex, LogFull> {
        // Sealed first: it may be empty, or sparse enough to clean.
        self.seal(head);
        let store = self.current.ok_or(LogFull)?;
        if self.free_segments() <= spare {
            return self.share_or_reopen(head).ok_or(LogFull);
        }
        let space = &mut self.spaces[usize::from(store.0)];
        let segment = space.free.pop_first().unwrap_or_else(|| {
            space.segments.push(Segment::FREE);
            SegmentIndex::in_store(store, space.segments.len() as u32 - 1)
        });
        if !without(Protection::SegmentUsesNumbered) {
            self.last_sequence += USE;
        }
        self.table.set_sequence(segment, self.last_sequence);
        *self.segment_mut(segment) = Segment {
            state: State::Open,
            ..Segment::FREE
        };
        self.heads[head as usize] = Some(segment);
        Ok(segment)
    }

    /// Short of segments: takes the other head's, or opens the sealed one with the most room, if
    /// there is enough (an append to it failed once).
    fn share_or_reopen(&mut self, head: Head) -> Option<SegmentIndex> {
        let other = &self.heads[1 - head as usize];
        let segment = if other.is_some_and(|open| self.room(open) >= MIN_APPEND) {
            self.heads[1 - head as usize].take()?
        } else {
            let roomiest = self.sealed().max_by_key(|&index| self.room(index))?;
            if self.room(roomiest) < MIN_APPEND {
                return None;
            }
            self.segment_mut(roomiest).state = State::Open;
            roomiest
        };
        self.heads[head as usize] = Some(segment);
        Some(segment)
    }

    /// The sealed segments of the current backing.
    pub(super) fn sealed(&self) -> impl Iterator<Item = SegmentIndex> {
        let stores = self.current.into_iter();
        stores.flat_map(|store| self.sealed_in(store))
    }

    fn sealed_in(&self, store: StoreIndex) -> impl Iterator<Item = SegmentIndex> {
        let count = self.spaces[usize::from(store.0)].segments.len() as u32;
        let indices = (0..count).map(move |segment| SegmentIndex::in_store(store, segment));
        indices.filter(|&index| self.segment(index).state == State::Sealed)
    }

    /// Segments of the current backing that could still be opened.
    pub(crate) fn free_segments(&self) -> u32 {
        self.current.map_or(0, |store| {
            let space = &self.spaces[usize::from(store.0)];
            let unused = space.capacity.saturating_sub(space.segments.len() as u32);
            space.free.len() as u32 + unused
        })
    }

    /// Gives an append of `len` bytes, which are padded to whole blocks, its place.
    pub(crate) fn begin_append(&mut self, target: &Target, len: usize) {
        let bytes = padded(len);
        debug_assert!(len <= target.room());
        let segment = self.segment_mut(target.segment);
        debug_assert!(segment.state == State::Open && segment.end == target.offset);
        segment.end += bytes;
        segment.used += bytes;
        segment.in_flight += 1;
        self.counts.used_bytes.fetch_add(u64::from(bytes), Relaxed);
    }

    /// Ends an append, after its slots were pointed at it. After one that failed the segment is
    /// sealed: the fault may be of that place. The place can be given out again if no append behind
    /// it began.
    pub(crate) fn end_append(&mut self, target: &Target, len: usize, written: bool) {
        let bytes = padded(len);
        let segment = self.segment_mut(target.segment);
        segment.in_flight -= 1;
        if written {
            let records = target.offset + target.start_len() as u32..target.offset + len as u32;
            segment.written.push(records);
            self.counts
                .written_bytes
                .fetch_add(u64::from(bytes), Relaxed);
        } else {
            segment.used -= bytes;
            let is_last = segment.end == target.offset + bytes && segment.in_flight == 0;
            if is_last && self.table.retry_from(target.segment, target.offset) {
                self.segment_mut(target.segment).end = target.offset;
            }
            self.counts.used_bytes.fetch_sub(u64::from(bytes), Relaxed);
            for head in Head::ALL {
                if self.heads[head as usize] == Some(target.segment) {
                    self.seal(head);
                }
            }
        }
        self.free_if_empty(target.segment);
    }

    pub(super) fn add_used(&self, bytes: u64) {
        self.counts.used_bytes.fetch_add(bytes, Relaxed);
    }

    fn seal(&mut self, head: Head) {
        if let Some(open) = self.heads[head as usize].take() {
            self.segment_mut(open).state = State::Sealed;
            self.free_if_empty(open);
        }
    }

    pub(super) fn seal_heads(&mut self) {
        self.seal(Head::Evicted);
        self.seal(Head::Moved);
    }

    /// Frees a sealed segment that no slot refers to and no append goes to.
    pub(super) fn free_if_empty(&mut self, segment: SegmentIndex) {
        let &Segment {
            state,
            used,
            in_flight,
            ..
        } = self.segment(segment);
        let sealed = matches!(state, State::Sealed | State::Damaged);
        if !sealed || in_flight > 0 || self.table.live(segment) != 0 {
            return;
        }
        if let Some(backing) = self.stores.of(segment) {
            backing.discard(segment.within_store().range());
        }
        if !segment.is_in_image() {
            self.counts.used_bytes.fetch_sub(u64::from(used), Relaxed);
        }
        *self.segment_mut(segment) = Segment::FREE;
        self.space_mut(segment.store()).free.insert(segment);
    }

    /// Frees segments that have been emptied, about `most` of them; returns for how many it did
    /// anything: fewer than `most`, and those were all.
    pub(crate) fn free_emptied(&mut self, most: usize) -> usize {
        for looked_at in 0..most {
            let Some(segment) = self.table.pop_emptied() else {
                return looked_at + self.seal_emptied_heads();
            };
            // Its backing may have gone since.
            let space = &self.spaces[usize::from(segment.store().0)];
            if (segment.within_store().0 as usize) < space.segments.len() {
                self.free_if_empty(segment);
            }
        }
        most
    }

    /// Where nothing is live the open segments are freed as well; returns how many were.
    fn seal_emptied_heads(&mut self) -> usize {
        if self.table.live_bytes() > 0 {
            return 0;
        }
        let mut sealed = 0;
        for head in Head::ALL {
            let idle = |open| self.segment(open).in_flight == 0 && self.segment(open).end > 0;
            if self.heads[head as usize].is_some_and(idle) {
                self.seal(head);
                sealed += 1;
            }
        }
        sealed
    }

    /// Asserts that the counts add up, given the live bytes of each segment; no append may be
    /// under way.
    pub(crate) fn check(&self, live: &dyn Fn(SegmentIndex) -> u32) {
        let mut used = 0;
        for store in (0..STORES as u8).map(StoreIndex) {
            let space = &self.spaces[usize::from(store.0)];
            for (at, segment) in (0..).zip(&space.segments) {
                let index = SegmentIndex::in_store(store, at);
                assert_eq!(self.table.live(index), live(index), "{index:?}");
                assert!(live(index) <= segment.used && segment.used <= segment.end);
                assert_eq!(segment.in_flight, 0);
                assert_eq!(segment.state == State::Free, space.free.contains(&index));
                let is_open = self.heads.contains(&Some(index));
                assert_eq!(segment.state == State::Open, is_open);
                used += match store {
                    StoreIndex::IMAGE => 0,
                    _ => u64::from(segment.used),
                };
            }
        }
        assert_eq!(self.counts.used_bytes.load(Relaxed), used);
    }

    fn room(&self, segment: SegmentIndex) -> u32 {
        SEGMENT_BYTES as u32 - self.segment(segment).end
    }

    pub(super) fn segment(&self, index: SegmentIndex) -> &Segment {
        &self.spaces[usize::from(index.store().0)].segments[index.within_store().0 as usize]
    }

    pub(super) fn segment_mut(&mut self, index: SegmentIndex) -> &mut Segment {
        &mut self.space_mut(index.store()).segments[index.within_store().0 as usize]
    }

    pub(super) fn space_mut(&mut self, store: StoreIndex) -> &mut Space {
        &mut self.spaces[usize::from(store.0)]
    }
}

#[cfg(test)]
pub(super) mod tests;
