//! The file that an image is written to: there as a whole, or not at all.
//!
//! While it is written it has no name where the file system allows that (`O_TMPFILE`), so a server that is killed leaves
//! nothing of it. Elsewhere, and for the moment in which it takes its place, it has a [private](private_name) one; whatever a
//! killed server leaves under such a name is removed by the next who writes a file in that directory.

mod private_name;
mod target;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::renameat;

use self::target::Target;
use crate::error::{Error, Result};
use crate::named_file::Links;

/// A file that becomes what is at a path; gone unless it does.
pub struct ImageFile {
    target: Target,
    file: File,
    /// The name that it has beside its target, if it has one.
    private: Option<String>,
}

impl ImageFile {
    /// Makes the file that is to become `path`, or what a symbolic link there leads to.
    ///
    /// # Errors
    /// [`Error::Unusable`] if anything but a regular file is there, or a link that leads nowhere; [`Error::Io`].
    pub fn create(path: &Path) -> Result<Self> {
        Self::create_with_mode(path, Links::Follow, 0o600)
    }

    fn create_with_mode(path: &Path, links: Links, mode: u32) -> Result<Self> {
        let target = Target::of(path, links)?;
        private_name::remove_abandoned(target.dir());
        Self::unnamed(target, mode).or_else(|target| Self::named(target, mode))
    }

    /// A file without a name, or the target again if the file system has none such.
    fn unnamed(target: Target, mode: u32) -> Result<Self, Target> {
        match private_name::create_unnamed(target.dir(), mode) {
            Ok(file) => Ok(Self {
                target,
                file,
                private: None,
            }),
            Err(_) => Err(target),
        }
    }

    fn named(target: Target, mode: u32) -> Result<Self> {
        match private_name::create(target.dir(), mode) {
            Ok((file, private)) => Ok(Self {
                target,
                file,
                private: Some(private),
            }),
            Err(error) => Err(failed(target.path(), error)),
        }
    }

    /// Has the file on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        let synced = self.file.sync_all();
        synced.map_err(|error| failed(self.target.path(), error))
    }

    /// Puts the file, which was synced, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`]; what is there stays.
    pub fn commit(mut self) -> Result<()> {
        self.put_in_place()?;
        let synced = self.target.sync_dir();
        synced.map_err(|error| failed(self.target.path(), error))
    }

    fn put_in_place(&mut self) -> Result<()> {
        let Self {
            target,
            file,
            private,
        } = self;
        let failed = |error| failed(target.path(), error);
        let dir = target.dir();
        if private.is_none() {
            *private = Some(private_name::give(dir, file).map_err(failed)?);
        }
        if let Some(name) = private {
            renameat(dir, &*name, dir, target.name()).map_err(|error| failed(error.into()))?;
        }
        *private = None;
        Ok(())
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        if let Some(name) = &self.private {
            private_name::remove(self.target.dir(), name, &self.file);
        }
    }
}

impl AsFd for ImageFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for ImageFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a file at `path`, or where a link there leads if `links` are followed, of `bytes` with permissions `mode`, less
/// the umask, or replaces one, as a whole or not at all for whoever looks at it. Nothing waits for a disk.
///
/// # Errors
/// [`Error::Unusable`] if anything but a regular file is there; [`Error::Io`].
pub fn write_whole(path: &Path, links: Links, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = ImageFile::create_with_mode(path, links, mode)?;
    file.write_all(bytes).map_err(|error| failed(path, error))?;
    file.put_in_place()
}

/// That `path` cannot be written.
fn failed(path: &Path, error: io::Error) -> Error {
    Error::io(format!("write {}", path.display()), error)
}

#[cfg(test)]
mod tests;
