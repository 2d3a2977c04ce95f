//! What may become a backing, and how it is opened. What holds data of others is refused.
//!
//! Invariants:
//! 1. Nothing that was found is opened before its type is known, and what was looked at is what is
//!    opened.
//! 2. A symbolic link is followed to a block device only: on the way to a plain file it may be how
//!    others choose the file.
//! 3. What was found is written to only if nothing is in it, or the spill of a device that is gone,
//!    or because of [`BackingConfig::force`].
//! 4. Whose a plain file is, and how it is reached, is looked at by who opens it: of one that was handed over
//!    (`open_to_hand`) that was another process.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::address::{MIN_BYTES, SEGMENT_BYTES};
use super::blocks::BlockBuf;
use super::config::BackingConfig;
use super::direct::DirectFile;
use super::handover::Kind;
use super::log::is_segment;
use super::{signature, wipe};
use crate::error::{Error, Result};
use crate::file_lock;
use crate::handed_file::HandedFile;
use rustix::fs::{FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

/// How long it may take to read what might be empty.
const LOOK: Duration = Duration::from_secs(5);

/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// Bytes at either end of a block device by which others tell what is on it.
const MARGIN: u64 = 1 << 20;

/// A file or block device to spill to: locked, and a file is empty.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) file: DirectFile,
    pub(super) kind: Kind,
}

impl Claim {
    /// Opens what is at the path, or makes a file there.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is none, in use, another user's, too small, or holds data that is
    /// not an old spill; [`Error::Io`] if the kernel refuses.
    pub(super) fn new(config: &BackingConfig) -> Result<Self> {
        let path = config.path.as_path();
        let claim = match &config.handed {
            Some(handed) => Self::handed(handed, config),
            None => match make(path)? {
                Some(file) => Self::made(file, path),
                None => Self::found(open_own(path)?, config),
            },
        }?;
        claim.file.log_mode(path);
        Ok(claim)
    }

    fn made(file: File, path: &Path) -> Result<Self> {
        let locked = lock(&file, path, false);
        // Another device had opened and locked the file before we did: then it is that one's.
        if matches!(locked, Err(Error::Io { .. })) {
            let _ = fs::remove_file(path);
        }
        locked.map(|()| Self {
            file: DirectFile::new(file),
            kind: Kind::Made,
        })
    }

    /// One that was made for us is found empty, and its name is its maker's to remove.
    fn handed(handed: &HandedFile, config: &BackingConfig) -> Result<Self> {
        let path = config.path.as_path();
        let file = handed.open().map_err(|error| cannot_open(path, error))?;
        Self::found(file, config)
    }

    fn found(file: File, config: &BackingConfig) -> Result<Self> {
        let path = config.path.as_path();
        let failed = |error: io::Error| Error::io(format!("use {}", path.display()), error);
        let metadata = file.metadata().map_err(failed)?;
        let is_block_device = metadata.file_type().is_block_device();
        lock(&file, path, is_block_device)?;
        let mut len = metadata.len();
        if is_block_device {
            len = block_device_size(&file).map_err(failed)?;
            if len < MIN_BYTES {
                return Err(unusable(
                    path,
                    "is too small: a backing needs at least 4 MiB",
                ));
            }
        }
        let file = DirectFile::new(file);
        if config.force {
            give_up(&file, len, path).map_err(failed)?;
        } else if let Some(what) = precious(&file, len).map_err(failed)? {
            return Err(unusable(path, refusal(&what, path, is_block_device)));
        }
        if !is_block_device {
            if metadata.permissions().mode() & 0o077 != 0 {
                let private = fs::Permissions::from_mode(0o600);
                match file.file().set_permissions(private) {
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        let reason = "can be read by other users; chmod 600 it first";
                        return Err(unusable(path, reason));
                    }
                    set => set.map_err(failed)?,
                }
            }
            file.file().set_len(0).map_err(failed)?;
        }
        let kind = match is_block_device {
            true => Kind::BlockDevice,
            false => Kind::Found,
        };
        Ok(Self { file, kind })
    }
}

impl BackingConfig {
    /// Opens what is at the path, or makes a file there, for a process that has no right to. What is in it is
    /// looked at by whoever it is handed to.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is neither a plain file of this user's nor a block device; [`Error::Io`].
    pub fn hand(&self) -> Result<HandedFile> {
        open_to_hand(&self.path)
    }
}

