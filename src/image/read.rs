//! Reading an image that may be anything.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    END_LEN, End, HEADER_LEN, Header, Kind, MAGIC, MAX_SEGMENT_BYTES, PATTERN, PageData,
    RECORD_HEADER_LEN, RecordHeader, SEGMENT_HEADER_LEN, SegmentHeader, VERSION,
};
use crate::codec::{Codec, DictionaryId};
use crate::error::{Error, Result};
use crate::units::{MAX_DEVICE_BYTES, PAGE_SIZE, PageIndex};

/// An image, read from front to back. Nothing of a segment is handed out before its checksum is
/// known to be right.
pub(crate) struct ImageReader {
    path: PathBuf,
    file: File,
    header: Header,
    end: End,
    /// Where the next segment starts.
    at: u64,
    /// Its number.
    next: u64,
    pages: u64,
}

/// A segment, header and all, in memory that is used for one after the other.
pub(crate) struct SegmentBuffer(Vec<u8>);

impl SegmentBuffer {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(SEGMENT_HEADER_LEN + MAX_SEGMENT_BYTES))
    }
}

/// Some of an image.
pub(crate) enum Part<'a> {
    /// What pages that come later need: its number, and its bytes.
    Dictionary(DictionaryId, &'a [u8]),
    Pages(PagesPart<'a>),
}

/// Pages of an image.
pub(crate) struct PagesPart<'a> {
    records: &'a [u8],
}

impl ImageReader {
    /// Opens an image, and looks at its start and its end.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is none, is of another version, or was cut off; [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(unusable(path, "an image is a plain file"));
        }
        // It is a hint.
        let _ = fadvise(&file, 0, None, Advice::Sequential);
        let header = read_header(path, &file)?;
        let end = read_end(path, &file, &header, metadata.len())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            end,
            at: HEADER_LEN as u64,
            next: 0,
            pages: 0,
        })
    }

    /// Bytes in the device that was saved.
    pub(crate) fn size(&self) -> u64 {
        self.header.size.get()
    }

    /// Pages in the image.
    pub(crate) fn pages(&self) -> u64 {
        self.end.pages.get()
    }

    /// Pages handed out so far.
    pub(crate) fn pages_read(&self) -> u64 {
        self.pages
    }

    /// The next part, in `buffer`; `None` at the end of the image, when all of it has been found to
    /// be right.
    ///
    /// # Errors
    /// [`Error::Unusable`], what is damaged and where; [`Error::Io`].
    pub(crate) fn next<'a>(&mut self, buffer: &'a mut SegmentBuffer) -> Result<Option<Part<'a>>> {
        if self.at == self.end.bytes.get() {
            return self.check_counts();
        }
        let segment = &mut buffer.0;
        let header = self.read_segment(segment)?;
        let (start, number) = (self.at, self.next);
        self.at += segment.len() as u64;
        self.next += 1;
        let records = &segment[SEGMENT_HEADER_LEN..];
        let wrong = |what: &str| self.damaged(number, start, segment.len(), what);
        if header.kind == Kind::Dictionary as u32 {
            let (&first, bytes) = records
                .split_first()
                .ok_or_else(|| wrong("it has no dictionary"))?;
            let id = DictionaryId::new(first.into())
                .ok_or_else(|| wrong("it has a dictionary of no number"))?;
            return Ok(Some(Part::Dictionary(id, bytes)));
        }
        if header.kind != Kind::Pages as u32 {
            return Err(wrong("it is of no known kind"));
        }
        let size_pages = self.header.size.get() / PAGE_SIZE as u64;
        let mut count = 0;
        for record in (Records { rest: records }) {
            let (page, _) = record.map_err(wrong)?;
            if u64::from(page.0) >= size_pages {
                return Err(wrong("it has a page beyond the end of the device"));
            }
            count += 1;
        }
        if header.records != count {
            return Err(wrong("it has another number of records than it says"));
        }
        self.pages += u64::from(count);
        Ok(Some(Part::Pages(PagesPart { records })))
    }

    /// That the image is damaged: `what` is wrong with a page.
    pub(crate) fn wrong(&self, page: PageIndex, what: &str) -> Error {
        let reason = format!("the image is damaged: page {} {what}", page.0);
        unusable(&self.path, &reason)
    }

    fn check_counts<'a>(&self) -> Result<Option<Part<'a>>> {
        let End {
            pages, segments, ..
        } = self.end;
        if (pages.get(), segments.get()) == (self.pages, self.next) {
            return Ok(None);
        }
        let reason = format!(
            "the image is damaged: it has {} pages in {} segments, and says {pages} in {segments}",
            self.pages, self.next
        );
        Err(unusable(&self.path, &reason))
    }

    /// Reads the next segment, header and all, and proves that it is the one.
    fn read_segment(&self, segment: &mut Vec<u8>) -> Result<SegmentHeader> {
        let (number, at) = (self.next, self.at);
        let left = self.end.bytes.get() - at;
        segment.resize(SEGMENT_HEADER_LEN, 0);
        let wrong = |len: usize, what: &str| self.damaged(number, at, len, what);
        if left < SEGMENT_HEADER_LEN as u64 {
            return Err(wrong(SEGMENT_HEADER_LEN, "it is cut off"));
        }
        self.fill(segment, at)?;
        let header = SegmentHeader::read_from_bytes(segment)
            .map_err(|_| wrong(SEGMENT_HEADER_LEN, "it is cut off"))?;
        let len = header.len.get() as usize;
        if len > MAX_SEGMENT_BYTES || len as u64 > left - SEGMENT_HEADER_LEN as u64 {
            return Err(wrong(SEGMENT_HEADER_LEN, "its length makes no sense"));
        }
        segment.resize(SEGMENT_HEADER_LEN + len, 0);
        let records = &mut segment[SEGMENT_HEADER_LEN..];
        self.fill(records, at + SEGMENT_HEADER_LEN as u64)?;
        let checksum = header.checksum(&self.header.identity, at, records);
        if checksum != header.checksum.get() {
            return Err(wrong(segment.len(), "its checksum does not match"));
        }
        if header.number != number {
            return Err(wrong(segment.len(), "it is another segment"));
        }
        Ok(header)
    }

    /// Reads the file from byte `at` on.
    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file
            .read_exact_at(bytes, at)
            .map_err(|error| Error::io(format!("read {}", self.path.display()), error))
    }

    fn damaged(&self, number: u64, at: u64, len: usize, what: &str) -> Error {
        let end = at + len as u64;
        let reason =
            format!("the image is damaged in segment {number}, bytes {at} to {end}: {what}");
        unusable(&self.path, &reason)
    }
}

