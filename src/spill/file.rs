//! A plain file or a block device as backing.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::address::MAX_STORE_BYTES;
use super::backing::{Backing, Store, check_size};
use super::claim::{Claim, block_device_size};
use super::config::{BackingConfig, BackingKeep};
use super::direct::DirectFile;
use super::handover::{Handover, KeptStore, Kind, StoreNote};
use super::wipe;
use crate::error::{Error, Result};

/// An open file, locked for us alone. When this is dropped, what [`BackingKeep`] says is done.
#[derive(Debug)]
pub struct FileBacking {
    file: DirectFile,
    path: PathBuf,
    kind: Kind,
    keep: BackingKeep,
    /// Bytes from the start of which some may have been written to.
    touched: AtomicU64,
    /// Whether the file system takes discards; until one was refused it may.
    discards: AtomicBool,
}

impl FileBacking {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`InvalidConfig`](crate::Error::InvalidConfig) if the size is below two segments;
    /// [`Unusable`](crate::Error::Unusable) or [`Io`](crate::Error::Io) about the file.
    pub fn open(config: &BackingConfig) -> Result<Self> {
        check_size(config.size)?;
        Ok(Self::of(Claim::new(config)?, config))
    }

    fn of(Claim { file, kind }: Claim, config: &BackingConfig) -> Self {
        Self {
            file,
            path: config.path.clone(),
            kind,
            keep: config.keep,
            touched: AtomicU64::new(0),
            discards: AtomicBool::new(true),
        }
    }

    /// Goes on with a file that another process had open, whose lock goes with it.
    ///
    /// # Errors
    /// [`Unusable`](crate::Error::Unusable) if it was no backing.
    pub(super) fn adopt(KeptStore { file, note }: KeptStore) -> Result<Self> {
        let path = note.path();
        let Some((kind, keep)) = note.backing else {
            return Err(Error::Unusable {
                path,
                reason: "was an image".to_owned(),
            });
        };
        Ok(Self {
            file: DirectFile::new(fs::File::from(file)),
            path,
            kind,
            keep,
            touched: AtomicU64::new(u64::MAX),
            discards: AtomicBool::new(true),
        })
    }

    /// Whether `path` still leads to the file we have open.
    fn is_at_path(&self) -> io::Result<bool> {
        let (open, there) = (
            self.file.file().metadata()?,
            fs::symlink_metadata(&self.path)?,
        );
        Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
    }
}

impl FileBacking {
    /// Overwrites what a range of bytes holds; returns whether there was time for all of it.
    fn wipe(&self, mut range: Range<u64>, deadline: Option<Instant>) -> io::Result<bool> {
        let file = self.file.file();
        if self.kind == Kind::BlockDevice {
            range.end = range.end.min(block_device_size(file)?);
            return wipe::wipe_device(file, range, deadline);
        }
        range.end = range.end.min(file.metadata()?.len());
        let in_time = || deadline.is_none_or(|deadline| Instant::now() < deadline);
        wipe::wipe_file(&self.file, range, in_time)
    }

    /// Overwrites all that was written, in a bounded time.
    fn wipe_all(&self) {
        let range = 0..self.touched.load(Relaxed);
        let path = self.path.display();
        match self.wipe(range, Some(Instant::now() + WIPE_TIME)) {
            Ok(true) => {}
            Ok(false) => tracing::warn!("there was not the time to wipe all of {path}"),
            Err(error) => tracing::warn!("cannot wipe {path}: {error}"),
        }
    }

    /// Whether a file that we made is still at its path: it may have been removed already.
    fn is_left(&self) -> bool {
        self.kind != Kind::Made || self.is_at_path().unwrap_or(false)
    }
}

/// How long overwriting what is left at the end may hold up that end.
const WIPE_TIME: Duration = Duration::from_millis(1500);

impl Backing for FileBacking {
    fn capacity(&self) -> io::Result<u64> {
        match self.kind {
            Kind::BlockDevice => block_device_size(self.file.file()),
            Kind::Made | Kind::Found => Ok(MAX_STORE_BYTES),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.touched.fetch_max(offset + data.len() as u64, Relaxed);
        self.file.write_all(data, offset)
    }
}

impl Store for FileBacking {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(buf, offset)
    }

    fn discard(&self, segment: Range<u64>) {
        if self.keep == BackingKeep::Wipe
            && let Err(error) = self.wipe(segment.clone(), None)
        {
            tracing::warn!("cannot wipe space of {}: {error}", self.path.display());
        }
        if !self.discards.load(Relaxed) {
            return;
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let len = segment.end - segment.start;
        match rustix::fs::fallocate(self.file.file(), punch, segment.start, len) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                tracing::info!(
                    "{} takes no discards: its space is reused, not given back",
                    self.path.display()
                );
                self.discards.store(false, Relaxed);
            }
            Err(error) => {
                tracing::warn!("cannot give back space of {}: {error}", self.path.display());
            }
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn handover(&self) -> Option<Handover<'_>> {
        Some(Handover {
            file: self.file.file().as_fd(),
            note: StoreNote::of_backing(&self.path, self.kind, self.keep),
        })
    }
}

impl Drop for FileBacking {
    fn drop(&mut self) {
        match self.keep {
            // But for one that nothing was written to: a start that failed, say.
            BackingKeep::Keep if self.touched.load(Relaxed) > 0 => return,
            BackingKeep::Wipe if self.is_left() => self.wipe_all(),
            _ => {}
        }
        let done = match self.kind {
            Kind::Made => match self.is_at_path() {
                Ok(true) => fs::remove_file(&self.path),
                _ => Ok(()),
            },
            Kind::Found => self.file.file().set_len(0),
            Kind::BlockDevice => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(
                "cannot clean up the backing {}: {error}",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests;
