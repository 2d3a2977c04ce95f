//! RUNDIR and each device's directory in it.
//!
//! ```text
//! RUNDIR/NAME/lock          held by the server as long as it lives
//! RUNDIR/NAME/record        what it serves, written before it serves it
//! RUNDIR/NAME/control.sock  the control socket
//! RUNDIR/NAME/nbd.sock      the default NBD socket
//! RUNDIR/NAME/fuse          where `uzram mount` has the server mount
//! RUNDIR/NAME/nbd-device    the kernel NBD device attached to it, a note of `uzram attach`
//! RUNDIR/NAME/log           the log of a server in the background
//! ```
//!
//! Invariants:
//! 1. Whoever changes anything in `RUNDIR/NAME` holds its lock, but for `nbd-device`, for which
//!    `attach` and `detach` take turns with a lock (flock(2)) on the directory. The lock is a record lock
//!    (fcntl(2)): the kernel releases it when the process dies however it dies, and tells anyone
//!    who asks which process holds it. Commands that stop the server take turns with a lock of the
//!    other kind (flock(2)) on the same file.
//! 2. The directory is removed by the holder of the lock only, and a lock counts only if its file
//!    is still the one the path names; so two servers never hold one name.
//! 3. A lock file is open at most once in a process: closing any descriptor of it would release
//!    the lock ([`RunDir::owner`] is never called by the process that holds the lock).

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{env, io};

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid};
use serde::{Deserialize, Serialize};

use uzram::mounts;

use crate::aside::ImageId;
use crate::leftovers;
use crate::leftovers::FileId;
use crate::name::Name;
use crate::suggest;

/// Overrides RUNDIR, for tests and for several independent sets of devices.
pub(crate) const OVERRIDE: &str = "UZRAM_RUNDIR";

/// RUNDIR.
#[derive(Clone, Debug)]
pub(crate) struct RunRoot(PathBuf);

impl RunRoot {
    /// `$UZRAM_RUNDIR`, else `/run/uzram` for root, else `$XDG_RUNTIME_DIR/uzram`, else, where no
    /// login made a runtime directory (containers, cron, su), `/tmp/uzram-UID`. It need not exist.
    pub(crate) fn locate() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let uid = rustix::process::geteuid();
        let path = if let Some(path) = set(OVERRIDE) {
            std::path::absolute(path).context("UZRAM_RUNDIR is not a usable path")?
        } else if uid.is_root() {
            PathBuf::from("/run/uzram")
        } else if let Some(path) = set("XDG_RUNTIME_DIR") {
            std::path::absolute(path)
                .context("XDG_RUNTIME_DIR is not a usable path")?
                .join("uzram")
        } else {
            PathBuf::from(format!("/tmp/uzram-{}", uid.as_raw()))
        };
        // Without symlinks, as the kernel names what is below it.
        Ok(Self(mounts::absolute(&path)?))
    }

    pub(crate) fn dir(&self, name: &Name) -> RunDir {
        RunDir {
            path: self.0.join(name.as_str()),
            name: name.clone(),
        }
    }

    /// Every device that has a directory, alive or dead, by name.
    pub(crate) fn dirs(&self) -> Result<Vec<RunDir>> {
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.0.display()))?,
        };
        let mut dirs: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .map(|name| self.dir(&name))
            .filter(|dir| dir.path.is_dir())
            .collect();
        dirs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(dirs)
    }
}

/// Who serves a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Process(Pid),
    /// A process of another PID namespace.
    Elsewhere,
}

/// One device's directory.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    name: Name,
}

