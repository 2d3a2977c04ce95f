//! One file of a spill: told from others, and cleared.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::args::ClearStep;
use crate::base::bounded;
use crate::base::file_id::FileId;
use crate::base::program;

/// How long clearing a file may take that nobody waits for: a large one takes its file system a while.
const UNHURRIED: Duration = Duration::from_secs(60);

/// The file of a spill.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SpillFile {
    #[serde(flatten)]
    pub(super) id: FileId,
    /// Whether it is overwritten before it is cleared.
    #[serde(default)]
    pub(super) wipe: bool,
    /// Whether it was there before: then it is emptied, and not removed.
    #[serde(default)]
    pub(super) found: bool,
}

impl SpillFile {
    /// The file at `path` if it is as a spill is that was only just made.
    pub(crate) fn just_made(path: &Path) -> Option<Self> {
        Some(Self {
            id: FileId::just_made(path)?,
            wipe: false,
            found: false,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.id.path
    }

    /// Whether it was there before its server used it.
    pub(crate) fn was_found(&self) -> bool {
        self.found
    }

    /// Its directory, and its name there.
    fn place(&self) -> Result<(OwnedFd, &OsStr)> {
        let shown = self.path().display();
        let (Some(parent), Some(name)) = (self.path().parent(), self.path().file_name()) else {
            anyhow::bail!("{shown} is no path of a file");
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty());
        Ok((
            dir.with_context(|| format!("cannot open the directory of {shown}"))?,
            name,
        ))
    }

    /// The name that it has while it is removed.
    fn own_name(&self) -> OsString {
        format!(".uzram-{}", self.id.name()).into()
    }

    /// What of it is left: the name that it has by now.
    fn left(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Option<OsString> {
        let names = [name.to_owned(), self.own_name()];
        names.into_iter().find(|name| self.id.is_at(dir, name))
    }

    pub(super) fn is_left(&self) -> bool {
        let place = self.place();
        place.is_ok_and(|(dir, name)| self.left(dir.as_fd(), name).is_some())
    }

    /// Removes the file if it is still there, or empties it if it was there before. Where it is to be
    /// wiped, that goes on by itself after half of `timeout`, also once the file is removed.
    pub(crate) fn clear(&self, timeout: Duration) -> Result<()> {
        if !self.is_left() {
            return Ok(());
        }
        let start = Instant::now();
        if self.wipe
            && let Err(error) = self.run(ClearStep::Wipe, timeout / 2)
        {
            tracing::warn!("wiping {}: {error:#}", self.path().display());
        }
        let timeout = timeout.saturating_sub(start.elapsed());
        match self.run(ClearStep::Clear, timeout) {
            Err(_) if !self.found && !self.is_left() => Ok(()),
            done => done.with_context(|| format!("cannot remove {}", self.path().display())),
        }
    }

    fn run(&self, step: ClearStep, timeout: Duration) -> Result<()> {
        let ourselves = env::current_exe().ok().filter(|path| path.exists());
        // Another version may have taken the place of ours.
        let ourselves = ourselves.unwrap_or_else(|| "/proc/self/exe".into());
        let args = ["clear-spill", step.word(), "--", &self.to_string()].map(OsString::from);
        let begun = Instant::now();
        let error = match program::run_within(&ourselves, args, timeout) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // It may be that there are no more processes or threads to be had. One that hangs had all the time.
        let left = timeout.saturating_sub(begun.elapsed());
        let file = self.clone();
        match left.is_zero() {
            true => Err(error),
            false => bounded::within(left, move || file.run_here(step)).unwrap_or(Err(error)),
        }
    }

    /// [`SpillFile::clear`], unless another server has come to use it, or somebody has written to it.
    pub(crate) fn clear_if_unused(&self) -> Result<()> {
        let Ok((dir, name)) = self.place() else {
            // It went with its directory.
            return Ok(());
        };
        let Some(name) = self.left(dir.as_fd(), name) else {
            return Ok(());
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&dir, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            file => file.with_context(|| format!("cannot open {}", self.path().display()))?,
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(());
        }
        let stays = match uzram::not_spilled(file.try_clone()?.into()) {
            Ok(None) => return self.clear(UNHURRIED),
            Ok(Some(what)) => {
                format!("it holds {what}, which was not spilled: move it, or remove it")
            }
            Err(error) => format!("{error}: remove it if it holds nothing else"),
        };
        tracing::warn!("{} stays: {stays}", self.path().display());
        Ok(())
    }

    /// The step itself, in this process.
    pub(crate) fn run_here(&self, step: ClearStep) -> Result<()> {
        match step {
            ClearStep::Wipe => self.wipe_here(),
            ClearStep::Clear => self.clear_here(),
        }
    }

    fn wipe_here(&self) -> Result<()> {
        let (dir, name) = self.place()?;
        match self.left(dir.as_fd(), name) {
            Some(name) => {
                let dir = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
                Ok(uzram::wipe_spill(&dir.join(name))?)
            }
            None => Ok(()),
        }
    }

    fn clear_here(&self) -> Result<()> {
        let (dir, name) = self.place()?;
        match self.found {
            true => self.empty_in(dir.as_fd(), name),
            false => self.remove_from(dir.as_fd(), name),
        }
    }

    fn empty_in(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        match self.id.is_open(&file) {
            true => Ok(rustix::fs::ftruncate(&file, 0)?),
            false => Ok(()),
        }
    }

    fn remove_from(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        let own = self.own_name();
        let unlink = |name: &OsStr| Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?);
        let keep = RenameFlags::NOREPLACE;
        if !self.id.is_at(dir, name) {
            return match self.id.is_at(dir, &own) {
                true => unlink(&own),
                false => Ok(()),
            };
        }
        match rustix::fs::renameat_with(dir, name, dir, &own, keep) {
            Ok(()) if self.id.is_at(dir, &own) => unlink(&own),
            // Another file came in its place in that moment.
            Ok(()) => rustix::fs::renameat_with(dir, &own, dir, name, keep).with_context(|| {
                let at = self.path().with_file_name(&own);
                format!("what stood in its place meanwhile is now {}", at.display())
            }),
            Err(Errno::NOENT) => Ok(()),
            // The file system knows no such rename, or somebody has taken the name.
            Err(Errno::INVAL | Errno::EXIST) if self.id.is_at(dir, name) => unlink(name),
            Err(e) => Err(e.into()),
        }
    }
}

/// As an argument.
impl std::fmt::Display for SpillFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| std::fmt::Error)?;
        f.write_str(&text)
    }
}

