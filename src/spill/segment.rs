//! The segments of a backing: how much of each is still referred to.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::SegQueue;
use zerocopy::FromZeros;

use super::address::{RecordAddress, SEGMENT_BYTES, SEGMENTS_PER_STORE, STORES, SegmentIndex};
use super::record::RecordFormats;
use crate::memory::{LazyTable, MemorySource, Publish, Word, crash_point};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::waker::Waker;

/// Live bytes at which a segment becomes worth a look by cleaning.
const SPARSE: u32 = SEGMENT_BYTES as u32 / 2;

/// How often places may be given out again in one use of a segment. The numbers of uses are further
/// apart than that.
pub(super) const MAX_RETRIES: u64 = u8::MAX as u64;

#[derive(FromZeros)]
struct Entry {
    /// Number of this use of the segment; other uses have other numbers, and 0 is none.
    sequence: AtomicU64,
    /// Bytes of the records that slots refer to.
    live: AtomicU32,
    /// How often a place was given out again in this use.
    retries: AtomicU32,
}

/// Segments that were found in memory that outlived a process.
#[derive(Debug, Default)]
pub(crate) struct UsedSegments {
    /// Those that were ever used, in order.
    pub(crate) segments: Vec<SegmentIndex>,
    /// The greatest number of a use.
    pub(crate) last_sequence: u64,
}

/// How many places at most are told from what was written there before, in all segments together. Where a log comes
/// to more, it seals the segment.
const MAX_RETRIED: usize = 4096;

/// What outlives the process, if the device's memory does.
struct Tables {
    entries: LazyTable<Entry>,
    /// What is in `retried`, each a [`Retried`] or 0.
    retried: LazyTable<Word>,
}

/// From where on places in a segment were given out again, as a word that is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retried {
    segment: SegmentIndex,
    offset: u32,
}

impl Retried {
    fn word(self) -> u64 {
        (u64::from(self.segment.0) + 1) << 32 | u64::from(self.offset)
    }

    fn of_word(word: u64) -> Option<Self> {
        let segment = SegmentIndex(((word >> 32) as u32).checked_sub(1)?);
        (segment.0 < SEGMENTS_PER_STORE * STORES as u32).then_some(Self {
            segment,
            offset: word as u32,
        })
    }
}

/// What any thread may know of the segments. There is no lock: `live` counts slots' references,
/// and a slot changes under its shard's lock; `sequence` changes only while `live` is 0, so under
/// the lock of a shard that has a slot in the segment it stands still. That of a record does so from
/// before a slot refers to it: what is given out again is behind all records that one does.
pub(crate) struct SegmentTable {
    /// None until the first backing, or image, comes.
    tables: OnceLock<Tables>,
    /// Of the backings' segments.
    live_bytes: AtomicU64,
    /// Of the image's.
    image_bytes: AtomicU64,
    /// Segments whose last record was released, for the writeback thread to free.
    emptied: SegQueue<SegmentIndex>,
    /// Offsets in segments, in rising order, from which on places were given out again. A leaf.
    retried: Mutex<HashMap<SegmentIndex, Vec<u32>>>,
    waker: Arc<Waker>,
    formats: RecordFormats,
}

impl SegmentTable {
    /// A table of segments that nothing refers to, of records in `formats`; `waker` is called when a
    /// segment is emptied or sparse.
    pub(crate) fn new(formats: RecordFormats, waker: Arc<Waker>) -> Self {
        Self {
            tables: OnceLock::new(),
            live_bytes: AtomicU64::new(0),
            image_bytes: AtomicU64::new(0),
            emptied: SegQueue::new(),
            retried: Mutex::default(),
            waker,
            formats,
        }
    }