/// Opens what is at the path, or makes a file there, for another process to use.
///
/// # Errors
/// [`Error::Unusable`] if it is neither a plain file of this user's nor a block device; [`Error::Io`].
fn open_to_hand(path: &Path) -> Result<HandedFile> {
    Ok(match make(path)? {
        Some(file) => HandedFile::new(file, true),
        None => HandedFile::new(open_own(path)?, false),
    })
}

/// Overwrites with zeroes the file of a spill that nothing uses any more.
///
/// # Errors
/// [`Error::Unusable`] if it is no plain file or holds anything but a spill; [`Error::Io`] for what
/// the kernel says.
pub fn wipe_spill(path: &Path) -> Result<()> {
    let failed = |error: io::Error| Error::io(format!("wipe {}", path.display()), error);
    let (file, len) = open_spill(path)?;
    wipe::wipe_file(&file, 0..len, || true)
        .map(drop)
        .map_err(failed)
}

/// What is in a file that was spilled to, open for reading, that nothing was spilled as: somebody has written to the
/// file since. `None` if it holds nothing else.
///
/// # Errors
/// [`Error::Io`] for what the kernel says.
pub fn not_spilled(file: File) -> Result<Option<String>> {
    let failed = |error| Error::io("look at what was spilled", error);
    let len = file.metadata().map_err(failed)?.len();
    precious(&DirectFile::new(file), len).map_err(failed)
}

/// Opens a file of a spill to wipe it; returns it with its length.
///
/// # Errors
/// [`Error::Unusable`] if it is no plain file or holds anything else; [`Error::Io`].
fn open_spill(path: &Path) -> Result<(DirectFile, u64)> {
    let failed = |error: io::Error| Error::io(format!("open {}", path.display()), error);
    let file = open_found(path)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(unusable(path, "is no plain file"));
    }
    let (file, len) = (DirectFile::new(file), metadata.len());
    match precious(&file, len).map_err(failed)? {
        None => Ok((file, len)),
        Some(what) => Err(unusable(path, format!("holds {what}, and is not a spill"))),
    }
}

/// Makes a file; `None` if there is something already.
fn make(path: &Path) -> Result<Option<File>> {
    let made = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match made {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(cannot_open(path, error)),
    }
}

/// Opens a plain file of this user's, or a block device.
fn open_own(path: &Path) -> Result<File> {
    let file = open_found(path)?;
    let metadata = file.metadata();
    let metadata = metadata.map_err(|error| cannot_open(path, error))?;
    if metadata.is_file() {
        check_private(&metadata).map_err(|reason| unusable(path, reason))?;
    }
    Ok(file)
}

/// Opens a plain file or a block device.
fn open_found(path: &Path) -> Result<File> {
    let mut there = look_at(path, OFlags::NOFOLLOW)?;
    let file_type = |file: &File| {
        let metadata = file.metadata();
        metadata.map_err(|error| cannot_open(path, error))
    };
    let mut found = file_type(&there)?.file_type();
    if found.is_symlink() {
        there = look_at(path, OFlags::empty())?;
        found = file_type(&there)?.file_type();
        if !found.is_block_device() {
            let reason = "is a symbolic link, and to no block device; give the path it leads to";
            return Err(unusable(path, reason));
        }
    }
    // On a block device this refuses one that is mounted; elsewhere it means nothing.
    let exclusive = match found.is_block_device() {
        true => OFlags::EXCL,
        false if found.is_file() => OFlags::empty(),
        false if found.is_dir() => {
            let reason = "is a directory; give the path of a file in it";
            return Err(unusable(path, reason));
        }
        false => return Err(unusable(path, "is neither a plain file nor a block device")),
    };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((exclusive | OFlags::NONBLOCK).bits() as i32)
        .open(format!("/proc/self/fd/{}", there.as_raw_fd()))
        .map_err(|error| cannot_open(path, error))
}

/// What a path leads to, not opened.
fn look_at(path: &Path, flags: OFlags) -> Result<File> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(there) => Ok(there.into()),
        Err(Errno::NOENT) => Err(unusable(
            path,
            "is gone, or a symbolic link that leads nowhere",
        )),
        Err(error) => Err(cannot_open(path, error.into())),
    }
}

