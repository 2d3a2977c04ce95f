//! Where a file goes: a directory, which is held open, and a name in it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, fsync, open, openat};

use super::failed;
use crate::error::Result;
use crate::named_file::{Links, follow_links, no_link};

pub(super) struct Target {
    /// As the user calls it.
    path: PathBuf,
    dir: OwnedFd,
    name: OsString,
}

impl Target {
    /// Finds out where a file at `path` goes.
    ///
    /// # Errors
    /// [`crate::Error::Unusable`] if anything but a regular file is there; [`crate::Error::Io`].
    pub(super) fn of(path: &Path, links: Links) -> Result<Self> {
        let place = match links {
            Links::Follow => follow_links(path)?,
            Links::Refuse => no_link(path)?,
        };
        let no_name = || failed(path, io::ErrorKind::IsADirectory.into());
        let name = place.file_name().ok_or_else(no_name)?.to_owned();
        let dir = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = open(dir, flags, Mode::empty()).map_err(|error| failed(path, error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            dir,
            name,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Has the names in the directory on disk.
    pub(super) fn sync_dir(&self) -> io::Result<()> {
        Ok(fsync(readable(self.dir())?)?)
    }
}

/// A directory again, for what needs more than a look.
pub(super) fn readable(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(dir, ".", flags, Mode::empty())
}
