//! An image, as what records are read from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::spill::{Handover, Store, StoreNote};

/// A store that is only read. Behind the file's end, as it was when it was opened, are zeroes:
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

impl Store for ImageStore {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (data, behind) = buf.split_at_mut(there);
        behind.fill(0);
        self.file.read_exact_at(data, at)
    }

    /// It is somebody's file: its space stays.
    fn discard(&self, _segment: Range<u64>) {}

    fn path(&self) -> &Path {
        &self.path
    }

    fn handover(&self) -> Option<Handover<'_>> {
        Some(Handover {
            file: self.file.as_fd(),
            note: StoreNote::of_image(&self.path),
        })
    }
}
