//! Which directories are believed: RUNDIR, and in it those that uzram made for devices.
//!
//! A directory is looked at once, by a descriptor, and what is then done is done in what that leads
//! to, whatever comes to stand at its path. Locks nothing.
//!
//! Invariants:
//! 1. A symbolic link on the way to RUNDIR is followed only if it is root's or ours, as those of
//!    `/var/run` and of a home directory are. RUNDIR itself is no link.
//! 2. RUNDIR and the directories of devices are ours, and only we can write to them.
//! 3. A device's directory has a mark from the moment it exists: the sticky bit, which means nothing
//!    where only its owner may write, so that nobody else sets it there. One without is believed
//!    only if a uzram that made none left it: it has a lock and a record, and nothing but our names.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::record::Record;
use super::{FILES, FUSE, LOCK, OVERRIDE, RECORD};

/// Only we may enter it.
const PRIVATE: Mode = Mode::RWXU;

/// What tells a directory that uzram made.
const MARK: Mode = Mode::SVTX;

/// To look at, and to start from.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// As many symbolic links as the kernel follows on one path.
const MAX_LINKS: usize = 40;

/// Most bytes of a record that are read.
const MAX_RECORD: u64 = 1 << 20;

/// Where a path leads: without symbolic links, and open if it is there.
pub(super) struct Followed {
    pub(super) path: PathBuf,
    dir: Option<OwnedFd>,
}

/// Follows the path of a directory, from the root, as the kernel does, but no link of another user.
pub(super) fn follow(path: &Path) -> Result<Followed> {
    let shown = path.display();
    let open = |at: BorrowedFd<'_>, name: &OsStr| {
        rustix::fs::openat(at, name, LOOK | OFlags::DIRECTORY, Mode::empty())
    };
    let top = || open(rustix::fs::CWD, OsStr::new("/")).context("cannot open /");
    let (mut dir, mut resolved) = (top()?, PathBuf::from("/"));
    let mut left = parts(path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        match open(dir.as_fd(), &name) {
            Ok(next) => {
                dir = next;
                step(&mut resolved, &name);
            }
            Err(Errno::NOENT) => {
                step(&mut resolved, &name);
                left.iter().rev().for_each(|name| step(&mut resolved, name));
                return Ok(Followed {
                    path: resolved,
                    dir: None,
                });
            }
            Err(Errno::NOTDIR) if links < MAX_LINKS => {
                let link = resolved.join(&name);
                let target = target_of(dir.as_fd(), &name, &link)
                    .with_context(|| format!("cannot follow {shown}"))?;
                links += 1;
                if target.is_absolute() {
                    (dir, resolved) = (top()?, PathBuf::from("/"));
                }
                left.extend(parts(&target));
            }
            Err(e) => return Err(e).with_context(|| format!("cannot follow {shown}")),
        }
    }
    Ok(Followed {
        path: resolved,
        dir: Some(dir),
    })
}

/// The steps of a path, the first one last.
fn parts(path: &Path) -> Vec<OsString> {
    let steps = path.components().rev().filter_map(|step| match step {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    steps.collect()
}

fn step(path: &mut PathBuf, name: &OsStr) {
    if name == ".." {
        path.pop();
    } else {
        path.push(name);
    }
}

/// Where a symbolic link leads that root or we have made.
fn target_of(at: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<PathBuf> {
    let link = rustix::fs::openat(at, name, LOOK, Mode::empty())?;
    let stat = rustix::fs::fstat(&link)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Err(Errno::NOTDIR.into());
    }
    if stat.st_uid != 0 && !is_ours(&stat) {
        bail!("{} is another user's symbolic link", shown.display());
    }
    let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

fn is_ours(stat: &Stat) -> bool {
    stat.st_uid == rustix::process::geteuid().as_raw()
}

/// Why what is there is no directory that only we can write to.
fn flaw(stat: &Stat) -> Option<&'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return Some("is a symbolic link"),
        _ => return Some("is not a directory"),
    }
    if !is_ours(stat) {
        Some("belongs to another user")
    } else if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
        Some("can be written to by other users")
    } else {
        None
    }
}

