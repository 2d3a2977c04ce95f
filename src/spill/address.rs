//! Where a record is: in a segment, which is in a store.
//!
//! Stores are numbered by their places, segments through all stores, and records by 16 bytes through all
//! segments; so an address alone says which store it is in.

use std::ops::Range;

/// Bytes of a segment.
pub const SEGMENT_BYTES: u64 = 2 << 20;

/// One of the places for stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StoreIndex(pub(super) u8);

impl StoreIndex {
    /// The image's place.
    pub(crate) const IMAGE: Self = Self(BACKINGS as u8);

    /// How many places there are.
    pub(crate) const COUNT: usize = STORES;

    /// The place of what a record is in.
    pub(crate) fn of(record: RecordAddress) -> Self {
        SegmentIndex::of(record).store()
    }

    /// The places, from 0.
    pub(crate) fn number(self) -> usize {
        usize::from(self.0)
    }
}

/// Places there are for backings.
pub(super) const BACKINGS: usize = 2;

/// Places there are.
pub(super) const STORES: usize = BACKINGS + 1;

/// The least that eviction and cleaning together can work in.
pub(super) const MIN_BYTES: u64 = 2 * SEGMENT_BYTES;

/// Segments that a backing can have, ten TiB: a third of what a record's address can reach.
pub(crate) const SEGMENTS_PER_STORE: u32 = (1 << 24) / STORES as u32;

/// Bytes that a backing can have.
pub const MAX_STORE_BYTES: u64 = SEGMENTS_PER_STORE as u64 * SEGMENT_BYTES;

/// A segment of any backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentIndex(pub(crate) u32);

impl SegmentIndex {
    /// The segment that a record is in.
    pub(crate) fn of(record: RecordAddress) -> Self {
        Self((record.byte() / SEGMENT_BYTES) as u32)
    }

    /// The address of the segment's first byte, counted over all backings.
    pub(crate) fn byte(self) -> u64 {
        u64::from(self.0) * SEGMENT_BYTES
    }
}

impl SegmentIndex {
    /// The place of the backing it is in.
    pub(super) fn store(self) -> StoreIndex {
        StoreIndex((self.0 / SEGMENTS_PER_STORE) as u8)
    }

    /// Whether it is in the image that the device is restored from.
    pub(crate) fn is_in_image(self) -> bool {
        self.store() == StoreIndex::IMAGE
    }

    /// A segment of the image, counted from the image's start.
    pub(super) fn in_image(segment: u32) -> Self {
        Self::in_store(StoreIndex::IMAGE, segment)
    }

    /// A segment of a backing, counted from the backing's start.
    pub(super) fn in_store(store: StoreIndex, segment: u32) -> Self {
        Self(u32::from(store.0) * SEGMENTS_PER_STORE + segment)
    }

    /// The segment, counted from its backing's start.
    pub(crate) fn within_store(self) -> StoreSegment {
        StoreSegment(self.0 % SEGMENTS_PER_STORE)
    }
}

/// A segment, counted from the start of its backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StoreSegment(pub(crate) u32);

impl StoreSegment {
    /// First byte of the segment in its backing.
    pub(crate) fn byte(self) -> u64 {
        u64::from(self.0) * SEGMENT_BYTES
    }

    /// The bytes of the segment in its backing.
    pub(crate) fn range(self) -> Range<u64> {
        self.byte()..self.byte() + SEGMENT_BYTES
    }

    /// The segment that a byte of a backing is in, and where in that.
    pub(super) fn at(byte: u64) -> (Self, usize) {
        let segment = (byte / SEGMENT_BYTES) as u32;
        (Self(segment), (byte % SEGMENT_BYTES) as usize)
    }
}

/// Bytes that record addresses and lengths are multiples of.
pub(crate) const RECORD_ALIGN: usize = 16;

/// Where a record starts in a backing or a saved image, in units of 16 bytes; below 2^41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RecordAddress(pub(crate) u64);

impl RecordAddress {
    pub(crate) fn from_byte(byte: u64) -> Self {
        debug_assert!(byte.is_multiple_of(RECORD_ALIGN as u64));
        Self(byte / RECORD_ALIGN as u64)
    }

    pub(crate) fn byte(self) -> u64 {
        self.0 * RECORD_ALIGN as u64
    }
}

impl RecordAddress {
    /// The address of a record that starts there in the image.
    pub(crate) fn in_image(self) -> Self {
        Self::from_byte(SegmentIndex::in_image(0).byte() + self.byte())
    }

    /// The address, counted from the start of its backing.
    pub(crate) fn within_store(self) -> Self {
        let segment = SegmentIndex::of(self);
        Self::from_byte(segment.within_store().byte() + self.byte() - segment.byte())
    }
}