fn cannot_open(path: &Path, error: io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::BUSY) => unusable(path, "is in use: mounted, or another program's"),
        Some(Errno::NOENT) => unusable(path, "its directory does not exist; make it first"),
        _ => Error::io(format!("open the backing {}", path.display()), error),
    }
}

fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Unusable {
        path: path.into(),
        reason: reason.into(),
    }
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

fn lock(file: &File, path: &Path, is_block_device: bool) -> Result<()> {
    let alone = FlockOperation::NonBlockingLockExclusive;
    match file_lock::lock(file, alone, is_block_device) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(unusable(path, "is in use by another device")),
        Err(error) => Err(Error::io(format!("lock {}", path.display()), error)),
    }
}

pub(crate) fn block_device_size(mut file: &File) -> io::Result<u64> {
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
}

fn refusal(what: &str, path: &Path, is_block_device: bool) -> String {
    let path = path.display();
    match is_block_device {
        true => format!(
            "holds {what}; if nothing on it is wanted, clear all of it (blkdiscard -fz {path}; wipefs \
             clears its signatures only), or have it overwritten with `BackingConfig::force`"
        ),
        false => format!(
            "holds {what}, and is not an old spill; give another path, remove it, or have it \
             overwritten with `BackingConfig::force`"
        ),
    }
}

/// Has others find nothing any more on a block device, of which they might take a part for whole.
fn give_up(file: &DirectFile, len: u64, path: &Path) -> io::Result<()> {
    if let Some(what) = signature::find(len, |at, buf| file.read_exact(buf, at))? {
        tracing::warn!(
            "{what} on {} is overwritten, as `BackingConfig::force` says",
            path.display()
        );
    }
    if file.file().metadata()?.file_type().is_block_device() {
        for range in [0..MARGIN, len - MARGIN..len] {
            wipe::wipe_device(file.file(), range, None)?;
        }
    }
    Ok(())
}

/// What somebody may miss of what is in a file or block device of `len` bytes, if anything: it is
/// none of an old spill and not only zeroes.
fn precious(file: &DirectFile, len: u64) -> io::Result<Option<String>> {
    if let Some(what) = signature::find(len, |at, buf| file.read_exact(buf, at))? {
        return Ok(Some(what.to_owned()));
    }
    let data = match first_data(file, len, Instant::now() + LOOK)? {
        FirstData::None => return Ok(None),
        FirstData::Unknown => {
            let seconds = LOOK.as_secs();
            return Ok(Some(format!(
                "more than could be read in {seconds} s to find it empty"
            )));
        }
        FirstData::At(at) => at,
    };
    // The first segments of an old spill may have been given back.
    let mut start = [0; 64];
    let start = &mut start[..(len - data).min(64) as usize];
    file.read_exact(start, data)?;
    let is_spill = data.is_multiple_of(SEGMENT_BYTES) && is_segment(start);
    Ok((!is_spill).then(|| format!("data, from byte {data} on")))
}

/// Where the first byte is that is not zero.
#[derive(Debug, PartialEq, Eq)]
enum FirstData {
    At(u64),
    None,
    /// None was found in time.
    Unknown,
}

fn first_data(file: &DirectFile, len: u64, deadline: Instant) -> io::Result<FirstData> {
    let mut buf = BlockBuf::with_capacity(CHUNK as usize);
    let mut end = 0;
    while end < len {
        let start = match rustix::fs::seek(file.file(), SeekFrom::Data(end)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // A block device, or a file system that does not tell.
            Err(_) => end,
        };
        end = rustix::fs::seek(file.file(), SeekFrom::Hole(start))
            .unwrap_or(len)
            .min(len);
        for at in (start..end).step_by(CHUNK as usize) {
            if Instant::now() > deadline {
                return Ok(FirstData::Unknown);
            }
            buf.resize((end - at).min(CHUNK) as usize);
            file.read_exact(&mut buf, at)?;
            if let Some(found) = buf.iter().position(|&byte| byte != 0) {
                return Ok(FirstData::At(at + found as u64));
            }
        }
    }
    Ok(FirstData::None)
}

#[cfg(test)]
mod tests;
