//! An image, as what records are read from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::spill::{Backing, SEGMENT_BYTES, StoreSegment};

/// A [`Backing`] that is only read. Behind the file's end, as it was when it was opened, are zeroes:
/// readers ask for whole blocks.
pub(crate) struct ImageStore {
    path: PathBuf,
    file: File,
    len: u64,
}

impl ImageStore {
    pub(super) fn new(path: PathBuf, file: File, len: u64) -> Self {
        Self { path, file, len }
    }
}

impl Backing for ImageStore {
    fn capacity(&self, _size: Option<u64>) -> Result<u32> {
        Ok(self.len.div_ceil(SEGMENT_BYTES) as u32)
    }

    fn write(&self, _segment: StoreSegment, _offset: u32, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        let at = segment.byte() + u64::from(offset);
        let there = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (data, behind) = buf.split_at_mut(there);
        behind.fill(0);
        self.file.read_exact_at(data, at)
    }

    fn discard(&self, _segment: StoreSegment) {}

    fn path(&self) -> &Path {
        &self.path
    }
}
