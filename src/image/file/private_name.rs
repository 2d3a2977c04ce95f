//! Names that files have beside the place that they are to take.
//!
//! Who makes such a file has a lock on it (flock) before it has its name, or as soon as it can; one that nobody has
//! locked was left by a process that was killed.

use std::fs::File;
use std::io::{self, ErrorKind};

use rustix::fd::AsRawFd;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, Stat, flock, fstat, linkat, openat,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::target::readable;
use crate::spill::random_sequence;

/// How each starts; what follows are [`RANDOM`] letters and digits.
const PREFIX: &str = ".uzram-save-";

const RANDOM: usize = 6;

/// How many names are tried: each may be another's.
const TRIES: usize = 64;

/// Makes a file without a name in a directory, locked.
pub(super) fn create_unnamed(dir: BorrowedFd<'_>, mode: u32) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(openat(dir, ".", flags, Mode::from_raw_mode(mode))?);
    lock(&file)?;
    Ok(file)
}

/// Makes a file with a private name, locked.
pub(super) fn create(dir: BorrowedFd<'_>, mode: u32) -> io::Result<(File, String)> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        let name = random()?;
        let file = match openat(dir, &*name, flags, Mode::from_raw_mode(mode)) {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(error.into()),
        };
        // Until it is locked it looks abandoned, and whoever removes it then has it locked first.
        match lock(&file) {
            Ok(()) if is_at(dir, &name, &file) => return Ok((file, name)),
            Ok(()) | Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Gives a file without a name a private one, and returns that.
pub(super) fn give(dir: BorrowedFd<'_>, file: &File) -> io::Result<String> {
    let open = format!("/proc/self/fd/{}", file.as_raw_fd());
    for _ in 0..TRIES {
        let name = random()?;
        match linkat(CWD, &*open, dir, &*name, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// Removes a name, if it is still that of `file`.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &str, file: &File) -> bool {
    is_at(dir, name, file) && unlinkat(dir, name, AtFlags::empty()).is_ok()
}

/// Removes the files that processes of ours left in a directory when they were killed, as far as it can be read.
pub(super) fn remove_abandoned(dir: BorrowedFd<'_>) {
    let Ok(entries) = readable(dir).and_then(Dir::new) else {
        return;
    };
    for entry in entries {
        // What cannot be listed cannot be told to be ours.
        let Ok(entry) = entry else { return };
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        if is_private(name)
            && let Some(file) = abandoned(dir, name)
            && remove(dir, name, &file)
        {
            tracing::info!("removed {name}, which a save that was killed has left");
        }
    }
}

/// The file of a private name if it is ours alone and nobody has it locked; locked by us then.
fn abandoned(dir: BorrowedFd<'_>, name: &str) -> Option<File> {
    let is_ours = |stat: &Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && stat.st_nlink == 1
    };
    // Before it is opened, which does something to some devices.
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .ok()
        .filter(is_ours)?;
    // NFS locks for one alone only what may be written to.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty()).ok()?);
    fstat(&file).ok().filter(is_ours)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

/// Locks a file that we have made. Where the file system has no locks nothing is ever found to be abandoned.
fn lock(file: &File) -> rustix::io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        locked => locked,
    }
}

fn is_at(dir: BorrowedFd<'_>, name: &str, file: impl AsFd) -> bool {
    let id = |stat: Stat| (stat.st_dev, stat.st_ino);
    let named = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(id);
    matches!((named, fstat(file).map(id)), (Ok(named), Ok(open)) if named == open)
}

fn random() -> io::Result<String> {
    let mut number = random_sequence().map_err(io::Error::other)? >> 16;
    let digits = (0..RANDOM).map(|_| {
        let digit = char::from_digit((number % 36) as u32, 36).unwrap_or('0');
        number /= 36;
        digit
    });
    Ok(PREFIX.chars().chain(digits).collect())
}

fn is_private(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|random| {
        random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}
