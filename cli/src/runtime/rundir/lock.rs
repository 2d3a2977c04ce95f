//! The lock by which a server has a name, and what only its holder may do.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::live::LiveRecord;
use super::record::Record;
use super::{FILES, FUSE, LOCK, RECORD, RunDir, trust};

/// The name is ours for as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    dir: RunDir,
    /// The directory, as it was found to be ours.
    open: OwnedFd,
}

impl Lock {
    /// Takes the name, making its directory; refused while another process has it.
    pub(super) fn take(dir: &RunDir) -> Result<Self> {
        let root = dir.root.make()?;
        let (name, shown) = (dir.name.as_str(), dir.path().display().to_string());
        // Each turn after the first means that another process removed the directory under us.
        for _ in 0..100 {
            trust::make(root.as_fd(), name).with_context(|| format!("cannot make {shown}"))?;
            let Some(open) = dir.open_in(root.as_fd())? else {
                continue;
            };
            if let Some(file) = try_lock(dir, open.as_fd())? {
                trust::mark(open.as_fd()).with_context(|| format!("cannot mark {shown}"))?;
                let dir = dir.clone();
                return Ok(Self { file, dir, open });
            }
        }
        bail!("cannot lock {shown}: it keeps vanishing");
    }

    pub(crate) fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// The file that is locked. To close another descriptor of it would let go of the lock.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Makes the directory `uzram mount` has the server mount on.
    pub(crate) fn make_fuse_dir(&self) -> Result<()> {
        match rustix::fs::mkdirat(&self.open, FUSE, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => {
                Err(e).with_context(|| format!("cannot make {}", self.dir.fuse_dir().display()))
            }
        }
    }

    /// Writes the record of the server that is to be.
    pub(crate) fn begin_record(&self, record: Record) -> Result<LiveRecord> {
        let dir = self.open.try_clone();
        dir.and_then(|dir| LiveRecord::begin(dir, record))
            .with_context(|| format!("cannot write {}", self.dir.path().join(RECORD).display()))
    }

    /// Gives the name up and leaves nothing behind.
    pub(crate) fn remove(self) -> Result<()> {
        remove_now(&self.dir)
    }
}

fn try_lock(dir: &RunDir, open: BorrowedFd<'_>) -> Result<Option<File>> {
    let shown = || dir.path().join(LOCK).display().to_string();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(open, LOCK, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::NOENT) => return Ok(None),
        file => File::from(file.with_context(|| format!("cannot open {}", shown()))?),
    };
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::AGAIN | Errno::ACCESS) => {
            let name = &dir.name;
            bail!("{name} is already being served: choose another name, or: uzram stop {name}");
        }
        Err(e) => return Err(e).with_context(|| format!("cannot lock {}", shown())),
    }
    let ours = rustix::fs::fstat(&file)?;
    let named = match rustix::fs::statat(open, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(None),
        named => named?,
    };
    Ok((ours.st_ino == named.st_ino && ours.st_dev == named.st_dev).then_some(file))
}

/// [`Lock::remove`] for the watchdog, whose process holds the lock and is about to exit.
pub(crate) fn remove_now(dir: &RunDir) -> Result<()> {
    let path = dir.path();
    let shown = path.display();
    let Some(root) = dir.root.open()? else {
        return Ok(());
    };
    let Some(open) = dir.open_in(root.as_fd())? else {
        return Ok(());
    };
    remove_ours(open.as_fd()).with_context(|| format!("cannot remove {shown}"))?;
    remove_dir(root.as_fd(), dir, open.as_fd())
}

/// Removes the directory, unless there is anything in it.
fn remove_dir(root: BorrowedFd<'_>, dir: &RunDir, open: BorrowedFd<'_>) -> Result<()> {
    let path = dir.path();
    let shown = path.display();
    let failed = || format!("cannot remove {shown}");
    match rustix::fs::unlinkat(root, dir.name.as_str(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            let names = trust::names(open).with_context(failed)?;
            // A server that came since then has it.
            if names.iter().any(|name| name == LOCK) {
                return Ok(());
            }
            let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
            bail!(
                "{shown} stays: uzram did not make what is left in it, {:?}: move that away",
                names.join(", ")
            )
        }
        Err(e) => Err(e).with_context(failed),
    }
}

/// Removes what has the names that we give, the lock last; nothing of another kind, and nothing else.
fn remove_ours(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(dir, FUSE, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    FILES.iter().try_for_each(
        |file| match rustix::fs::unlinkat(dir, *file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(e) => Err(e),
        },
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::super::{LOG, RunRoot};
    use super::*;

    fn dir(temp: &tempfile::TempDir) -> RunDir {
        RunRoot(temp.path().join("run")).dir(&"a".parse().unwrap())
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let temp = tempfile::tempdir().unwrap();
        let dir = dir(&temp);
        let first = dir.lock().unwrap();
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        let second = dir.lock().unwrap();
        let inode = |lock: &Lock| lock.file.metadata().unwrap().ino();
        assert_ne!(inode(&first), inode(&second));
    }

    #[test]
    fn only_what_has_our_names_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let dir = dir(&temp);
        let lock = dir.lock().unwrap();
        for file in FILES {
            fs::write(dir.path().join(file), "").unwrap();
        }
        lock.make_fuse_dir().unwrap();
        lock.remove().unwrap();
        assert!(!dir.path().exists());

        let lock = dir.lock().unwrap();
        fs::create_dir(dir.path().join(LOG)).unwrap();
        fs::create_dir_all(dir.path().join(FUSE).join("theirs")).unwrap();
        fs::write(dir.path().join("notes"), "precious").unwrap();
        let error = lock.remove().unwrap_err().to_string();
        assert!(error.contains("notes") && error.contains(FUSE), "{error}");
        let left = fs::read_dir(dir.path()).unwrap();
        let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [FUSE, LOG, "notes"]);
    }

    /// What another server has by now is not what could not be removed.
    #[test]
    fn a_directory_with_a_new_lock_stays_in_silence() {
        let temp = tempfile::tempdir().unwrap();
        let dir = dir(&temp);
        let lock = dir.lock().unwrap();
        remove_ours(lock.open.as_fd()).unwrap();
        let _next = dir.lock().unwrap();
        let root = dir.root.open().unwrap().unwrap();
        remove_dir(root.as_fd(), &dir, lock.open.as_fd()).unwrap();
        assert!(dir.path().join(LOCK).exists());
    }
}
