//! A directory that one process mounts for another to serve ([`super::Mount::start_on`]), which then needs no
//! right to mount, nor to unmount.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::mountpoint::{self, DEV_FUSE};
use super::{CLOSE_GRACE, SOURCE};
use crate::error::{Error, Result};

/// A directory that is mounted.
#[derive(Debug)]
pub struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    /// Mounts on `dir`, an empty directory, for root and for whoever serves it to see; returns the connection that
    /// is to be served as well. What is asked of it waits until it is served, or until nobody has the connection
    /// any more.
    ///
    /// # Errors
    /// [`Error::Unusable`] if `dir` or `/dev/fuse` will not do, with what would; [`Error::Io`] if the kernel
    /// refuses.
    pub fn new(dir: &Path) -> Result<(Self, OwnedFd)> {
        let dir = mountpoint::prepare(dir)?;
        mountpoint::check_dev_fuse()?;
        let cannot_mount =
            |error: io::Error| Error::io(format!("mount on {}", dir.display()), error);
        let connection = OpenOptions::new().read(true).write(true).open(DEV_FUSE);
        let connection = OwnedFd::from(connection.map_err(cannot_mount)?);
        let mode = dir.metadata().map_err(cannot_mount)?.mode();
        let options = format!(
            "fd={},rootmode={mode:o},user_id={},group_id={},default_permissions",
            connection.as_raw_fd(),
            rustix::process::getuid().as_raw(),
            rustix::process::getgid().as_raw(),
        );
        let options = CString::new(options).map_err(|error| cannot_mount(error.into()))?;
        // As those that are mounted by who serves them (`session_config`).
        let flags =
            MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOATIME;
        mount(
            SOURCE,
            &dir,
            format!("fuse.{SOURCE}"),
            flags,
            options.as_c_str(),
        )
        .map_err(|errno| cannot_mount(errno.into()))?;
        Ok((Self { dir }, connection))
    }

    /// The directory, absolute and without symlinks.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the mount away: at once if nothing is open, else after half a second, cutting off whoever still has
    /// a file open.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not let go of the directory.
    pub fn unmount(&self) -> Result<()> {
        let released = release(&self.dir, unmount(&self.dir, UnmountFlags::empty()));
        released.map_err(|error| Error::io(format!("unmount {}", self.dir.display()), error))
    }
}

/// Has the kernel let go of a directory after a first try to unmount it.
pub(super) fn release(dir: &Path, first: rustix::io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + CLOSE_GRACE;
    let mut result = first;
    while result == Err(Errno::BUSY) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
        result = unmount(dir, UnmountFlags::empty());
    }
    if result == Err(Errno::BUSY) {
        // Forcing ends the connection, so that nothing waits for an answer that never comes.
        result = unmount(dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
    }
    match result {
        // Somebody else unmounted it.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
