//! Clearing away what servers leave: a killed one when the next starts, a stuck one when its
//! watchdog fires.

use std::env;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use uzram::mounts;
use uzram::remove_dead_socket;

use crate::attachments::FuseMount;
use crate::rundir::{self, Record, RunDir};
use crate::{attachments, metrics, program, release};

/// How long a tool may take when the process is about to exit.
const HURRY: Duration = Duration::from_millis(200);

/// How long removing a backing file may take: a large one takes its file system a while.
const UNHURRIED: Duration = Duration::from_secs(60);

/// Clears what the dead server of `dir` left. The caller holds the lock, so whatever is there has
/// no server any more.
pub(crate) fn clear_dead(dir: &RunDir) -> Result<()> {
    let record = dir.record();
    if let Some(record) = &record {
        clear_attachments(dir, record)?;
    }
    uzram::fuse::detach_stale(&dir.fuse_dir())?;
    // To look at one that was inherited is to be its client, for whom systemd starts a server.
    for path in record.iter().flat_map(Record::own_nbd_sockets) {
        remove_dead_socket(path)?;
    }
    remove_dead_socket(&dir.nbd_socket())?;
    remove_dead_socket(&dir.control_socket())?;
    for place in record.iter().flat_map(|record| &record.metrics) {
        remove_dead_socket(place)?;
        metrics::remove_stale(place, dir.name())?;
    }
    let spill = record.and_then(|record| record.spill);
    spill.map_or(Ok(()), |spill| spill.remove_if_unused())
}

fn clear_attachments(dir: &RunDir, record: &Record) -> Result<()> {
    let stands = attachments::fuse_mount(record)?;
    if let Some(fuse) = &record.fuse
        && stands == FuseMount::Ours
        && !attachments::is_dead(fuse)
    {
        // Another server's by now, and with it the loop devices.
        return Ok(());
    }
    for device in attachments::of(dir, record)? {
        release::clear_dead(&device)?;
    }
    match &record.fuse {
        Some(fuse) if stands != FuseMount::Other => {
            uzram::fuse::detach_stale(fuse)?;
        }
        _ => {}
    }
    Ok(())
}

/// A file, told from another one that came to stand in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    path: PathBuf,
    dev: u64,
    ino: u64,
    /// Inode numbers are used again; an inode's time of birth is not.
    born: SystemTime,
    /// Whether it is overwritten before it is removed.
    #[serde(default)]
    wipe: bool,
}

impl FileId {
    /// The plain file at `path`, if there is one and its file system keeps times of birth.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let born = meta.created().ok()?;
        meta.is_file().then(|| Self {
            path: path.to_owned(),
            dev: meta.dev(),
            ino: meta.ino(),
            born,
            wipe: false,
        })
    }

    /// The same file, to be overwritten before it is removed if so.
    pub(crate) fn wiped(self, wipe: bool) -> Self {
        Self { wipe, ..self }
    }

    fn is_there(&self) -> bool {
        Self::of(&self.path).is_some_and(|there| there.wiped(self.wipe) == *self)
    }

    /// Overwrites the file in a process of its own, which goes on by itself after `patience`, also
    /// once the file is removed.
    fn overwrite(&self, patience: Duration) -> Result<()> {
        let ourselves = env::current_exe().context("cannot find the uzram program")?;
        let args = ["wipe-spill".as_ref(), "--".as_ref(), self.path.as_os_str()];
        program::run_within(&ourselves, args, patience).map(drop)
    }

    /// Removes the file if it is still there: in a process of its own, because nothing ends one
    /// that a frozen file system holds up.
    pub(crate) fn remove(&self, patience: Duration) -> Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        let start = Instant::now();
        if self.wipe
            && let Err(error) = self.overwrite(patience / 2)
        {
            tracing::warn!("wiping {}: {error:#}", self.path.display());
        }
        let patience = patience.saturating_sub(start.elapsed());
        let rm = program::find("rm", "coreutils")?;
        let args = ["-f".as_ref(), "--".as_ref(), self.path.as_os_str()];
        match program::run_within(&rm, args, patience) {
            Err(_) if !self.is_there() => Ok(()),
            result => result
                .map(drop)
                .with_context(|| format!("cannot remove {}", self.path.display())),
        }
    }

    /// [`FileId::remove`], unless another server has come to use it.
    fn remove_if_unused(&self) -> Result<()> {
        let lock = FlockOperation::NonBlockingLockExclusive;
        match File::open(&self.path) {
            Ok(file) if rustix::fs::flock(&file, lock).is_ok() => self.remove(UNHURRIED),
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot open {}", self.path.display()))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Overwrites the file of a spill, and is not stopped by what ends the server that asked for it: when a
/// unit's server is gone, systemd tells all processes of the unit to end as well.
pub(crate) fn wipe_spill(path: &Path) -> Result<()> {
    // Fails only for a leader of a process group, which then is not the server's child.
    let _ = rustix::process::setsid();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default()).context("cannot handle signals")?;
    }
    Ok(uzram::wipe_spill(path)?)
}