impl RunDir {
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.path.join("nbd.sock")
    }

    pub(crate) fn fuse_dir(&self) -> PathBuf {
        self.path.join("fuse")
    }

    pub(crate) fn nbd_device(&self) -> PathBuf {
        self.path.join("nbd-device")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn record_file(&self) -> PathBuf {
        self.path.join("record")
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The process that serves this name; `None` if there is none.
    ///
    /// # Errors
    /// Also if it is of another PID namespace, where it has no number that we could use.
    pub(crate) fn owner(&self) -> Result<Option<Pid>> {
        match self.holder()? {
            None => Ok(None),
            Some(Holder::Process(pid)) => Ok(Some(pid)),
            Some(Holder::Elsewhere) => bail!(
                "{} is served from another PID namespace, another container say: stop it from there",
                self.name
            ),
        }
    }

    /// Who serves this name; `None` if nobody does.
    pub(crate) fn holder(&self) -> Result<Option<Holder>> {
        let file = match File::open(self.lock_file()) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot open {}", self.lock_file().display()))?,
        };
        // A shared lock is what a read-only descriptor may ask about; a server's is exclusive.
        let question = Flock::from(FlockType::ReadLock);
        let holder = rustix::process::fcntl_getlk(&file, &question)
            .with_context(|| format!("cannot query {}", self.lock_file().display()))?;
        Ok(holder.map(|lock| lock.pid.map_or(Holder::Elsewhere, Holder::Process)))
    }

    /// Refuses, and says how to start it, if there is no server, wherever it might run.
    pub(crate) fn require_owner(&self) -> Result<()> {
        let name = &self.name;
        match self.holder()? {
            Some(_) => Ok(()),
            None if self.exists() => {
                let clear = match self.record().and_then(|record| record.mountpoint) {
                    Some(mountpoint) => format!("uzram umount {}", mountpoint.display()),
                    None => format!("uzram detach {name}"),
                };
                Err(anyhow!(
                    "the server of {name} is dead: clear what it left with: {clear}"
                ))
            }
            None => Err(self.unknown()),
        }
    }

    /// Refuses a name of which there is nothing, not even what a dead server left.
    pub(crate) fn require_there(&self) -> Result<()> {
        match self.exists() {
            true => Ok(()),
            false => Err(self.unknown()),
        }
    }

    /// What to say of a name of which there is nothing.
    fn unknown(&self) -> Error {
        let root = self.path.parent().map(|root| RunRoot(root.to_owned()));
        let dirs = root.and_then(|root| root.dirs().ok()).unwrap_or_default();
        let known = dirs.iter().map(|dir| dir.name.as_str());
        let meant = suggest::nearest(self.name.as_str(), known);
        let more = meant.map_or_else(|| ": see uzram list".to_owned(), suggest::question);
        anyhow!("no device {} is being served{more}", self.name)
    }

    /// What the server, alive or dead, serves.
    pub(crate) fn record(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.record_file()).ok()?).ok()
    }

    /// Keeps every other `attach` and `detach` of this name out while what it returns lives.
    pub(crate) fn take_turn(&self) -> Result<File> {
        let shown = self.path.display();
        let file = File::open(&self.path).with_context(|| format!("cannot open {shown}"))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(Errno::WOULDBLOCK) => bail!(
                "another attach or detach of {} is at work: try again when it is done",
                self.name
            ),
            Err(e) => Err(e).with_context(|| format!("cannot lock {shown}")),
        }
    }

    /// Waits for every other `stop` of this name to have asked its server, and keeps them out while
    /// what it returns lives; `None` if there is nothing to stop any more.
    pub(crate) fn take_turn_to_stop(&self) -> Result<Option<File>> {
        let path = self.lock_file();
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("cannot open {}", path.display()))?,
        };
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Some(file))
    }

    /// Takes the name, making its directory; refused while another process has it.
    pub(crate) fn lock(&self) -> Result<Lock> {
        if let Some(root) = self.path.parent() {
            make_private_dir(root)?;
        }
        // Each turn after the first means that another process removed the directory under us.
        for _ in 0..100 {
            make_private_dir(&self.path)?;
            match self.try_lock()? {
                Some(file) => {
                    return Ok(Lock {
                        _file: file,
                        dir: self.clone(),
                    });
                }
                None => continue,
            }
        }
        bail!("cannot lock {}: it keeps vanishing", self.path.display());
    }

    fn try_lock(&self) -> Result<Option<File>> {
        let path = self.lock_file();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN | Errno::ACCESS) => {
                let name = &self.name;
                bail!("{name} is already being served: choose another name, or: uzram stop {name}");
            }
            Err(e) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        let ours = file.metadata()?;
        let named = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            named => named?,
        };
        Ok((ours.ino() == named.ino() && ours.dev() == named.dev()).then_some(file))
    }

    /// Removes the directory and the files in it, whatever they are, the lock last. Directories
    /// are nobody's: they stay, and this with them.
    fn remove(&self) -> io::Result<()> {
        let lock = self.lock_file();
        ignore_missing(fs::remove_dir(self.fuse_dir()))?;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.path() != lock && !entry.file_type()?.is_dir() {
                ignore_missing(fs::remove_file(entry.path()))?;
            }
        }
        ignore_missing(fs::remove_file(lock))?;
        ignore_missing(fs::remove_dir(&self.path))
    }
}

/// The name is ours for as long as this lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    dir: RunDir,
}

impl Lock {
    pub(crate) fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Clears what a killed server of this name left: dead mounts, dead loops, stale sockets.
    pub(crate) fn clear_leftovers(&self) -> Result<()> {
        leftovers::clear_dead(&self.dir)
    }

