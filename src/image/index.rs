//! Where the pages are in an image.

use zerocopy::FromBytes;

use super::{IndexHeader, Kind, ObjectEntry, PatternEntry};
use crate::codec::Codec;
use crate::spill::{RecordAddress, RecordFormat, SEGMENT_BYTES};
use crate::units::{PAGE_SIZE, PageIndex};

/// Most entries of a kind in an index: what a writer keeps of them in memory.
pub(super) const MAX_ENTRIES: usize = 1 << 19;

/// Where a record of `len` bytes goes that would start at byte `at`.
pub(super) fn place_of(at: u64, len: usize) -> u64 {
    let left = SEGMENT_BYTES - at % SEGMENT_BYTES;
    if len as u64 <= left { at } else { at + left }
}

/// A page, and where its data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Pattern {
        page: PageIndex,
        pattern: u32,
    },
    Record {
        page: PageIndex,
        /// Counted from the image's start.
        address: RecordAddress,
        /// Bytes of the object.
        len: usize,
        codec: Codec,
    },
}

impl Entry {
    /// The page.
    pub(crate) fn page(self) -> PageIndex {
        match self {
            Self::Pattern { page, .. } | Self::Record { page, .. } => page,
        }
    }
}

/// An index of pages, taken apart.
pub(crate) struct Index<'a> {
    objects: &'a [ObjectEntry],
    patterns: &'a [PatternEntry],
    /// Where its records start.
    from: u64,
}

impl<'a> Index<'a> {
    /// The index with that header and body; `None` if its lengths do not fit.
    pub(super) fn new(header: &IndexHeader, body: &'a [u8]) -> Option<Self> {
        let [objects, patterns] = [header.objects, header.patterns].map(|n| n.get() as usize);
        if header.kind != Kind::Pages as u32 {
            return None;
        }
        let (objects, rest) = <[ObjectEntry]>::ref_from_prefix_with_elems(body, objects).ok()?;
        let patterns = <[PatternEntry]>::ref_from_bytes_with_elems(rest, patterns).ok()?;
        Some(Self {
            objects,
            patterns,
            from: header.from.get(),
        })
    }

    /// Where its records start.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// Pages in it.
    pub(super) fn pages(&self) -> u64 {
        (self.objects.len() + self.patterns.len()) as u64
    }

    /// Its entries, and for each record where it ends; `None` for what makes no sense.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Option<(Entry, u64)>> {
        let mut at = self.from;
        let objects = self.objects.iter().map(move |object| {
            let len = usize::from(object.len_less_one.get()) + 1;
            let codec = Codec::from_bits(object.codec)?;
            let fits = len <= PAGE_SIZE && (codec == Codec::Raw) == (len == PAGE_SIZE);
            if !fits || object.zero != 0 {
                return None;
            }
            let record_len = RecordFormat::Saved.record_len(len);
            let place = place_of(at, record_len);
            at = place + record_len as u64;
            let record = Entry::Record {
                page: PageIndex(object.page.get()),
                address: RecordAddress::from_byte(place),
                len,
                codec,
            };
            Some((record, at))
        });
        let patterns = self.patterns.iter().map(|entry| {
            let pattern = Entry::Pattern {
                page: PageIndex(entry.page.get()),
                pattern: entry.pattern.get(),
            };
            Some((pattern, 0))
        });
        objects.chain(patterns)
    }
}