/// The file of a socket that we listen on, told from another server's in its place: its inode is not
/// used again before we are gone.
#[derive(Clone, Debug)]
pub(crate) struct SocketId {
    path: PathBuf,
    dev: u64,
    ino: u64,
}

impl SocketId {
    /// The socket at `path`, if there is one.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        meta.file_type().is_socket().then(|| Self {
            path: path.to_owned(),
            dev: meta.dev(),
            ino: meta.ino(),
        })
    }

    fn remove_now(&self) {
        let there = Self::of(&self.path).map(|there| (there.dev, there.ino));
        if there == Some((self.dev, self.ino)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// What a server has made outside its memory; enough to remove it all without its cooperation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traces {
    /// Its run directory.
    pub(crate) dir: Option<RunDir>,
    /// Its FUSE mount.
    pub(crate) fuse: Option<PathBuf>,
    /// Its Unix sockets outside the run directory.
    pub(crate) sockets: Vec<SocketId>,
    /// The files that its metrics are written to.
    pub(crate) files: Vec<PathBuf>,
    /// The backing file, if it made it.
    pub(crate) spill: Option<FileId>,
}

impl Traces {
    /// Removes them all, hardly waiting for anyone; what fails is left to the next start.
    pub(crate) fn remove_now(&self) {
        for socket in &self.sockets {
            socket.remove_now();
        }
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        let record = self.dir.as_ref().and_then(RunDir::record);
        // Before the mount, because nobody finds them once that is gone.
        if let (Some(dir), Some(record)) = (&self.dir, &record) {
            release::free_now(dir, record, HURRY);
        }
        let stands = record.map(|record| attachments::fuse_mount(&record));
        if let Some(fuse) = &self.fuse
            && !matches!(stands, Some(Ok(FuseMount::Other)))
        {
            detach_mount(fuse);
        }
        let spill = self.spill.as_ref();
        let removed = spill.is_none_or(|spill| spill.remove(HURRY).is_ok());
        // Without its record nobody would find the spill again.
        if let Some(dir) = &self.dir
            && removed
        {
            let _ = rundir::remove_now(dir);
        }
    }
}

/// Takes a FUSE mount out of sight at once, even one in use.
fn detach_mount(dir: &Path) {
    let ours = matches!(mounts::at(dir), Ok(Some(m)) if m.fs_type.starts_with("fuse"));
    // Forcing fails what waits for our answers, so that nothing waits for ever.
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
    if !ours || rustix::mount::unmount(dir, flags).is_ok() {
        return;
    }
    // Without root only the setuid helper may unmount.
    let Ok(helper) = program::find("fusermount3", "fuse3") else {
        return;
    };
    let _ = program::run_within(
        &helper,
        ["-u".as_ref(), "-z".as_ref(), dir.as_os_str()],
        HURRY,
    );
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_socket_of_a_successor_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let ours = UnixListener::bind(&path).unwrap();
        let traces = Traces {
            sockets: SocketId::of(&path).into_iter().collect(),
            ..Traces::default()
        };
        fs::remove_file(&path).unwrap();
        let successor = UnixListener::bind(&path).unwrap();
        traces.remove_now();
        assert!(path.exists());
        drop((ours, successor));

        let last = Traces {
            sockets: SocketId::of(&path).into_iter().collect(),
            ..Traces::default()
        };
        last.remove_now();
        assert!(!path.exists());
    }
}
