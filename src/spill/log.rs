//! The log: appends records to segments, and knows which segments are free.
//!
//! A segment goes round: free, open (the one that is appended to), sealed, free again once no slot
//! refers to it. The log belongs to the writeback thread, so nothing here locks.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::backing::Backing;
use super::record::{self, RecordAddress};
use super::segment::{SEGMENT_BYTES, SegmentIndex, SegmentTable};

/// What a segment starts with: magic, version, sequence number, CRC-32C of these.
const MAGIC: [u8; 8] = *b"UZRAMSEG";
const VERSION: u32 = 1;
/// Bytes before the first record.
pub(crate) const SEGMENT_HEADER_LEN: u32 = 32;

/// Bytes that an append may always have: less room than this, and the segment is sealed.
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

/// Every segment is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogFull;

/// Where the next append goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    segment: SegmentIndex,
    offset: u32,
    sequence: u64,
}

impl Target {
    /// Bytes that fit.
    pub(crate) fn room(&self) -> usize {
        (SEGMENT_BYTES - u64::from(self.offset)) as usize
    }

    /// What the appended bytes start with: a new segment's header.
    pub(crate) fn start(&self, out: &mut Vec<u8>) {
        if self.offset == 0 {
            out.extend_from_slice(&segment_header(self.sequence));
        }
    }

    /// The address of a record that starts `at` bytes into the append.
    pub(crate) fn address(&self, at: usize) -> RecordAddress {
        RecordAddress::from_byte(self.segment.byte() + u64::from(self.offset) + at as u64)
    }

