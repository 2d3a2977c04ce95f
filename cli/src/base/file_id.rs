//! A plain file, told from another one that came to stand in its place.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags};
use serde::{Deserialize, Serialize};

/// What tells a file.
const SEEN: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// A plain file, and where it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) path: PathBuf,
    dev: u64,
    ino: u64,
    /// Inode numbers are used again; an inode's time of birth is not.
    born: SystemTime,
}

impl FileId {
    /// The plain file at `path`, if there is one and its file system keeps times of birth.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        Self::seen(path, &look(CWD, path.as_os_str())?)
    }

    /// The file at `path` if it is as one that we have only just made: ours alone, with nothing in it.
    pub(crate) fn just_made(path: &Path) -> Option<Self> {
        let stat = look(CWD, path.as_os_str())?;
        let ours = stat.stx_uid == rustix::process::geteuid().as_raw();
        let is_new = stat.stx_size == 0 && stat.stx_nlink == 1 && stat.stx_mode & 0o777 == 0o600;
        Self::seen(path, &stat).filter(|_| ours && is_new)
    }

    fn seen(path: &Path, stat: &Statx) -> Option<Self> {
        let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
        let knows_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let seconds = u64::try_from(stat.stx_btime.tv_sec).ok()?;
        (is_file && knows_birth).then(|| Self {
            path: path.to_owned(),
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: SystemTime::UNIX_EPOCH + Duration::new(seconds, stat.stx_btime.tv_nsec),
        })
    }

    fn is(&self, stat: &Statx) -> bool {
        Self::seen(&self.path, stat).as_ref() == Some(self)
    }

    /// Whether it has this name in this directory.
    pub(crate) fn is_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> bool {
        look(dir, name).is_some_and(|stat| self.is(&stat))
    }

    /// Whether it is what was opened.
    pub(crate) fn is_open(&self, file: impl AsFd) -> bool {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, SEEN);
        stat.is_ok_and(|stat| self.is(&stat))
    }

    /// A name that no other file has.
    pub(crate) fn name(&self) -> String {
        let born = self.born.duration_since(SystemTime::UNIX_EPOCH);
        format!("{:x}-{:x}", self.ino, born.unwrap_or_default().as_nanos())
    }
}

fn look(dir: BorrowedFd<'_>, name: &OsStr) -> Option<Statx> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, SEEN).ok()
}