impl FromStr for SpillFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn spill(path: &Path) -> SpillFile {
        fs::write(path, "spilled").unwrap();
        SpillFile {
            id: FileId::of(path).expect("a time of birth"),
            wipe: false,
            found: false,
        }
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn the_file_is_cleared_and_no_other_in_its_place() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("b");
        let file = spill(&path);
        let passed_on: SpillFile = file.to_string().parse().unwrap();
        assert_eq!(passed_on, file);
        file.clear_here().unwrap();
        assert_eq!(names(temp.path()), [""; 0]);

        fs::write(&path, "precious").unwrap();
        file.clear_here().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();

        let found = SpillFile {
            found: true,
            ..spill(&path)
        };
        found.clear_here().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        found.clear_here().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// A kill between the two steps of a removal.
    #[test]
    fn a_file_that_has_its_own_name_already_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("b");
        let file = spill(&path);
        fs::rename(&path, temp.path().join(file.own_name())).unwrap();
        assert!(file.is_left());
        file.clear_here().unwrap();
        assert_eq!(names(temp.path()), [""; 0]);
    }

    /// What somebody else has put where the file would go is not removed, and the file is.
    #[test]
    fn a_name_that_is_taken_does_not_keep_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("b");
        let file = spill(&path);
        fs::write(temp.path().join(file.own_name()), "precious").unwrap();
        file.clear_here().unwrap();
        assert_eq!(names(temp.path()), [file.own_name()]);
    }

    /// Files that come in its place and go in every moment of a removal.
    #[test]
    fn what_is_swapped_in_meanwhile_is_never_lost() {
        const ROUNDS: usize = 300;
        let temp = tempfile::tempdir().unwrap();
        let (path, other) = (temp.path().join("b"), temp.path().join("other"));
        for round in 0..ROUNDS {
            let file = spill(&path);
            fs::write(&other, "precious").unwrap();
            let both = Barrier::new(2);
            thread::scope(|scope| {
                scope.spawn(|| {
                    both.wait();
                    for _ in 0..round % 40 {
                        std::hint::spin_loop();
                    }
                    fs::rename(&other, &path).unwrap();
                });
                both.wait();
                file.clear_here().unwrap();
            });
            assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
            assert_eq!(names(temp.path()), ["b"]);
        }
    }

    /// The directory that was looked at is the one that is changed.
    #[test]
    fn a_directory_that_is_swapped_meanwhile_keeps_its_file() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, home) = (temp.path().join("dir"), temp.path().join("home"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&home).unwrap();
        fs::write(home.join("b"), "precious").unwrap();
        let file = spill(&dir.join("b"));
        let (opened, name) = file.place().unwrap();
        fs::rename(&dir, temp.path().join("away")).unwrap();
        std::os::unix::fs::symlink(&home, &dir).unwrap();
        file.remove_from(opened.as_fd(), name).unwrap();
        assert_eq!(fs::read_to_string(home.join("b")).unwrap(), "precious");
        assert!(!temp.path().join("away/b").exists());
    }
}
