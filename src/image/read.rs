//! Reading where everything is in an image, which may be any file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zerocopy::FromBytes;

use super::index::{Index, MAX_ENTRIES};
use super::store::ImageStore;
use super::{
    END_LEN, END_MAGIC, End, HEADER_LEN, Header, INDEX_HEADER_LEN, IndexHeader, Kind, MAGIC,
    ObjectEntry, PatternEntry, VERSION,
};
use crate::codec::{DictionaryId, MAX_DICTIONARY_LEN};
use crate::error::{Error, Result};
use crate::named_file::{Links, open_named_file};
use crate::sector_size::SectorSize;
use crate::spill::{MAX_STORE_BYTES, RECORD_ALIGN};
use crate::units::{MAX_DEVICE_BYTES, PAGE_SIZE, PageIndex};

/// The longest index.
pub(super) const MAX_INDEX_LEN: usize = {
    let entries = MAX_ENTRIES * (size_of::<ObjectEntry>() + size_of::<PatternEntry>());
    if entries > MAX_DICTIONARY_LEN {
        entries
    } else {
        MAX_DICTIONARY_LEN
    }
};

/// An image whose indices are read, from the last to the first. Nothing of one is handed out before
/// its checksum is known to be right.
pub(crate) struct ImageReader {
    path: PathBuf,
    file: File,
    header: Header,
    end: End,
    /// Where the next index starts, or 0.
    next: u64,
    /// Where the one that was read before it starts to have records.
    below: u64,
    indices: u64,
    pages: u64,
}

