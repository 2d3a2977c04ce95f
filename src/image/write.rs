//! Writing an image, front to back.

use std::io::{self, Write};

use zerocopy::{FromZeros, IntoBytes};

use super::index::{MAX_ENTRIES, place_of};
use super::{
    END_MAGIC, End, HEADER_LEN, Header, INDEX_HEADER_LEN, IndexHeader, Kind, MAGIC, ObjectEntry,
    PageData, PatternEntry, VERSION,
};
use crate::codec::DictionaryId;
use crate::sector_size::SectorSize;
use crate::spill::{
    BlockBuf, MAX_STORE_BYTES, RECORD_ALIGN, Record, RecordAddress, RecordFormat, random_sequence,
};
use crate::units::{PAGE_SIZE, PageIndex};

/// Where the last record may start: room is left for it, and for what ends an image.
const MAX_RECORDS_END: u64 = MAX_STORE_BYTES - (64 << 20);

/// An image on its way to `out`. What it keeps of it in memory are the pages since the last index.
pub(crate) struct ImageWriter<W> {
    out: W,
    sequence: u64,
    /// Bytes written.
    at: u64,
    /// Where the records start that are in no index yet, which has these entries.
    from: u64,
    objects: Vec<ObjectEntry>,
    patterns: Vec<PatternEntry>,
    /// Where the last index starts, and how many there are.
    last: u64,
    indices: u64,
    pages: u64,
    dictionaries: Vec<DictionaryId>,
    record: BlockBuf,
}

impl<W: Write> ImageWriter<W> {
    /// An image of a device of `size` bytes that was never attached.
    ///
    /// # Errors
    /// Those of [`ImageWriter::of_device`].
    #[cfg(test)]
    pub(crate) fn new(out: W, size: u64) -> io::Result<Self> {
        Self::of_device(out, size, None)
    }

    /// An image of a device of `size` bytes, and of what it was attached with.
    ///
    /// # Errors
    /// Those of `out`, here and below; that the kernel has no randomness.
    pub(crate) fn of_device(
        mut out: W,
        size: u64,
        sector_size: Option<SectorSize>,
    ) -> io::Result<Self> {
        let sequence = random_sequence().map_err(io::Error::other)?;
        let mut header = Header::new_zeroed();
        header.magic = MAGIC;
        header.version = VERSION.into();
        header.page_size = (PAGE_SIZE as u32).into();
        header.size = size.into();
        header.sequence = sequence.into();
        header.sector_size = sector_size.map_or(0, SectorSize::bytes).into();
        header.checksum = header.checksum().into();
        out.write_all(header.as_bytes())?;
        Ok(Self {
            out,
            sequence,
            at: HEADER_LEN as u64,
            from: HEADER_LEN as u64,
            objects: Vec::new(),
            patterns: Vec::new(),
            last: 0,
            indices: 0,
            pages: 0,
            dictionaries: Vec::new(),
            record: BlockBuf::default(),
        })
    }

    /// Adds a page that has not been added before.
    pub(crate) fn push(&mut self, page: PageIndex, data: PageData<'_>) -> io::Result<()> {
        match data {
            PageData::SameFilled(pattern) => self.patterns.push(PatternEntry {
                page: page.0.into(),
                pattern: pattern.into(),
            }),
            PageData::Object(codec, data) => self.push_object(Record { page, codec, data })?,
        }
        self.pages += 1;
        if self.objects.len().max(self.patterns.len()) == MAX_ENTRIES {
            self.end_index()?;
        }
        Ok(())
    }

    fn push_object(&mut self, record: Record<'_>) -> io::Result<()> {
        let Record { page, codec, data } = record;
        let place = place_of(self.at, RecordFormat::Saved.record_len(data.len()));
        if place > MAX_RECORDS_END {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.pad(place)?;
        self.record.clear();
        RecordFormat::Saved.encode(record, &mut self.record);
        let address = RecordAddress::from_byte(place);
        RecordFormat::Saved.seal(&mut self.record, data.len(), address, self.sequence);
        self.out.write_all(&self.record)?;
        self.at += self.record.len() as u64;
        self.objects.push(ObjectEntry {
            page: page.0.into(),
            len_less_one: (data.len() as u16 - 1).into(),
            codec: codec as u8,
            zero: 0,
        });
        Ok(())
    }

    /// Adds a dictionary that pages need, if it has not been added before.
    pub(crate) fn push_dictionary(&mut self, id: DictionaryId, bytes: &[u8]) -> io::Result<()> {
        if self.dictionaries.contains(&id) {
            return Ok(());
        }
        self.dictionaries.push(id);
        self.end_index()?;
        let mut header = IndexHeader::new_zeroed();
        header.kind = (Kind::Dictionary as u32).into();
        header.objects = (id.index() as u32).into();
        self.write_index(header, bytes)
    }

    /// Writes the index of what is in none.
    fn end_index(&mut self) -> io::Result<()> {
        let mut header = IndexHeader::new_zeroed();
        header.kind = (Kind::Pages as u32).into();
        header.objects = (self.objects.len() as u32).into();
        header.patterns = (self.patterns.len() as u32).into();
        let body = [self.objects.as_bytes(), self.patterns.as_bytes()].concat();
        if body.is_empty() {
            return Ok(());
        }
        self.objects.clear();
        self.patterns.clear();
        self.write_index(header, &body)
    }

    fn write_index(&mut self, mut header: IndexHeader, body: &[u8]) -> io::Result<()> {
        header.len = (body.len() as u32).into();
        header.from = self.from.into();
        header.previous = self.last.into();
        header.checksum = header.checksum(self.sequence, self.at, body).into();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(body)?;
        self.last = self.at;
        self.indices += 1;
        self.at += (INDEX_HEADER_LEN + body.len()) as u64;
        self.pad(self.at.next_multiple_of(RECORD_ALIGN as u64))?;
        self.from = self.at;
        Ok(())
    }

    /// Writes zeroes up to a place.
    fn pad(&mut self, place: u64) -> io::Result<()> {
        let zeroes = [0; PAGE_SIZE];
        while self.at < place {
            let some = (place - self.at).min(PAGE_SIZE as u64);
            self.out.write_all(&zeroes[..some as usize])?;
            self.at += some;
        }
        Ok(())
    }

    /// Ends the image; returns `out`, how many pages are in it and how many bytes it has.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64, u64)> {
        self.end_index()?;
        let mut end = End {
            magic: END_MAGIC,
            pages: self.pages.into(),
            last: self.last.into(),
            indices: self.indices.into(),
            bytes: self.at.into(),
            zeroes: 0.into(),
            checksum: 0.into(),
        };
        end.checksum = end.checksum(self.sequence).into();
        self.out.write_all(end.as_bytes())?;
        self.out.flush()?;
        Ok((self.out, self.pages, self.at + end.as_bytes().len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    #[test]
    fn no_record_starts_where_an_image_could_not_end() {
        for (at, fits) in [(MAX_RECORDS_END, true), (MAX_RECORDS_END + 16, false)] {
            let mut image = ImageWriter::new(io::sink(), 1 << 20).expect("no end");
            // As if as much had been written.
            image.at = at;
            let data = PageData::Object(Codec::Lz4, &[7; 100]);
            let pushed = image.push(PageIndex(0), data).map_err(|error| error.kind());
            match fits {
                true => assert_eq!(pushed, Ok(())),
                false => assert_eq!(pushed, Err(io::ErrorKind::FileTooLarge)),
            }
        }
    }
}