    /// Writes the checksum of the record of an object of `len` bytes, `at` bytes into `append`.
    pub(crate) fn seal(&self, append: &mut [u8], at: usize, len: usize) {
        record::seal(&mut append[at..], len, self.address(at), self.sequence);
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
enum State {
    Free,
    Open,
    Sealed,
    /// Sealed, and its live records are being moved.
    Cleaning,
    /// Sealed, and a record in it did not verify: it is never cleaned, only emptied.
    Damaged,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    state: State,
    /// Bytes appended.
    used: u32,
}

/// The log.
pub(crate) struct SegmentLog {
    backing: Arc<dyn Backing>,
    table: Arc<SegmentTable>,
    counts: Arc<LogCounts>,
    /// Segments `0..segments.len()` have been used.
    segments: Vec<Segment>,
    /// The free ones among them; the lowest is taken first, so that a file stays short.
    free: BTreeSet<SegmentIndex>,
    open: Option<SegmentIndex>,
    last_sequence: u64,
}

impl SegmentLog {
    pub(crate) fn new(
        backing: Arc<dyn Backing>,
        table: Arc<SegmentTable>,
        counts: Arc<LogCounts>,
    ) -> Self {
        Self {
            backing,
            table,
            counts,
            segments: Vec::new(),
            free: BTreeSet::new(),
            open: None,
            last_sequence: 0,
        }
    }

    /// Where to append at least [`MIN_APPEND`] bytes, leaving `spare` segments free.
    ///
    /// # Errors
    /// [`LogFull`] if that takes a segment more than there are.
    pub(crate) fn target(&mut self, spare: u32) -> Result<Target, LogFull> {
        let segment = match self.open {
            Some(open) if self.room(open) >= MIN_APPEND => open,
            _ => self.open_segment(spare)?,
        };
        let offset = self.segment(segment).used;
        Ok(Target {
            segment,
            offset,
            sequence: self.table.sequence(segment),
        })
    }

    fn open_segment(&mut self, spare: u32) -> Result<SegmentIndex, LogFull> {
        // Sealed first: it may be empty, or sparse enough to clean.
        self.seal_open();
        if self.free_segments() <= spare {
            return self.reopen().ok_or(LogFull);
        }
        let segment = self.free.pop_first().unwrap_or_else(|| {
            self.segments.push(Segment {
                state: State::Free,
                used: 0,
            });
            SegmentIndex(self.segments.len() as u32 - 1)
        });
        self.last_sequence += 1;
        self.table.set_sequence(segment, self.last_sequence);
        *self.segment_mut(segment) = Segment {
            state: State::Open,
            used: 0,
        };
        self.open = Some(segment);
        Ok(segment)
    }

    /// Opens the sealed segment with the most room again, if one has enough: an append to it
    /// failed once.
    fn reopen(&mut self) -> Option<SegmentIndex> {
        let roomiest = self.sealed().max_by_key(|&index| self.room(index))?;
        if self.room(roomiest) < MIN_APPEND {
            return None;
        }
        self.segment_mut(roomiest).state = State::Open;
        self.open = Some(roomiest);
        Some(roomiest)
    }

    fn sealed(&self) -> impl Iterator<Item = SegmentIndex> {
        let indices = (0..self.segments.len() as u32).map(SegmentIndex);
        indices.filter(|&index| self.segment(index).state == State::Sealed)
    }

    /// Segments that could still be opened.
    pub(crate) fn free_segments(&self) -> u32 {
        self.free.len() as u32 + (self.table.len() - self.segments.len() as u32)
    }

    /// Writes `append` at `target`. After an error the segment is sealed: the fault may be of
    /// that place.
    ///
    /// # Errors
    /// The backing's.
    pub(crate) fn append(&mut self, target: &Target, append: &[u8]) -> io::Result<()> {
        debug_assert_eq!(self.open, Some(target.segment));
        let written = self.backing.write(target.segment, target.offset, append);
        if written.is_err() {
            self.seal_open();
            return written;
        }
        let bytes = append.len() as u64;
        self.segment_mut(target.segment).used += bytes as u32;
        self.counts.used_bytes.fetch_add(bytes, Relaxed);
        self.counts.written_bytes.fetch_add(bytes, Relaxed);
        Ok(())
    }

    fn seal_open(&mut self) {
        if let Some(open) = self.open.take() {
            self.segment_mut(open).state = State::Sealed;
            self.free_if_empty(open);
        }
    }

    /// Frees a sealed segment that no slot refers to.
    pub(crate) fn free_if_empty(&mut self, segment: SegmentIndex) {
        let Segment { state, used } = self.segment(segment);
        if !matches!(state, State::Sealed | State::Damaged) || self.table.live(segment) != 0 {
            return;
        }
        self.backing.discard(segment);
        self.counts.used_bytes.fetch_sub(u64::from(used), Relaxed);
        *self.segment_mut(segment) = Segment {
            state: State::Free,
            used: 0,
        };
        self.free.insert(segment);
    }

    /// Frees all segments that have been emptied.
    pub(crate) fn free_emptied(&mut self) {
        while let Some(segment) = self.table.pop_emptied() {
            self.free_if_empty(segment);
        }
        // Nothing refers to the open segment either, and nothing else does: start afresh.
        if let Some(open) = self.open
            && self.table.live_bytes() == 0
            && self.segment(open).used > 0
        {
            self.seal_open();
        }
    }

    /// The sealed segment with the fewest live bytes, and how many.
    pub(crate) fn emptiest(&self) -> Option<(SegmentIndex, u32)> {
        self.sealed()
            .map(|index| (index, self.table.live(index)))
            .min_by_key(|&(_, live)| live)
    }

    /// Reads all that was appended to a sealed segment, and keeps it from being appended to until
    /// [`SegmentLog::end_cleaning`].
    ///
    /// # Errors
    /// The backing's; the segment is as it was.
    pub(crate) fn begin_cleaning(
        &mut self,
        segment: SegmentIndex,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        out.resize(self.segment(segment).used as usize, 0);
        self.backing.read(segment, 0, out)?;
        self.segment_mut(segment).state = State::Cleaning;
        Ok(())
    }

    /// Frees a segment that was cleaned, or seals it again if anything in it is still live. One
    /// that is `damaged` is left alone from now on.
    pub(crate) fn end_cleaning(&mut self, segment: SegmentIndex, damaged: bool) {
        self.segment_mut(segment).state = if damaged {
            State::Damaged
        } else {
            State::Sealed
        };
        self.free_if_empty(segment);
    }

    /// Asserts that the counts add up, given the live bytes of each segment.
    pub(crate) fn check(&self, live: &dyn Fn(SegmentIndex) -> u32) {
        let mut used = 0;
        for (index, segment) in (0..).map(SegmentIndex).zip(&self.segments) {
            assert_eq!(self.table.live(index), live(index), "{index:?}");
            assert!(live(index) <= segment.used);
            assert_eq!(segment.state == State::Free, self.free.contains(&index));
            assert_eq!(segment.state == State::Open, self.open == Some(index));
            used += u64::from(segment.used);
        }
        assert_eq!(self.counts.used_bytes.load(Relaxed), used);
    }

    fn room(&self, segment: SegmentIndex) -> u32 {
        SEGMENT_BYTES as u32 - self.segment(segment).used
    }

    fn segment(&self, index: SegmentIndex) -> Segment {
        self.segments[index.0 as usize]
    }

    fn segment_mut(&mut self, index: SegmentIndex) -> &mut Segment {
        &mut self.segments[index.0 as usize]
    }
}