    /// Makes the directory `uzram mount` has the server mount on.
    pub(crate) fn make_fuse_dir(&self) -> Result<()> {
        make_private_dir(&self.dir.fuse_dir())
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<()> {
        let (path, text) = (self.dir.record_file(), serde_json::to_vec(record)?);
        let new = self.dir.path.join("record.new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Gives the name up and leaves nothing behind.
    pub(crate) fn remove(self) -> Result<()> {
        remove_now(&self.dir)
    }
}

/// [`Lock::remove`] for the watchdog, whose process holds the lock and is about to exit.
pub(crate) fn remove_now(dir: &RunDir) -> Result<()> {
    dir.remove()
        .with_context(|| format!("cannot remove {}", dir.path.display()))
}

/// What a server serves, so that others can find it and clear up after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Bytes in the device.
    pub(crate) size: u64,
    /// NBD addresses, as `--nbd` takes them.
    pub(crate) nbd: Vec<String>,
    /// Those of them whose sockets somebody else has made, and keeps.
    #[serde(default)]
    pub(crate) inherited: Vec<String>,
    /// The FUSE directory, absolute.
    pub(crate) fuse: Option<PathBuf>,
    /// The device number of the mount there, `major:minor`; `None` until it is mounted.
    pub(crate) fuse_device: Option<String>,
    /// Where `uzram mount` mounts the file system it makes; `None` for every other server.
    pub(crate) mountpoint: Option<PathBuf>,
    /// The backing file, if the server made it and so is to remove it.
    pub(crate) spill: Option<FileId>,
    /// The Unix sockets that its metrics are served on, and the files that they are written to.
    #[serde(default)]
    pub(crate) metrics: Vec<PathBuf>,
    /// The image that what is written goes home to.
    #[serde(default)]
    pub(crate) home: Option<PathBuf>,
    /// The image that it begins as, whether what is written goes there or not.
    #[serde(default)]
    pub(crate) origin: Option<PathBuf>,
    /// The image that it was filled from, as that was then.
    #[serde(default)]
    pub(crate) began_with: Option<ImageId>,
    /// Whether the server has been asked to stop.
    #[serde(default)]
    pub(crate) stopping: bool,
}

impl Record {
    /// The Unix sockets that it listens on and has made.
    pub(crate) fn own_nbd_sockets(&self) -> impl Iterator<Item = &Path> {
        let own = |address: &&String| !self.inherited.contains(address);
        let paths = self.nbd.iter().filter(own);
        paths.filter_map(|address| Some(Path::new(address.strip_prefix("unix:")?)))
    }

    /// Where its clients find it.
    pub(crate) fn places(&self) -> Vec<String> {
        let fuse = self.fuse.iter().map(|dir| dir.display().to_string());
        self.nbd.iter().cloned().chain(fuse).collect()
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes `path` a directory that only we can enter, or checks that it is one.
fn make_private_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => {
            return Err(e).with_context(|| {
                format!(
                    "cannot make {}: set {OVERRIDE} to a usable directory",
                    path.display()
                )
            });
        }
    }
    // A directory others can write to could be swapped under us; /tmp is everyone's.
    let meta =
        fs::symlink_metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
    let ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !ours || meta.mode() & 0o022 != 0 {
        bail!(
            "{} must be a directory that only you can write to: remove it or set {OVERRIDE}",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn root() -> (tempfile::TempDir, RunRoot) {
        let temp = tempfile::tempdir().unwrap();
        let root = RunRoot(temp.path().join("run"));
        (temp, root)
    }

    #[test]
    fn a_directory_comes_and_goes() {
        let (_temp, root) = root();
        assert!(root.dirs().unwrap().is_empty());
        let dir = root.dir(&"a".parse().unwrap());
        let lock = dir.lock().unwrap();
        let record = Record {
            size: 4096,
            nbd: vec!["unix:/x".to_owned()],
            inherited: Vec::new(),
            fuse: None,
            fuse_device: None,
            mountpoint: None,
            spill: None,
            metrics: vec!["/m.prom".into()],
            home: None,
            origin: None,
            began_with: None,
            stopping: false,
        };
        lock.write_record(&record).unwrap();
        assert_eq!(dir.record(), Some(record));
        assert_eq!(root.dirs().unwrap().len(), 1);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.path), mode(&root.0)), (0o700, 0o700));
        assert_eq!(mode(&dir.lock_file()), 0o600);
        lock.remove().unwrap();
        assert!(!dir.exists());
        assert_eq!(dir.owner().unwrap(), None);
    }

    #[test]
    fn a_lock_on_a_removed_file_does_not_count() {
        let (_temp, root) = root();
        let dir = root.dir(&"a".parse().unwrap());
        let first = dir.lock().unwrap();
        fs::remove_file(dir.lock_file()).unwrap();
        let second = dir.lock().unwrap();
        assert_ne!(
            first._file.metadata().unwrap().ino(),
            second._file.metadata().unwrap().ino()
        );
    }

    #[test]
    fn directories_open_to_others_are_refused() {
        let (_temp, root) = root();
        fs::create_dir(&root.0).unwrap();
        fs::set_permissions(&root.0, fs::Permissions::from_mode(0o777)).unwrap();
        let error = root.dir(&"a".parse().unwrap()).lock().unwrap_err();
        assert!(error.to_string().contains("only you"), "{error}");
    }
}
