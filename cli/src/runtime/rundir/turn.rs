//! Turns: one command at a time makes, changes or takes down what has a name, and one at a time mounts
//! on a mount point.
//!
//! A turn is a lock (flock(2)) on a file in RUNDIR that exists only meanwhile, or until the end of the
//! next turn, at whatever, if its holder was killed. It belongs to the open file, which is also stdin of the tools that make
//! something and of a server until that is ready: where a command is killed, its turn lasts until they
//! are done, and whoever comes next finds all that they made.
//!
//! Order: the name before the mount point; nobody has two of a kind. Every wait is bounded. A server
//! that ends by itself has no turn: its name is its own until it is gone ([`super::Lock`]).

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{self, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{RunDir, RunRoot, trust};
use crate::base::name::Name;

/// How long a turn is waited for.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How long force waits for it.
const FORCED_AFTER: Duration = Duration::from_secs(5);

/// When it is said who is waited for.
const MENTIONED_AFTER: Duration = Duration::from_secs(3);

/// A turn, until dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    /// `None` where there is no RUNDIR, and so nothing to take turns at.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    root: OwnedFd,
    key: String,
    /// Closed after the file is removed, and so locked until then.
    file: File,
}

impl Turn {
    /// The turn of who may make the device of `dir`.
    pub(crate) fn to_make(dir: &RunDir) -> Result<Self> {
        Self::to_make_while(dir, || Ok(()))
    }

    /// The same, waited for as long as `go_on` does not fail.
    pub(crate) fn to_make_while(dir: &RunDir, go_on: impl Fn() -> Result<()>) -> Result<Self> {
        let root = dir.root.make()?;
        let key = key_of(&dir.name, OF_NAME);
        Self::take(root, key, dir.name.as_str(), go_on)
    }

    /// The turn of who changes the device of `dir`, or takes it down.
    pub(crate) fn to_change(dir: &RunDir) -> Result<Self> {
        match dir.root.open()? {
            Some(root) => {
                let key = key_of(&dir.name, OF_NAME);
                Self::take(root, key, dir.name.as_str(), || Ok(()))
            }
            None => Ok(Self { held: None }),
        }
    }

    /// The same, or none if it is not to be had soon: what hangs is ended all the same.
    pub(crate) fn by_force(dir: &RunDir) -> Result<Self> {
        let began = Instant::now();
        let soon = || match began.elapsed() < FORCED_AFTER {
            true => Ok(()),
            false => bail!("another command is at work on it"),
        };
        let Some(root) = dir.root.open()? else {
            return Ok(Self { held: None });
        };
        let key = key_of(&dir.name, OF_NAME);
        Self::take(root, key, dir.name.as_str(), soon).or_else(|error| {
            tracing::warn!("{}: {error:#}: going on by force", dir.name);
            Ok(Self { held: None })
        })
    }

    /// The turn of who mounts on `mountpoint`, an absolute path.
    pub(crate) fn to_mount(root: &RunRoot, mountpoint: &Path) -> Result<Self> {
        let name = Name::distinct(mountpoint);
        let (key, shown) = (
            key_of(&name, OF_MOUNTPOINT),
            mountpoint.display().to_string(),
        );
        Self::take(root.make()?, key, &shown, || Ok(()))
    }

