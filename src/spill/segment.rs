//! The segments of a backing: how much of each is still referred to.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use crossbeam::queue::SegQueue;
use zerocopy::FromZeros;

use super::address::{RecordAddress, SEGMENT_BYTES, SEGMENTS_PER_STORE, STORES, SegmentIndex};
use super::record::RecordFormats;
use crate::memory::LazyTable;
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

/// What any thread may know of the segments. There is no lock: `live` counts slots' references,
/// and a slot changes under its shard's lock; `sequence` changes only while `live` is 0, so under
/// the lock of a shard that has a slot in the segment it stands still. That of a record does so from
/// before a slot refers to it: what is given out again is behind all records that one does.
pub(crate) struct SegmentTable {
    /// None until the first backing, or image, comes.
    entries: OnceLock<LazyTable<Entry>>,
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
            entries: OnceLock::new(),
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
        if self.entries.get().is_none() {
            let entries = LazyTable::new(SEGMENTS_PER_STORE as usize * STORES)?;
            // Whoever made it meanwhile made the same.
            let _ = self.entries.set(entries);
        }
        Ok(())
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
            self.retried.lock().remove(&segment);
        }
        entry.sequence.store(sequence, Ordering::Release);
    }

    /// Has what is written from an offset on, where nothing is live, be told from what may have been
    /// written there before; returns false if that has been done as often as numbers allow.
    pub(crate) fn retry_from(&self, segment: SegmentIndex, offset: u32) -> bool {
        let mut retried = self.retried.lock();
        let offsets = retried.entry(segment).or_default();
        debug_assert!(offsets.last().is_none_or(|&last| last <= offset));
        let allowed = (offsets.len() as u64) < MAX_RETRIES;
        if allowed {
            offsets.push(offset);
            let retries = &self.entry(segment).retries;
            retries.fetch_add(1, Ordering::Release);
        }
        allowed
    }

    fn entry(&self, segment: SegmentIndex) -> &Entry {
        let entries = self.entries.get();
        &entries.expect("a segment is in a backing")[segment.0 as usize]
    }
}
