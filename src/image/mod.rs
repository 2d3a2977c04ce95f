//! Images: a device's data in a file, as compressed as it was in memory.
//!
//! | part    | bytes    | little-endian fields                                                 |
//! |---------|----------|----------------------------------------------------------------------|
//! | header  | 64       | `uzramimg`, version (4), 4096 (4), bytes in the device (8), a random |
//! |         |          | identity (16), zeroes (20), checksum (4)                             |
//! | segment | 32 + len | kind (4), records (4), len (4), zeroes (4), number (8), zeroes (4),  |
//! |         |          | checksum (4); then `len` bytes of records                            |
//! | ...     |          | segments, numbered from 0                                            |
//! | end     | 32 + 24  | a segment of its own kind: pages (8), segments before it (8), bytes  |
//! |         |          | before it (8)                                                        |
//!
//! A record is a page's number (4), its bytes less one (2), how they were made of it (1: a codec,
//! or 255 for a pattern to repeat), a zero, and its bytes. No page has two; one without a record
//! is empty. Records are in no order. Before the first that needs a dictionary stands a segment of
//! another kind, which has one record: that dictionary's number (1) and its bytes.
//!
//! Checksums are CRC-32C. A segment's covers the image's identity, where the segment starts, its
//! header and its records: a segment of another image, or from another place in this one, does not
//! verify. The end tells a file that was cut off from a whole one, and is looked at first.

mod file;
#[cfg(fuzzing)]
mod forge;
mod read;
mod write;

pub(crate) use self::file::ImageFile;
pub use self::file::write_whole;
#[cfg(fuzzing)]
pub(crate) use self::forge::forge;
pub(crate) use self::read::{ImageReader, Part, SegmentBuffer};
pub(crate) use self::write::ImageWriter;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::Codec;
use crate::units::PAGE_SIZE;

const MAGIC: [u8; 8] = *b"uzramimg";
const VERSION: u32 = 1;

/// Bytes of records after which a segment is ended.
const SEGMENT_BYTES: usize = 1 << 20;

/// Most bytes of records in a segment.
const MAX_SEGMENT_BYTES: usize = SEGMENT_BYTES + RECORD_HEADER_LEN + PAGE_SIZE;

/// How a record says that its bytes are a pattern.
const PATTERN: u8 = 255;

const RECORD_HEADER_LEN: usize = size_of::<RecordHeader>();
const SEGMENT_HEADER_LEN: usize = size_of::<SegmentHeader>();
const HEADER_LEN: usize = size_of::<Header>();
const END_LEN: usize = SEGMENT_HEADER_LEN + size_of::<End>();

/// Bytes at the end of the headers that are their checksums.
const CHECKSUM_LEN: usize = 4;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    page_size: U32,
    size: U64,
    identity: [u8; 16],
    zeroes: [u8; 20],
    checksum: U32,
}

impl Header {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..HEADER_LEN - CHECKSUM_LEN])
    }
}

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pages = 1,
    End = 2,
    Dictionary = 3,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct SegmentHeader {
    kind: U32,
    records: U32,
    len: U32,
    zeroes: U32,
    number: U64,
    more_zeroes: U32,
    checksum: U32,
}

impl SegmentHeader {
    /// The checksum of the segment that starts at byte `at` of an image.
    fn checksum(&self, identity: &[u8; 16], at: u64, records: &[u8]) -> u32 {
        let header = &self.as_bytes()[..SEGMENT_HEADER_LEN - CHECKSUM_LEN];
        let place = at.to_le_bytes();
        [&place, header, records]
            .into_iter()
            .fold(crc32c::crc32c(identity), crc32c::crc32c_append)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RecordHeader {
    page: U32,
    len_less_one: U16,
    made: u8,
    zero: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct End {
    pages: U64,
    segments: U64,
    bytes: U64,
}

/// The data of a page in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageData<'a> {
    /// One pattern repeated.
    SameFilled(u32),
    /// An object of a pool.
    Object(Codec, &'a [u8]),
}

#[cfg(test)]
mod tests;
