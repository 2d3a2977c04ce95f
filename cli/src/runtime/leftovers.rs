//! Clearing away what servers leave: a killed one when the next starts, a stuck one when its
//! watchdog fires.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rustix::mount::UnmountFlags;
use uzram::mounts;
use uzram::remove_dead_socket;

use crate::base::program;
use crate::runtime::attachments;
use crate::runtime::attachments::FuseMount;
use crate::runtime::metrics;
use crate::runtime::release;
use crate::runtime::rundir::{self, Lock, Record, RunDir};
use crate::runtime::spill::SpillFile;

/// How long a tool may take when the process is about to exit.
const HURRY: Duration = Duration::from_millis(200);

/// Clears what a killed server left of the name that `lock` is of: dead mounts, dead loops, stale sockets.
/// Under the lock, whatever is there has no server any more.
pub(crate) fn clear_dead(lock: &Lock) -> Result<()> {
    let dir = lock.dir();
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
    let Some(record) = record else {
        return Ok(());
    };
    let made = record
        .making
        .iter()
        .filter_map(|path| SpillFile::just_made(path));
    let mut spills = record.spills.iter().cloned().chain(made);
    spills.try_for_each(|spill| spill.clear_if_unused())
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
}

impl Traces {
    /// Removes them all, hardly waiting for anyone; what fails is left to the next start.
    pub(crate) fn remove_now(&self) {
        for socket in &self.sockets {
            socket.remove_now();
        }
        for (dir, file) in self
            .dir
            .iter()
            .flat_map(|dir| self.files.iter().map(move |file| (dir, file)))
        {
            // What a next server finds it removes.
            let _ = metrics::remove_stale(file, dir.name());
        }
        let record = self.dir.as_ref().and_then(RunDir::record);
        // Before the mount, because nobody finds them once that is gone.
        if let (Some(dir), Some(record)) = (&self.dir, &record) {
            release::free_now(dir, record, HURRY);
        }
        let stands = record.as_ref().map(attachments::fuse_mount);
        if let Some(fuse) = &self.fuse
            && !matches!(stands, Some(Ok(FuseMount::Other)))
        {
            detach_mount(fuse);
        }
        // Without the record nobody would find the spills again.
        if let Some(dir) = &self.dir
            && record.is_none_or(|record| clear_spills_now(&record))
        {
            let _ = rundir::remove_now(dir);
        }
    }
}

/// Clears the files that a server spills to; returns whether none is left.
fn clear_spills_now(record: &Record) -> bool {
    let cleared = record.spills.iter().map(|spill| spill.clear(HURRY).is_ok());
    cleared.fold(record.making.is_empty(), |all, cleared| all && cleared)
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
