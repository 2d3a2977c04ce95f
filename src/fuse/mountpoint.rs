//! The directory to mount on: what it must be like, and what a killed server left there.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::SOURCE;
use crate::error::{Error, Result};
use crate::mounts;

pub(super) const DEV_FUSE: &str = "/dev/fuse";

/// Makes sure that `dir` can be mounted on, detaching a dead mount of ours first; returns it
/// absolute and without symlinks.
///
/// # Errors
/// [`Error::Unusable`] with what would do.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf> {
    detach_stale(dir)?;
    let unusable = |reason: &str| Error::Unusable {
        path: dir.to_owned(),
        reason: reason.to_owned(),
    };
    let look = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => unusable("no such directory; make it first, with mkdir"),
        ErrorKind::NotADirectory => unusable("is not a directory"),
        _ if is_dead(&error) => {
            unusable("holds the dead mount of another program; unmount it with umount -l")
        }
        _ => Error::io(format!("look at {}", dir.display()), error),
    };
    if !fs::metadata(dir).map_err(look)?.is_dir() {
        return Err(unusable("is not a directory"));
    }
    let absolute = dir.canonicalize().map_err(look)?;
    if let Some(mount) = mounts::at(&absolute)? {
        let reason = format!("{} is already mounted there", mount.source.display());
        return Err(unusable(&reason));
    }
    if fs::read_dir(&absolute).map_err(look)?.next().is_some() {
        return Err(unusable("is not empty; mount on an empty directory"));
    }
    Ok(absolute)
}

/// Makes sure that FUSE is there for this user.
///
/// # Errors
/// [`Error::Unusable`] if `/dev/fuse` is missing or closed to this user.
pub(super) fn check_dev_fuse() -> Result<()> {
    let unusable = |reason: &str| Error::Unusable {
        path: DEV_FUSE.into(),
        reason: reason.to_owned(),
    };
    match OpenOptions::new().read(true).write(true).open(DEV_FUSE) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::NotFound => {
                unusable("is not there; load the module with modprobe fuse, or serve NBD instead")
            }
            ErrorKind::PermissionDenied => {
                unusable("this user may not open it; be root, or serve NBD instead")
            }
            // A device node whose driver is missing, or which the container forbids.
            _ => Error::io(format!("open {DEV_FUSE}; serve NBD instead"), error),
        }),
    }
}

/// Detaches what a killed server left mounted on `dir`; says whether there was anything. A mount
/// that is alive, or of another program, is left alone.
///
/// # Errors
/// [`Error::Io`] if `dir` is empty, the mounts cannot be listed, or the dead one cannot be detached.
pub fn detach_stale(dir: &Path) -> Result<bool> {
    let absolute = mounts::absolute(dir)?;
    let mut detached = false;
    // A server that was killed twice may have left two, one over the other.
    while let Some(mount) = mounts::at(&absolute)? {
        let ours = mount.fs_type.starts_with("fuse") && mount.source == Path::new(SOURCE);
        // Cached attributes outlive the server, so only statfs tells.
        let dead = || {
            rustix::fs::statfs(&absolute)
                .err()
                .is_some_and(|errno| is_dead(&errno.into()))
        };
        if !ours || !dead() {
            break;
        }
        detach(&absolute)?;
        detached = true;
    }
    Ok(detached)
}

fn detach(dir: &Path) -> Result<()> {
    let action = || format!("detach the dead mount on {}", dir.display());
    match unmount(dir, UnmountFlags::DETACH) {
        Err(Errno::PERM) => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .map_err(|error| Error::io(action(), error))?;
            if status.success() {
                Ok(())
            } else {
                Err(Error::io(action(), Errno::PERM))
            }
        }
        other => other.map_err(|errno| Error::io(action(), errno)),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        // The last is what rings answer while the kernel clears them away.
        Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfit_directory_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let refusal = |path: &Path| prepare(path).expect_err("refused").to_string();
        assert!(refusal(&dir.path().join("missing")).contains("mkdir"));
        let file = dir.path().join("file");
        fs::write(&file, "").expect("writes");
        assert!(refusal(&file).contains("not a directory"));
        assert!(refusal(dir.path()).contains("not empty"));
        assert!(refusal(Path::new("/proc")).contains("already mounted"));
        fs::remove_file(&file).expect("removes");
        assert_eq!(
            prepare(dir.path()).expect("fit"),
            dir.path().canonicalize().expect("there")
        );
    }
}
