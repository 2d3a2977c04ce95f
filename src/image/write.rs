//! Writing an image, front to back.

use std::io::{self, Write};

use ring::rand::{SecureRandom, SystemRandom};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    End, HEADER_LEN, Header, Kind, MAGIC, MAX_SEGMENT_BYTES, PATTERN, PageData, RecordHeader,
    SEGMENT_BYTES, SEGMENT_HEADER_LEN, SegmentHeader, VERSION,
};
use crate::codec::DictionaryId;
use crate::units::{PAGE_SIZE, PageIndex};

/// An image on its way to `out`.
pub(crate) struct ImageWriter<W> {
    out: W,
    identity: [u8; 16],
    /// Bytes written.
    at: u64,
    segments: u64,
    pages: u64,
    dictionaries: Vec<DictionaryId>,
    records: u32,
    buffer: Vec<u8>,
}

impl<W: Write> ImageWriter<W> {
    /// An image of a device of `size` bytes.
    ///
    /// # Errors
    /// Those of `out`, here and below; that the kernel has no randomness.
    pub(crate) fn new(mut out: W, size: u64) -> io::Result<Self> {
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.version = VERSION.into();
        header.page_size = (PAGE_SIZE as u32).into();
        header.size = size.into();
        let filled = SystemRandom::new().fill(&mut header.identity);
        filled.map_err(|_| io::ErrorKind::Unsupported)?;
        header.checksum = header.checksum().into();
        out.write_all(header.as_bytes())?;
        Ok(Self {
            out,
            identity: header.identity,
            at: HEADER_LEN as u64,
            segments: 0,
            pages: 0,
            dictionaries: Vec::new(),
            records: 0,
            buffer: Vec::with_capacity(MAX_SEGMENT_BYTES),
        })
    }

    /// Adds a page that has not been added before.
    pub(crate) fn push(&mut self, page: PageIndex, data: PageData<'_>) -> io::Result<()> {
        let pattern;
        let (made, bytes) = match data {
            PageData::SameFilled(word) => {
                pattern = word.to_ne_bytes();
                (PATTERN, &pattern[..])
            }
            PageData::Object(codec, bytes) => (codec as u8, bytes),
        };
        let header = RecordHeader {
            page: page.0.into(),
            len_less_one: (bytes.len() as u16 - 1).into(),
            made,
            zero: 0,
        };
        self.buffer.extend_from_slice(header.as_bytes());
        self.buffer.extend_from_slice(bytes);
        self.records += 1;
        self.pages += 1;
        if self.buffer.len() >= SEGMENT_BYTES {
            self.end_segment(Kind::Pages)?;
        }
        Ok(())
    }

    /// Adds a dictionary, if it has not been added before: ahead of the pages that need it.
    pub(crate) fn push_dictionary(&mut self, id: DictionaryId, bytes: &[u8]) -> io::Result<()> {
        if self.dictionaries.contains(&id) {
            return Ok(());
        }
        self.dictionaries.push(id);
        let record = [&[id.index() as u8], bytes].concat();
        self.write_segment(Kind::Dictionary, 1, &record)
    }

    fn end_segment(&mut self, kind: Kind) -> io::Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let records = std::mem::take(&mut self.records);
        let written = self.write_segment(kind, records, &buffer);
        self.buffer = buffer;
        self.buffer.clear();
        written
    }

    fn write_segment(&mut self, kind: Kind, count: u32, records: &[u8]) -> io::Result<()> {
        let mut header = SegmentHeader::new_zeroed();
        header.kind = (kind as u32).into();
        header.records = count.into();
        header.len = (records.len() as u32).into();
        header.number = self.segments.into();
        let checksum = header.checksum(&self.identity, self.at, records);
        header.checksum = checksum.into();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.at += (SEGMENT_HEADER_LEN + records.len()) as u64;
        self.segments += 1;
        Ok(())
    }

    /// Ends the image; returns `out`, how many pages are in it and how many bytes it has.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64, u64)> {
        if self.records > 0 {
            self.end_segment(Kind::Pages)?;
        }
        let end = End {
            pages: self.pages.into(),
            segments: self.segments.into(),
            bytes: self.at.into(),
        };
        self.buffer.extend_from_slice(end.as_bytes());
        self.end_segment(Kind::End)?;
        self.out.flush()?;
        Ok((self.out, self.pages, self.at))
    }
}