/// Some of what is in an image.
pub(crate) enum Part<'a> {
    /// What pages need: its number, and its bytes.
    Dictionary(DictionaryId, &'a [u8]),
    Pages(Index<'a>),
}

impl ImageReader {
    /// Opens an image, and looks at its start and its end.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is none, is of another version, or was cut off; [`Error::Io`].
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::of(open_named_file(path, Links::Follow)?, path)
    }

    /// The same, of a file that is open.
    ///
    /// # Errors
    /// Those of [`ImageReader::open`].
    pub(crate) fn of(file: File, path: &Path) -> Result<Self> {
        let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
        let metadata = file.metadata().map_err(failed)?;
        let header = read_header(path, &file)?;
        if metadata.len() > MAX_STORE_BYTES {
            return Err(unusable(path, "the image is larger than any can be"));
        }
        let end = read_end(path, &file, &header, metadata.len())?;
        Ok(Self {
            path: path.to_owned(),
            file,
            header,
            end,
            next: end.last.get(),
            below: end.bytes.get(),
            indices: 0,
            pages: 0,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes in the device that was saved.
    pub(crate) fn size(&self) -> u64 {
        self.header.size.get()
    }

    /// Pages in the image.
    pub(crate) fn pages(&self) -> u64 {
        self.end.pages.get()
    }

    /// What the device was attached with, if it was.
    pub(crate) fn sector_size(&self) -> Option<SectorSize> {
        SectorSize::of_bytes(self.header.sector_size.get())
    }

    /// The number that its records were written under.
    pub(crate) fn sequence(&self) -> u64 {
        self.header.sequence.get()
    }

    /// What its records are read from.
    ///
    /// # Errors
    /// [`Error::Io`] without another file descriptor.
    pub(crate) fn store(&self) -> Result<ImageStore> {
        let len = self.end.bytes.get() + END_LEN as u64;
        let file = self.file.try_clone();
        let file =
            file.map_err(|error| Error::io(format!("open {}", self.path.display()), error))?;
        Ok(ImageStore::new(self.path.clone(), file, len))
    }

    /// The next part, in `buffer`; `None` once all were handed out, and are as many as the image says.
    ///
    /// # Errors
    /// [`Error::Unusable`], what is damaged and where; [`Error::Io`].
    pub(crate) fn next<'a>(&mut self, buffer: &'a mut Vec<u8>) -> Result<Option<Part<'a>>> {
        if self.next == 0 {
            return self.check_counts();
        }
        let at = self.next;
        let header = self.read_index(buffer)?;
        let body = &buffer[INDEX_HEADER_LEN..];
        let wrong = |what: &str| self.damaged(at, buffer.len(), what);
        let (from, previous) = (header.from.get(), header.previous.get());
        let is_possible = from.is_multiple_of(RECORD_ALIGN as u64)
            && (HEADER_LEN as u64..=at).contains(&from)
            && previous < from
            && (previous > 0 || from == HEADER_LEN as u64);
        // Nothing lies between, so that what there is has a length that its indices have paid for.
        let end = (at + buffer.len() as u64).next_multiple_of(RECORD_ALIGN as u64);
        if !is_possible || end != self.below {
            return Err(wrong("what it says of its place makes no sense"));
        }
        let part = if header.kind == Kind::Dictionary as u32 {
            let id = DictionaryId::new(header.objects.get() as usize);
            let id = id.filter(|_| from == at);
            let id = id.ok_or_else(|| wrong("it has a dictionary of no number, or place"))?;
            Part::Dictionary(id, body)
        } else {
            let index = Index::new(&header, body);
            let index = index.ok_or_else(|| wrong("it is of no known kind, or length"))?;
            self.check_entries(&index, at).map_err(wrong)?;
            self.pages += index.pages();
            Part::Pages(index)
        };
        (self.next, self.below) = (previous, from);
        self.indices += 1;
        Ok(Some(part))
    }

    /// That the image is damaged: a dictionary is in it twice.
    pub(crate) fn twice(&self, id: DictionaryId) -> Error {
        let reason = format!(
            "the image is damaged: dictionary {} is in it twice",
            id.index()
        );
        unusable(&self.path, &reason)
    }

    /// That the image is damaged: `what` is wrong with a page.
    pub(crate) fn wrong(&self, page: PageIndex, what: &str) -> Error {
        let reason = format!("the image is damaged: page {} {what}", page.0);
        unusable(&self.path, &reason)
    }

    /// That all pages are of the device, and that the records end where the index starts, at byte `at`.
    fn check_entries(&self, index: &Index<'_>, at: u64) -> Result<(), &'static str> {
        let size_pages = self.header.size.get() / PAGE_SIZE as u64;
        let mut end_of_records = index.from();
        for entry in index.entries() {
            let (entry, end) = entry.ok_or("it has a record that makes no sense")?;
            if u64::from(entry.page().0) >= size_pages {
                return Err("it has a page beyond the end of the device");
            }
            end_of_records = end_of_records.max(end);
        }
        match end_of_records == at {
            true => Ok(()),
            false => Err("its records do not end where it starts"),
        }
    }

    fn check_counts<'a>(&self) -> Result<Option<Part<'a>>> {
        let End { pages, indices, .. } = self.end;
        if (pages.get(), indices.get()) == (self.pages, self.indices) {
            return Ok(None);
        }
        let reason = format!(
            "the image is damaged: it has {} pages in {} indices, and says {pages} in {indices}",
            self.pages, self.indices
        );
        Err(unusable(&self.path, &reason))
    }

    /// Reads the next index, header and all, and proves that it is one.
    fn read_index(&self, index: &mut Vec<u8>) -> Result<IndexHeader> {
        let at = self.next;
        let left = self.below.saturating_sub(at);
        let wrong = |len: usize, what: &str| self.damaged(at, len, what);
        if left < INDEX_HEADER_LEN as u64 {
            return Err(wrong(INDEX_HEADER_LEN, "it is not where one can be"));
        }
        index.resize(INDEX_HEADER_LEN, 0);
        self.fill(index, at)?;
        let header = IndexHeader::read_from_bytes(index)
            .map_err(|_| wrong(INDEX_HEADER_LEN, "it is cut off"))?;
        let len = header.len.get() as usize;
        if len > MAX_INDEX_LEN || len as u64 > left - INDEX_HEADER_LEN as u64 {
            return Err(wrong(INDEX_HEADER_LEN, "its length makes no sense"));
        }
        index.resize(INDEX_HEADER_LEN + len, 0);
        let body = &mut index[INDEX_HEADER_LEN..];
        self.fill(body, at + INDEX_HEADER_LEN as u64)?;
        if header.checksum(self.sequence(), at, body) != header.checksum.get() {
            return Err(wrong(index.len(), "its checksum does not match"));
        }
        Ok(header)
    }

    /// Reads the file from byte `at` on.
    fn fill(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file
            .read_exact_at(bytes, at)
            .map_err(|error| Error::io(format!("read {}", self.path.display()), error))
    }

    fn damaged(&self, at: u64, len: usize, what: &str) -> Error {
        let end = at + len as u64;
        let reason = format!("the image is damaged in an index, bytes {at} to {end}: {what}");
        unusable(&self.path, &reason)
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
            "the image is of version {}, and this program reads version {VERSION}: restore it with \
             the program that saved it",
            header.version
        );
        return Err(unusable(path, &reason));
    }
    let size = header.size.get();
    let makes_sense = (1..=MAX_DEVICE_BYTES).contains(&size)
        && size.is_multiple_of(PAGE_SIZE as u64)
        && header.page_size == PAGE_SIZE as u32
        && (header.sector_size == 0 || SectorSize::of_bytes(header.sector_size.get()).is_some())
        && header.zeroes == [0; 24];
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
    let end: End = zerocopy::transmute!(bytes);
    let is_right = end.magic == END_MAGIC
        && end.checksum == end.checksum(header.sequence.get())
        && end.bytes == at;
    is_right.then_some(end).ok_or_else(cut_off)
}
