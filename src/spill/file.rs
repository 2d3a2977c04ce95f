//! A plain file or a block device as backing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom};
use rustix::io::Errno;

use super::backing::{Backing, SegmentStore};
use super::direct::DirectFile;
use super::log::is_segment;
use super::segment::{SEGMENT_BYTES, SEGMENTS_PER_STORE};
use super::stores::StoreSegment;
use super::wipe;
use crate::config::{BackingConfig, BackingKeep};
use crate::error::{Error, Result};
use crate::file_lock;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Made,
    Found,
    BlockDevice,
}

impl FileBacking {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if the size is below two segments; [`Error::Unusable`] if it is a
    /// symlink, a directory, in use, another user's, or holds data that is not an old spill;
    /// [`Error::Io`] if the kernel refuses.
    pub(crate) fn open(config: &BackingConfig) -> Result<Self> {
        let path = config.path.as_path();
        check_size(config.size)?;
        let (file, made) = open(path)?;
        Self::claim(file, made, config)
    }

    /// Takes an open file, and if it cannot be used removes one that was made.
    fn claim(file: File, made: bool, config: &BackingConfig) -> Result<Self> {
        let backing = Self::check_and_lock(file, made, config);
        // What cannot be used of a new file is the file system; or another device had opened and
        // locked the file before we did, and it is that one's.
        let is_anothers = matches!(backing, Err(Error::Unusable { .. }));
        if made && backing.is_err() && !is_anothers {
            let _ = fs::remove_file(&config.path);
        }
        backing
    }

    fn check_and_lock(file: File, made: bool, config: &BackingConfig) -> Result<Self> {
        let path = config.path.as_path();
        let unusable = |reason: &str| Error::Unusable {
            path: path.into(),
            reason: reason.into(),
        };
        let failed = |error: io::Error| Error::io(format!("use {}", path.display()), error);
        let metadata = file.metadata().map_err(failed)?;
        let is_block_device = metadata.file_type().is_block_device();
        if !is_block_device && !metadata.is_file() {
            return Err(unusable("is neither a plain file nor a block device"));
        }
        if !is_block_device && !made {
            check_private(&metadata).map_err(unusable)?;
        }
        let alone = FlockOperation::NonBlockingLockExclusive;
        match file_lock::lock(&file, alone, is_block_device) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(unusable("is in use by another device")),
            Err(error) => return Err(failed(error.into())),
        }
        let len = if is_block_device {
            block_device_size(&file).map_err(failed)?
        } else {
            metadata.len()
        };
        if !made && !is_ours(&file, len).map_err(failed)? {
            return Err(unusable(
                "holds data that is not an old spill; remove it, or give another path",
            ));
        }
        if is_block_device {
            if len < MIN_BYTES {
                return Err(unusable("is too small: a backing needs at least 4 MiB"));
            }
        } else {
            file.set_permissions(fs::Permissions::from_mode(0o600))
                .map_err(failed)?;
            file.set_len(0).map_err(failed)?;
        }
        let file = DirectFile::new(file);
        file.log_mode(path);
        Ok(Self {
            file,
            path: config.path.clone(),
            kind: match (is_block_device, made) {
                (true, _) => Kind::BlockDevice,
                (false, true) => Kind::Made,
                (false, false) => Kind::Found,
            },
            keep: config.keep,
            touched: AtomicU32::new(0),
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
        wipe::wipe_file(&self.file, range, deadline)
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

/// Opens a file of a spill to wipe it; returns it with its length.
///
/// # Errors
/// [`Error::Unusable`] if it is no plain file or holds anything else; [`Error::Io`].
pub(super) fn open_spill(path: &Path) -> Result<(File, u64)> {
    let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
    let unusable = |reason: &str| Error::Unusable {
        path: path.into(),
        reason: reason.into(),
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(path)
        .map_err(|error| cannot_open(path, error))?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable("is no plain file"));
    }
    if !is_ours(&file, metadata.len()).map_err(failed)? {
        return Err(unusable("holds data that is not a spill"));
    }
    Ok((file, metadata.len()))
}

/// Whether a plain file that was found is ours alone: its owner could read all that is spilled,
/// whatever its mode is by then, and another name of it may be where others have it open. Or else
/// why not.
fn check_private(metadata: &fs::Metadata) -> std::result::Result<(), &'static str> {
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(
            "is another user's, who could read what is spilled; remove it, or give another path",
        );
    }
    if metadata.nlink() != 1 {
        return Err("has another name, a hard link; remove it, or give another path");
    }
    Ok(())
}