/// RUNDIR, if it is there.
///
/// # Errors
/// If it is not ours alone: then nothing in it is believed.
pub(super) fn open_root(path: &Path) -> Result<Option<OwnedFd>> {
    root_in(follow(above(path))?.dir, path)
}

/// RUNDIR, made if it is not there.
pub(super) fn make_root(path: &Path) -> Result<OwnedFd> {
    let parent = follow(above(path))?.dir;
    if let Some(parent) = &parent {
        match rustix::fs::mkdirat(parent, name_of(path), PRIVATE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).with_context(|| unusable(path)),
        }
    }
    match root_in(parent, path)? {
        Some(root) => Ok(root),
        None => Err(Errno::NOENT).with_context(|| unusable(path)),
    }
}

fn unusable(path: &Path) -> String {
    let shown = path.display();
    format!("cannot make {shown}: set {OVERRIDE} to a usable directory")
}

fn root_in(parent: Option<OwnedFd>, path: &Path) -> Result<Option<OwnedFd>> {
    let shown = path.display();
    let root = parent.map(|parent| rustix::fs::openat(parent, name_of(path), LOOK, Mode::empty()));
    let root = match root {
        None | Some(Err(Errno::NOENT)) => return Ok(None),
        Some(root) => root.with_context(|| format!("cannot open {shown}"))?,
    };
    match flaw(&rustix::fs::fstat(&root)?) {
        None => Ok(Some(root)),
        Some(flaw) => bail!(
            "{shown} {flaw}: it must be a directory that only you can write to: remove it or set {OVERRIDE}"
        ),
    }
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn name_of(path: &Path) -> &OsStr {
    path.file_name().unwrap_or_default()
}

/// What has a device's name in RUNDIR.
pub(super) enum Found {
    Nothing,
    /// A directory that uzram made.
    Ours(OwnedFd),
    /// Something else, and how that is known.
    Foreign(&'static str),
}

/// What has the name `name` in RUNDIR.
pub(super) fn find(root: BorrowedFd<'_>, name: &str) -> rustix::io::Result<Found> {
    let dir = match rustix::fs::openat(root, name, LOOK, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        dir => dir?,
    };
    let stat = rustix::fs::fstat(&dir)?;
    if let Some(flaw) = flaw(&stat) {
        return Ok(Found::Foreign(flaw));
    }
    let is_marked = Mode::from_raw_mode(stat.st_mode).contains(MARK);
    Ok(match is_marked || is_of_an_older_version(dir.as_fd())? {
        true => Found::Ours(dir),
        false => Found::Foreign("was not made by uzram"),
    })
}

/// Makes a device's directory, unless its name is taken.
pub(super) fn make(root: BorrowedFd<'_>, name: &str) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(root, name, PRIVATE | MARK) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Marks a directory that an older version made.
pub(super) fn mark(dir: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::fchmod(readable(dir)?, PRIVATE | MARK)
}

/// A directory again, for what needs more than a look.
pub(super) fn readable(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, ".", flags, Mode::empty())
}

/// Versions that made no mark left a lock and a record.
fn is_of_an_older_version(dir: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let is_file = |name| {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    };
    let is_known = |name: &[u8]| FILES.iter().chain([&FUSE]).any(|n| n.as_bytes() == name);
    Ok(is_file(LOCK)
        && record(dir).is_some()
        && names(dir)?.iter().all(|name| is_known(name.as_bytes())))
}

/// What is in a directory.
pub(super) fn names(dir: BorrowedFd<'_>) -> rustix::io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::new(readable(dir)?)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// The record in a device's directory, if there is one that makes sense.
pub(super) fn record(dir: BorrowedFd<'_>) -> Option<Record> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, RECORD, flags, Mode::empty()).ok()?;
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_RECORD)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}
