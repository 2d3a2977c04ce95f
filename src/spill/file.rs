//! A plain file or a block device as backing.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::address::{SEGMENT_BYTES, SEGMENTS_PER_STORE, StoreSegment};
use super::backing::{Backing, SegmentStore};
use super::claim::{Claim, Kind, MIN_BYTES, block_device_size};
use super::config::{BackingConfig, BackingKeep};
use super::direct::DirectFile;
use super::wipe;
use crate::error::{Error, Result};

/// An open file, locked for us alone. When this is dropped, what [`BackingKeep`] says is done.
#[derive(Debug)]
pub(crate) struct FileBacking {
    file: DirectFile,
    path: PathBuf,
    kind: Kind,
    keep: BackingKeep,
    /// Segments from the start of which some may have been written to.
    touched: AtomicU32,
    /// Whether the file system takes discards; until one was refused it may.
    discards: AtomicBool,
}

impl FileBacking {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the size is below two segments; those of [`Claim::new`].
    pub(crate) fn open(config: &BackingConfig) -> Result<Self> {
        check_size(config.size)?;
        Ok(Self::of(Claim::new(config)?, config))
    }

    fn of(Claim { file, kind }: Claim, config: &BackingConfig) -> Self {
        Self {
            file,
            path: config.path.clone(),
            kind,
            keep: config.keep,
            touched: AtomicU32::new(0),
            discards: AtomicBool::new(true),
        }
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
        let range = 0..u64::from(self.touched.load(Relaxed)) * SEGMENT_BYTES;
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

fn check_size(size: Option<u64>) -> Result<()> {
    if size.is_none_or(|size| size >= MIN_BYTES) {
        return Ok(());
    }
    Err(Error::InvalidConfig {
        option: "--backing-size",
        reason: format!("must be at least {}M", MIN_BYTES >> 20),
    })
}

impl Backing for FileBacking {
    fn capacity(&self, size: Option<u64>) -> Result<u32> {
        check_size(size)?;
        let mut bytes = size.unwrap_or(u64::MAX);
        if self.kind == Kind::BlockDevice {
            let has = block_device_size(self.file.file())
                .map_err(|error| Error::io(format!("use {}", self.path.display()), error))?;
            bytes = bytes.min(has);
        }
        Ok((bytes / SEGMENT_BYTES).min(u64::from(SEGMENTS_PER_STORE)) as u32)
    }

    fn write(&self, segment: StoreSegment, offset: u32, data: &[u8]) -> io::Result<()> {
        self.touched.fetch_max(segment.0 + 1, Relaxed);
        self.file
            .write_all(data, segment.byte() + u64::from(offset))
    }
}

impl SegmentStore for FileBacking {
    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        self.file
            .read_exact(buf, segment.byte() + u64::from(offset))
    }

    fn discard(&self, segment: StoreSegment) {
        if self.keep == BackingKeep::Wipe {
            let bytes = segment.byte()..segment.byte() + SEGMENT_BYTES;
            if let Err(error) = self.wipe(bytes, None) {
                tracing::warn!("cannot wipe space of {}: {error}", self.path.display());
            }
        }
        if !self.discards.load(Relaxed) {
            return;
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file.file(), punch, segment.byte(), SEGMENT_BYTES) {
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