    fn take(
        root: OwnedFd,
        key: String,
        what: &str,
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Self> {
        let (began, mut mentioned) = (Instant::now(), false);
        loop {
            let flags = OFlags::RDWR
                | OFlags::CREATE
                | OFlags::NOFOLLOW
                | OFlags::NONBLOCK
                | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&root, &key, flags, Mode::RUSR | Mode::WUSR);
            let mut file =
                File::from(file.with_context(|| format!("cannot open the lock of {what}"))?);
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) if is_named(&root, &key, &file)? => {
                    file.set_len(0)?;
                    file.write_all(ourselves().as_bytes())?;
                    let held = Some(Held { root, key, file });
                    return Ok(Self { held });
                }
                // Whoever had it has just removed the file.
                Ok(()) => continue,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(e).with_context(|| format!("cannot lock {what}")),
            }
            go_on()?;
            if began.elapsed() >= TIMEOUT {
                let holder = holder(&mut file);
                bail!("{what}: {holder} is at work on it: try again when that is done");
            }
            if began.elapsed() >= MENTIONED_AFTER && !std::mem::replace(&mut mentioned, true) {
                tracing::info!(
                    "{what}: waiting for {} to be done with it",
                    holder(&mut file)
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stdin of a process that is to have the turn as well, as long as it has that.
    pub(crate) fn stdin(&self) -> Result<Stdio> {
        Ok(self.share()?.map_or_else(Stdio::null, Stdio::from))
    }

    /// What another process has the turn by, as long as it has that open; `None` if nobody needs one.
    pub(crate) fn share(&self) -> Result<Option<File>> {
        let held = self.held.as_ref();
        Ok(held.map(|held| held.file.try_clone()).transpose()?)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlinkat(&self.root, &self.key, AtFlags::empty()) {
            tracing::warn!("cannot remove the lock {}: {error}", self.key);
        }
        for name in trust::names(self.root.as_fd()).into_iter().flatten() {
            let key = name.to_str().filter(|key| is_key(key));
            if let Some(Err(error)) = key.map(|key| clear_abandoned(&self.root, key)) {
                tracing::warn!("cannot remove the lock {}: {error}", name.display());
            }
        }
    }
}

/// Removes the file of a turn that nobody has.
fn clear_abandoned(root: &OwnedFd, key: &str) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(root, key, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        file => file?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_named(root, key, &file)? => rustix::fs::unlinkat(root, key, AtFlags::empty()),
        Ok(()) | Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What the files of turns end in. With all before it they are too long for the name of a device.
const OF_NAME: &str = ".turn";
const OF_MOUNTPOINT: &str = ".mountpoint";

fn key_of(name: &Name, end: &str) -> String {
    format!("{:.<1$}{end}", name.as_str(), Name::MAX_BYTES)
}

fn is_key(file: &str) -> bool {
    file.len() > Name::MAX_BYTES && (file.ends_with(OF_NAME) || file.ends_with(OF_MOUNTPOINT))
}

/// Whether `file` is what has the name `key`.
fn is_named(root: &OwnedFd, key: &str, file: &impl AsFd) -> rustix::io::Result<bool> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(root, key, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(false),
        named => {
            let named = named?;
            Ok((ours.st_ino, ours.st_dev) == (named.st_ino, named.st_dev))
        }
    }
}

/// `uzram down vm (PID 12)`, for those who wait.
fn ourselves() -> String {
    let words = env::args_os().skip(1);
    let words: Vec<_> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let text = format!("uzram {}", words.join(" "));
    let shown: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    format!("{shown} (PID {})", process::id())
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(1..) => text,
        _ => "another command".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_has_it_and_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = RunRoot(temp.path().join("run"));
        let dir = root.dir(&"a".parse().unwrap());
        drop(Turn::to_change(&dir).unwrap());
        assert!(!root.path().exists());

        let turn = Turn::to_make(&dir).unwrap();
        let gave_up = || bail!("no more");
        let error = Turn::to_make_while(&dir, gave_up).unwrap_err();
        assert_eq!(error.to_string(), "no more");
        // Force does not wait for long.
        assert!(Turn::by_force(&dir).unwrap().held.is_none());
        // Others are others.
        drop(Turn::to_make(&root.dir(&"b".parse().unwrap())).unwrap());
        drop(Turn::to_mount(&root, Path::new("/a")).unwrap());
        drop(turn);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);

        // What a killed one left is taken, and goes.
        for (name, end) in [("a", OF_NAME), ("b", OF_NAME), ("mnt", OF_MOUNTPOINT)] {
            let key = key_of(&name.parse().unwrap(), end);
            fs::write(root.path().join(key), "uzram up").unwrap();
        }
        drop(Turn::to_make_while(&dir, gave_up).unwrap());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn those_who_wait_have_it_one_by_one() {
        let temp = tempfile::tempdir().unwrap();
        let root = RunRoot(temp.path().join("run"));
        let dir = root.dir(&"a".parse().unwrap());
        let inside = std::sync::Mutex::new(());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _turn = Turn::to_make(&dir).unwrap();
                        let _alone = inside.try_lock().expect("one at a time");
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// As after a kill of the command.
    #[test]
    fn a_turn_lasts_as_long_as_a_process_that_has_it_as_stdin() {
        let temp = tempfile::tempdir().unwrap();
        let root = RunRoot(temp.path().join("run"));
        let dir = root.dir(&"a".parse().unwrap());
        let turn = Turn::to_make(&dir).unwrap();
        let mut tool = process::Command::new("sleep")
            .arg("1000")
            .stdin(turn.stdin().unwrap())
            .spawn()
            .unwrap();
        // A killed command does not remove it.
        let [file, kept] =
            [&*key_of(dir.name(), OF_NAME), "kept"].map(|name| root.path().join(name));
        fs::hard_link(&file, &kept).unwrap();
        drop(turn);
        fs::rename(&kept, &file).unwrap();
        let first = Turn::to_make_while(&dir, || bail!("it has it"));
        tool.kill().unwrap();
        tool.wait().unwrap();
        drop(Turn::to_make(&dir).unwrap());
        assert_eq!(first.unwrap_err().to_string(), "it has it");
    }
}
