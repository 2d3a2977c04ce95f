//! Images: a device's data in a file, as compressed as it was in memory.
//!
//! | part       | bytes    | little-endian fields                                             |
//! |------------|----------|------------------------------------------------------------------|
//! | header     | 64       | `uzramimg`, version (4), 4096 (4), bytes in the device (8), a    |
//! |            |          | random number (8), bytes in the sectors that it was attached     |
//! |            |          | with, 0 if it never was (4), zeroes (24), checksum (4)           |
//! | records    |          | as a spill has them ([`RecordFormat::Saved`]), from a multiple   |
//! |            |          | of 16 on, back to back but for where one would cross a multiple  |
//! |            |          | of 2 MiB and starts there                                        |
//! | index      | 40 + len | kind (4), objects (4), patterns (4), len (4), where its records  |
//! |            |          | start (8), where the index before this starts (8), zeroes (4),   |
//! |            |          | checksum (4); then the objects, one for each record in the order |
//! |            |          | of these: page (4), bytes less one (2), codec (1), a zero; then  |
//! |            |          | the patterns: page (4), what it repeats (4)                      |
//! | ...        |          | records and indices, the last of which is followed by            |
//! | end        | 48       | `uzramend`, pages (8), where the last index starts (8), how many |
//! |            |          | there are (8), bytes before this (8), zeroes (4), checksum (4)   |
//!
//! No page is in it twice; one that is not in it is empty. An index of another kind has a dictionary,
//! of that number (in place of the objects), and no records. The chain of indices is all that has to
//! be read before the device can be used: its slots then point at the records in the image, and these
//! are read like those in a backing.
//!
//! Checksums are CRC-32C. An index's and the end's cover the image's number, where they start, and all
//! their fields; a record's covers that number, where it starts, and itself: what is of another image,
//! or of another place in this one, does not verify. The end tells a file that was cut off from a
//! whole one, and is looked at first.

#[cfg(test)]
mod contents;
mod file;
#[cfg(fuzzing)]
mod forge;
mod index;
mod read;
mod store;
mod write;

#[cfg(test)]
pub(crate) use self::contents::Contents;
pub use self::file::{ImageFile, write_whole};
#[cfg(fuzzing)]
pub(crate) use self::forge::forge;
pub(crate) use self::index::Entry;
pub(crate) use self::read::{ImageReader, Part};
pub(crate) use self::write::ImageWriter;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::codec::Codec;
#[cfg(any(doc, test))]
use crate::spill::RecordFormat;

pub(crate) const MAGIC: [u8; 8] = *b"uzramimg";
const END_MAGIC: [u8; 8] = *b"uzramend";
const VERSION: u32 = 2;

const HEADER_LEN: usize = size_of::<Header>();
const INDEX_HEADER_LEN: usize = size_of::<IndexHeader>();
const END_LEN: usize = size_of::<End>();

/// Bytes at the end of the headers that are their checksums.
const CHECKSUM_LEN: usize = 4;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    page_size: U32,
    size: U64,
    sequence: U64,
    sector_size: U32,
    zeroes: [u8; 24],
    checksum: U32,
}

impl Header {
    fn checksum(&self) -> u32 {
        crc32c::crc32c(&self.as_bytes()[..HEADER_LEN - CHECKSUM_LEN])
    }
}

/// What an index is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pages = 1,
    Dictionary = 2,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct IndexHeader {
    kind: U32,
    objects: U32,
    patterns: U32,
    len: U32,
    from: U64,
    previous: U64,
    zeroes: U32,
    checksum: U32,
}

impl IndexHeader {
    /// The checksum of the index that starts at byte `at` of an image.
    fn checksum(&self, sequence: u64, at: u64, body: &[u8]) -> u32 {
        let header = &self.as_bytes()[..INDEX_HEADER_LEN - CHECKSUM_LEN];
        bound_checksum(sequence, at, &[header, body])
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ObjectEntry {
    page: U32,
    len_less_one: U16,
    codec: u8,
    zero: u8,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PatternEntry {
    page: U32,
    pattern: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct End {
    magic: [u8; 8],
    pages: U64,
    last: U64,
    indices: U64,
    bytes: U64,
    zeroes: U32,
    checksum: U32,
}

impl End {
    fn checksum(&self, sequence: u64) -> u32 {
        let fields = &self.as_bytes()[..END_LEN - CHECKSUM_LEN];
        bound_checksum(sequence, self.bytes.get(), &[fields])
    }
}

fn bound_checksum(sequence: u64, at: u64, parts: &[&[u8]]) -> u32 {
    let place = [sequence.to_le_bytes(), at.to_le_bytes()].concat();
    parts.iter().fold(crc32c::crc32c(&place), |sum, part| {
        crc32c::crc32c_append(sum, part)
    })
}

/// The data of a page that goes to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageData<'a> {
    /// One pattern repeated.
    SameFilled(u32),
    /// An object of a pool.
    Object(Codec, &'a [u8]),
}

#[cfg(test)]
mod tests;