/// How long overwriting what is left at the end may hold up that end.
const WIPE_TIME: Duration = Duration::from_millis(1500);

/// The least that eviction and cleaning together can work in.
const MIN_BYTES: u64 = 2 * SEGMENT_BYTES;

fn check_size(size: Option<u64>) -> Result<()> {
    if size.is_none_or(|size| size >= MIN_BYTES) {
        return Ok(());
    }
    Err(Error::InvalidConfig {
        option: "--backing-size",
        reason: format!("must be at least {}M", MIN_BYTES >> 20),
    })
}

/// Opens the path, or makes the file; returns whether it was made.
fn open(path: &Path) -> Result<(File, bool)> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let nofollow = OFlags::NOFOLLOW.bits() as i32;
    let made = options
        .clone()
        .create_new(true)
        .custom_flags(nofollow)
        .open(path);
    match made {
        Ok(file) => return Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(cannot_open(path, error)),
    }
    // On a block device O_EXCL refuses one that is mounted; elsewhere it means nothing without
    // O_CREAT.
    let nonblock = OFlags::NONBLOCK.bits() as i32;
    let exclusive =
        fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_block_device());
    let excl = if exclusive {
        OFlags::EXCL.bits() as i32
    } else {
        0
    };
    let opened = options.custom_flags(nofollow | nonblock | excl).open(path);
    opened
        .map(|file| (file, false))
        .map_err(|error| cannot_open(path, error))
}

fn cannot_open(path: &Path, error: io::Error) -> Error {
    let unusable = |reason: &str| Error::Unusable {
        path: path.into(),
        reason: reason.into(),
    };
    match Errno::from_io_error(&error) {
        Some(Errno::LOOP) => unusable("is a symbolic link; give the path it leads to"),
        Some(Errno::ISDIR) => unusable("is a directory; give the path of a file in it"),
        Some(Errno::BUSY) => unusable("is in use: mounted, or another program's"),
        Some(Errno::NOENT) => unusable("its directory does not exist; make it first"),
        _ => Error::io(format!("open the backing {}", path.display()), error),
    }
}

/// Whether the file's data may be overwritten: there is none, or it begins with a segment. The
/// first segments of an old spill may have been given back, so they need not be at the start.
fn is_ours(file: &File, len: u64) -> io::Result<bool> {
    let first_data = match rustix::fs::seek(file, SeekFrom::Data(0)) {
        Ok(at) => at / SEGMENT_BYTES * SEGMENT_BYTES,
        Err(Errno::NXIO) => return Ok(true),
        // A block device, or a file system that does not tell.
        Err(_) => 0,
    };
    let mut start = [0; 4096];
    let read = read_some(file, first_data, &mut start)?;
    if is_segment(&start[..read]) {
        return Ok(true);
    }
    is_blank(file, len)
}

/// Whether all that file systems and the like put their signatures in is zero.
fn is_blank(file: &File, len: u64) -> io::Result<bool> {
    const START: u64 = 16 << 20;
    const END: u64 = 1 << 20;
    let mut buf = vec![0; 1 << 20];
    for range in [0..START.min(len), len.saturating_sub(END)..len] {
        for at in range.clone().step_by(buf.len()) {
            let wanted = (range.end - at).min(buf.len() as u64) as usize;
            let read = read_some(file, at, &mut buf[..wanted])?;
            if buf[..read].iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
fn read_some(file: &File, at: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match file.read_at(&mut buf[len..], at + len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(len)
}

pub(crate) fn block_device_size(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
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
