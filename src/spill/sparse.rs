//! Which segments are cleaned, and what is read of one for that.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::address::{SEGMENT_BYTES, SegmentIndex};
use super::backing::Store;
use super::blocks::{BLOCK, BlockBuf};
use super::log::{SegmentLog, State};
use crate::sync::time::Instant;

/// How long a segment that could not be read is left alone, so that others are cleaned; if it is an image's
/// twice as long each time, so often.
const READ_AGAIN: Duration = Duration::from_secs(3);
const MAX_DOUBLINGS: u32 = 8;

/// A segment that is read, as any thread may do.
pub(crate) struct Reading {
    pub(crate) segment: SegmentIndex,
    store: Arc<dyn Store>,
    /// Where in it records are, back to back.
    pub(crate) records: Vec<Range<u32>>,
    /// The segment's contents there.
    pub(crate) bytes: BlockBuf,
}

impl Reading {
    /// Reads the blocks with records.
    ///
    /// # Errors
    /// The store's.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let end = self.records.last().map_or(0, |range| range.end);
        self.bytes.resize((end as usize).next_multiple_of(BLOCK));
        for blocks in whole_blocks(&self.records) {
            let (start, bytes) = (blocks.start as u64, &mut self.bytes[blocks]);
            let at = self.segment.within_store().byte() + start;
            self.store.read_at(at, bytes)?;
        }
        Ok(())
    }
}

impl SegmentLog {
    /// The sealed segment that it pays most to clean, with its live bytes: it is sparse, or what
    /// is left in it has stayed for long and will go on staying (the cost-benefit policy of
    /// Rosenblum and Ousterhout's log-structured file system). One with more than `most_live`
    /// bytes does not count.
    pub(crate) fn best_to_clean(&self, most_live: u32) -> Option<SegmentIndex> {
        let score = |index: SegmentIndex| {
            let live = f64::from(self.table.live(index)) / SEGMENT_BYTES as f64;
            let age = (self.last_sequence - self.table.sequence(index)) as f64 + 1.0;
            (1.0 - live) * age / (1.0 + live)
        };
        self.sealed()
            .filter(|&index| self.is_to_clean(index) && self.table.live(index) <= most_live)
            .map(|index| (score(index), index))
            .max_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal))
            .map(|(_, index)| index)
    }

    /// The sealed segment with the fewest live bytes, and how many.
    pub(crate) fn emptiest(&self) -> Option<(SegmentIndex, u32)> {
        self.sealed()
            .filter(|&index| self.is_to_clean(index))
            .map(|index| (index, self.table.live(index)))
            .min_by_key(|&(_, live)| live)
    }

    /// Whether it is worth a try to read a segment.
    pub(super) fn is_to_read(&self, index: SegmentIndex) -> bool {
        let again = self.segment(index).read_again;
        again.is_none_or(|at| at <= Instant::now())
    }

    /// Whether there is anything to move out of a segment, no append to it is under way, and it could
    /// be read lately.
    fn is_to_clean(&self, index: SegmentIndex) -> bool {
        self.segment(index).in_flight == 0 && self.table.live(index) > 0 && self.is_to_read(index)
    }

    /// Reads all that was appended to a sealed segment, and keeps it from being appended to until
    /// [`SegmentLog::end_cleaning`]; returns where in it records are, back to back.
    ///
    /// # Errors
    /// The store's; the segment is sealed, and left alone for a while.
    pub(crate) fn begin_cleaning(
        &mut self,
        segment: SegmentIndex,
        out: &mut BlockBuf,
    ) -> io::Result<Vec<Range<u32>>> {
        let mut reading = self.begin_reading(segment, std::mem::take(out))?;
        let read = reading.run();
        self.end_reading(segment, read.is_ok());
        *out = reading.bytes;
        read.map(|()| reading.records)
    }

    /// What is to be read of a sealed segment to clean it, into `bytes`. It is kept from being appended to
    /// and freed until [`SegmentLog::end_cleaning`], or until [`SegmentLog::end_reading`] if that failed.
    ///
    /// # Errors
    /// There is no store with it.
    pub(crate) fn begin_reading(
        &mut self,
        segment: SegmentIndex,
        bytes: BlockBuf,
    ) -> io::Result<Reading> {
        let store = self.stores.of(segment).ok_or(io::ErrorKind::NotFound)?;
        let entry = self.segment_mut(segment);
        entry.state = State::Cleaning;
        let mut records = entry.written.clone();
        records.sort_unstable_by_key(|range| range.start);
        Ok(Reading {
            segment,
            store,
            records,
            bytes,
        })
    }

    /// Notes how reading a segment ended: one that could not be read is sealed again, and left alone for a
    /// while.
    pub(crate) fn end_reading(&mut self, segment: SegmentIndex, was_read: bool) {
        let entry = self.segment_mut(segment);
        if was_read {
            entry.failed_reads = 0;
            return;
        }
        entry.state = State::Sealed;
        let doublings = match segment.is_in_image() {
            true => entry.failed_reads.min(MAX_DOUBLINGS),
            // Writers may come to wait for what cleaning it gains.
            false => 0,
        };
        let rest = READ_AGAIN * (1 << doublings);
        entry.read_again = Some(Instant::now() + rest);
        entry.failed_reads += 1;
        self.free_if_empty(segment);
    }

    /// How often in a row a segment could not be read.
    pub(crate) fn failed_reads(&self, segment: SegmentIndex) -> u32 {
        self.segment(segment).failed_reads
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
}

/// The blocks that ranges in rising order are in, those that follow each other joined: what lies
/// between, where an append failed, may be unreadable.
fn whole_blocks(ranges: &[Range<u32>]) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        let (start, end) = (range.start as usize / BLOCK * BLOCK, range.end as usize);
        let end = end.next_multiple_of(BLOCK);
        match blocks.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => blocks.push(start..end),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_appends_is_not_read() {
        let block = BLOCK as u32;
        let written = [
            32..block + 100,
            2 * block..2 * block + 16,
            5 * block..6 * block,
        ];
        let blocks = whole_blocks(&written);
        assert_eq!(blocks, [0..3 * BLOCK, 5 * BLOCK..6 * BLOCK]);
        assert!(whole_blocks(&[]).is_empty());
    }
}