    /// Makes the table, before the first segment of any backing is used.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(crate) fn make(&self) -> io::Result<()> {
        self.make_in(&MemorySource::Process)
    }

    /// The same, in memory that may outlive the process: it says what it said.
    ///
    /// # Errors
    /// Those of [`SegmentTable::make`].
    pub(crate) fn make_in(&self, memory: &MemorySource) -> io::Result<()> {
        if self.tables.get().is_none() {
            let tables = Tables {
                entries: LazyTable::new_in(SEGMENTS_PER_STORE as usize * STORES, memory)?,
                retried: LazyTable::new_in(MAX_RETRIED, memory)?,
            };
            // Whoever made it meanwhile made the same.
            let _ = self.tables.set(tables);
        }
        Ok(())
    }

    /// Finds the segments that have been used, in a table that was found as it is and to which slots are yet to be
    /// counted.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn adopt(&self) -> io::Result<UsedSegments> {
        let Some(Tables { entries, retried }) = self.tables.get() else {
            return Ok(UsedSegments::default());
        };
        let mut used = UsedSegments::default();
        for at in entries.data_ranges()?.into_iter().flatten() {
            let entry = &entries[at];
            let sequence = entry.sequence.load(Ordering::Relaxed);
            if sequence != 0 {
                entry.live.store(0, Ordering::Relaxed);
                entry.retries.store(0, Ordering::Relaxed);
                used.segments.push(SegmentIndex(at as u32));
                used.last_sequence = used.last_sequence.max(sequence);
            }
        }
        let mut offsets = self.retried.lock();
        let words = retried.iter().map(|word| word.load(Ordering::Relaxed));
        for Retried { segment, offset } in words.filter_map(Retried::of_word) {
            entries[segment.0 as usize]
                .retries
                .fetch_add(1, Ordering::Relaxed);
            offsets.entry(segment).or_default().push(offset);
        }
        offsets
            .values_mut()
            .for_each(|offsets| offsets.sort_unstable());
        Ok(used)
    }

    /// Counts a slot's new reference to the record of an object of `len` bytes.
    pub(crate) fn retain(&self, record: RecordAddress, len: usize) {
        let bytes = self.formats.at(record).record_len(len) as u32;
        let segment = SegmentIndex::of(record);
        self.entry(segment).live.fetch_add(bytes, Ordering::Relaxed);
        self.total_of(segment)
            .fetch_add(u64::from(bytes), Ordering::Relaxed);
    }

    /// Counts that a slot no longer refers to a record.
    pub(crate) fn release(&self, record: RecordAddress, len: usize) {
        let bytes = self.formats.at(record).record_len(len) as u32;
        let segment = SegmentIndex::of(record);
        self.total_of(segment)
            .fetch_sub(u64::from(bytes), Ordering::Relaxed);
        let before = self.entry(segment).live.fetch_sub(bytes, Ordering::Release);
        debug_assert!(before >= bytes);
        if before == bytes {
            self.emptied.push(segment);
            self.waker.wake();
        } else if before > SPARSE && before - bytes <= SPARSE {
            self.waker.wake();
        }
    }

    /// Has a segment to which nothing refers be looked at, to be freed.
    pub(super) fn note_emptied(&self, segment: SegmentIndex) {
        self.emptied.push(segment);
    }

    /// A segment that was emptied since the last call. It may have been written to since.
    pub(crate) fn pop_emptied(&self) -> Option<SegmentIndex> {
        self.emptied.pop()
    }

    /// Bytes of live records in a segment.
    pub(crate) fn live(&self, segment: SegmentIndex) -> u32 {
        self.entry(segment).live.load(Ordering::Acquire)
    }

    /// Bytes of live records in all segments of backings.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of live records in the image.
    pub(crate) fn image_bytes(&self) -> u64 {
        self.image_bytes.load(Ordering::Relaxed)
    }

    /// Whether a slot refers to a record.
    pub(crate) fn any_live(&self) -> bool {
        self.live_bytes() > 0 || self.image_bytes() > 0
    }

    fn total_of(&self, segment: SegmentIndex) -> &AtomicU64 {
        match segment.is_in_image() {
            true => &self.image_bytes,
            false => &self.live_bytes,
        }
    }

    /// The number of the segment's present use.
    pub(crate) fn sequence(&self, segment: SegmentIndex) -> u64 {
        self.entry(segment).sequence.load(Ordering::Acquire)
    }

    /// The number under which what is now at a place was written: that of the segment's use, plus
    /// how often the place was given out again.
    pub(crate) fn sequence_at(&self, place: RecordAddress) -> u64 {
        let segment = SegmentIndex::of(place);
        let offset = (place.byte() - segment.byte()) as u32;
        let retries = match self.entry(segment).retries.load(Ordering::Acquire) {
            0 => 0,
            _ => self
                .retried
                .lock()
                .get(&segment)
                .map_or(0, |retried| retried.partition_point(|&from| from <= offset)),
        };
        self.sequence(segment) + retries as u64
    }

    /// Starts a new use of an empty segment.
    pub(crate) fn set_sequence(&self, segment: SegmentIndex, sequence: u64) {
        debug_assert_eq!(self.live(segment), 0);
        let entry = self.entry(segment);
        if entry.retries.swap(0, Ordering::Relaxed) > 0 {
            let mut offsets = self.retried.lock();
            for word in self.tables().retried.iter() {
                let retried = Retried::of_word(word.load(Ordering::Relaxed));
                if retried.is_some_and(|retried| retried.segment == segment) {
                    word.publish(0);
                }
            }
            offsets.remove(&segment);
        }
        crash_point();
        entry.sequence.store(sequence, Ordering::Release);
    }

    /// Has what is written from an offset on, where nothing is live, be told from what may have been
    /// written there before; returns false if that has been done as often as numbers allow.
    pub(crate) fn retry_from(&self, segment: SegmentIndex, offset: u32) -> bool {
        let mut retried = self.retried.lock();
        let offsets = retried.entry(segment).or_default();
        debug_assert!(offsets.last().is_none_or(|&last| last <= offset));
        let words = &self.tables().retried;
        let free = words.iter().find(|word| word.load(Ordering::Relaxed) == 0);
        let allowed = (offsets.len() as u64) < MAX_RETRIES;
        if let (true, Some(free)) = (allowed, free) {
            free.publish(Retried { segment, offset }.word());
            offsets.push(offset);
            let retries = &self.entry(segment).retries;
            retries.fetch_add(1, Ordering::Release);
            return true;
        }
        false
    }

    fn tables(&self) -> &Tables {
        self.tables.get().expect("a segment is in a backing")
    }

    fn entry(&self, segment: SegmentIndex) -> &Entry {
        &self.tables().entries[segment.0 as usize]
    }
}