impl PagesPart<'_> {
    /// The pages.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (PageIndex, PageData<'_>)> {
        Records { rest: self.records }.map_while(Result::ok)
    }
}

/// The records of a segment; the first that is none ends them.
struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(PageIndex, PageData<'a>), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        Some(self.record().ok_or_else(|| {
            self.rest = &[];
            "it has a record that makes no sense"
        }))
    }
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Option<(PageIndex, PageData<'a>)> {
        let (header, rest) = self.rest.split_at_checked(RECORD_HEADER_LEN)?;
        let header = RecordHeader::read_from_bytes(header).ok()?;
        let len = usize::from(header.len_less_one.get()) + 1;
        let (bytes, rest) = rest.split_at_checked(len)?;
        self.rest = rest;
        let data = if header.made == PATTERN {
            PageData::SameFilled(u32::from_ne_bytes(bytes.try_into().ok()?))
        } else {
            let codec = Codec::from_bits(header.made)?;
            let fits = len <= PAGE_SIZE && (codec == Codec::Raw) == (len == PAGE_SIZE);
            fits.then_some(PageData::Object(codec, bytes))?
        };
        (header.zero == 0).then_some((PageIndex(header.page.get()), data))
    }
}

fn unusable(path: &Path, reason: &str) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Whether `error` is about a file that ends too early.
fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

fn read_header(path: &Path, file: &File) -> Result<Header> {
    let mut bytes = [0; HEADER_LEN];
    match file.read_exact_at(&mut bytes, 0) {
        Err(error) if is_end(&error) => return Err(unusable(path, "it is no image of a device")),
        read => read.map_err(|error| Error::io(format!("read {}", path.display()), error))?,
    }
    let header: Header = zerocopy::transmute!(bytes);
    if header.magic != MAGIC {
        return Err(unusable(path, "it is no image of a device"));
    }
    if header.version != VERSION {
        let reason = format!(
            "the image is of version {}, and this program reads version {VERSION}",
            header.version
        );
        return Err(unusable(path, &reason));
    }
    let size = header.size.get();
    let makes_sense = (1..=MAX_DEVICE_BYTES).contains(&size)
        && size.is_multiple_of(PAGE_SIZE as u64)
        && header.page_size == PAGE_SIZE as u32;
    if header.checksum != header.checksum() || !makes_sense {
        return Err(unusable(
            path,
            "the image is damaged in its header, bytes 0 to 64",
        ));
    }
    Ok(header)
}

/// Reads what an image of `len` bytes ends with.
fn read_end(path: &Path, file: &File, header: &Header, len: u64) -> Result<End> {
    let cut_off = || {
        let reason = format!(
            "the image is damaged or cut off: it has {len} bytes, and what the last of them say \
             is not how it ends"
        );
        unusable(path, &reason)
    };
    let at = len
        .checked_sub(END_LEN as u64)
        .filter(|&at| at >= HEADER_LEN as u64)
        .ok_or_else(cut_off)?;
    let mut bytes = [0; END_LEN];
    match file.read_exact_at(&mut bytes, at) {
        Err(error) if is_end(&error) => return Err(cut_off()),
        read => read.map_err(|error| Error::io(format!("read {}", path.display()), error))?,
    }
    let (segment, end) = bytes.split_at(SEGMENT_HEADER_LEN);
    let (Ok(segment), Ok(end)) = (
        SegmentHeader::read_from_bytes(segment),
        End::read_from_bytes(end),
    ) else {
        return Err(cut_off());
    };
    let checksum = segment.checksum(&header.identity, at, end.as_bytes());
    let is_right = segment.checksum == checksum
        && segment.kind == Kind::End as u32
        && segment.number == end.segments
        && end.bytes == at;
    is_right.then_some(end).ok_or_else(cut_off)
}
