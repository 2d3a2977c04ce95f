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
//! 1. RUNDIR is ours alone, and so is what is in it that counts as a device's directory ([`trust`]).
//!    Everything else there is neither believed nor touched.
//! 2. Whoever changes anything in `RUNDIR/NAME` holds its lock, but for `nbd-device`, which is that of who
//!    has the name's turn. The lock is a record lock (fcntl(2)): the kernel releases it when the process
//!    dies however it dies, and tells anyone who asks which process holds it. Commands that make the
//!    device, attach, detach or stop it take turns ([`Turn`]).
//! 3. The directory is removed by the holder of the lock only, and a lock counts only if its file
//!    is still the one the path names; so two servers never hold one name. Only the names above are
//!    removed from it.
//! 4. A lock file is open at most once in a process: closing any descriptor of it would release
//!    the lock ([`RunDir::owner`] is never called by the process that holds the lock).

mod live;
mod lock;
mod record;
mod sudo;
mod trust;
mod turn;

use std::env;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType, Pid};

pub(crate) use self::live::LiveRecord;
pub(crate) use self::lock::{Lock, remove_now};
pub(crate) use self::record::Record;
use self::trust::Found;
pub(crate) use self::turn::Turn;
use crate::base::name::Name;
use crate::base::suggest;
use crate::settings::Sockets;

/// Overrides RUNDIR, for tests and for several independent sets of devices.
pub(crate) const OVERRIDE: &str = "UZRAM_RUNDIR";

/// The files that are made in a device's directory, the lock last. Those of sockets have a lock of
/// their own for a moment, and what is written as a whole is another file until then.
const FILES: [&str; 10] = [
    RECORD,
    NEW_RECORD,
    CONTROL,
    "control.sock.lock",
    NBD,
    "nbd.sock.lock",
    NBD_DEVICE,
    "nbd-device.new",
    LOG,
    LOCK,
];

const LOCK: &str = "lock";
const RECORD: &str = "record";
const NEW_RECORD: &str = "record.new";
const CONTROL: &str = "control.sock";
const NBD: &str = "nbd.sock";
const NBD_DEVICE: &str = "nbd-device";
const LOG: &str = "log";

/// The directory that is made there.
const FUSE: &str = "fuse";

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
        // As the kernel names what is below it; but what it is itself is for each look to say.
        match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) => Ok(Self(trust::follow(above)?.path.join(name))),
            _ => bail!(
                "{} cannot be RUNDIR: set {OVERRIDE} to another directory",
                path.display()
            ),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn dir(&self, name: &Name) -> RunDir {
        RunDir {
            root: self.clone(),
            name: name.clone(),
        }
    }

    /// Every device that has a directory, alive or dead, by name.
    pub(crate) fn dirs(&self) -> Result<Vec<RunDir>> {
        let failed = || format!("cannot read {}", self.0.display());
        let Some(root) = self.open()? else {
            return Ok(Vec::new());
        };
        let names = trust::names(root.as_fd()).with_context(failed)?;
        let mut dirs = Vec::new();
        for name in names.iter().filter_map(|name| name.to_str()?.parse().ok()) {
            let dir = self.dir(&name);
            let found = trust::find(root.as_fd(), name.as_str()).with_context(failed)?;
            if matches!(found, Found::Ours(_)) {
                dirs.push(dir);
            }
        }
        dirs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(dirs)
    }

    fn open(&self) -> Result<Option<OwnedFd>> {
        trust::open_root(&self.0)
    }

    /// Makes it if it is not there.
    pub(crate) fn ensure(&self) -> Result<()> {
        self.make().map(drop)
    }

    fn make(&self) -> Result<OwnedFd> {
        trust::make_root(&self.0)
    }
}

/// Who serves a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Process(Pid),
    /// A process of another PID namespace.
    Elsewhere,
}

impl Holder {
    /// Its number, if it has one here.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self {
            Self::Process(pid) => Some(pid.as_raw_pid()),
            Self::Elsewhere => None,
        }
    }
}

/// One device's directory, whether it is there or not.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    root: RunRoot,
    name: Name,
}

impl RunDir {
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn root(&self) -> &RunRoot {
        &self.root
    }

    fn path(&self) -> PathBuf {
        self.root.0.join(self.name.as_str())
    }

    /// The sockets that its server makes here.
    pub(crate) fn sockets(&self) -> Sockets {
        Sockets {
            control: self.control_socket(),
            nbd: self.nbd_socket(),
        }
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.path().join(CONTROL)
    }

    pub(crate) fn nbd_socket(&self) -> PathBuf {
        self.path().join(NBD)
    }

    pub(crate) fn fuse_dir(&self) -> PathBuf {
        self.path().join(FUSE)
    }

    pub(crate) fn nbd_device(&self) -> PathBuf {
        self.path().join(NBD_DEVICE)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path().join(LOG)
    }

    /// The directory, if it is there.
    ///
    /// # Errors
    /// If what is there is not ours: then it is neither believed nor touched.
    fn open(&self) -> Result<Option<OwnedFd>> {
        let root = self.root.open()?;
        root.map_or(Ok(None), |root| self.open_in(root.as_fd()))
    }

    fn open_in(&self, root: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
        let path = self.path();
        let shown = path.display();
        let found = trust::find(root, self.name.as_str());
        match found.with_context(|| format!("cannot open {shown}"))? {
            Found::Nothing => Ok(None),
            Found::Ours(dir) => Ok(Some(dir)),
            Found::Foreign(flaw) => bail!(
                "{shown} {flaw}, and stays as it is: choose another name, or set {OVERRIDE} to another \
                 directory"
            ),
        }
    }

    /// The lock file, if there is one, for questions and turns.
    fn open_lock(&self) -> Result<Option<File>> {
        let Some(dir) = self.open()? else {
            return Ok(None);
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, LOCK, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(None),
            file => Ok(Some(File::from(file.with_context(|| {
                format!("cannot open {}", self.path().join(LOCK).display())
            })?))),
        }
    }

    pub(crate) fn exists(&self) -> Result<bool> {
        Ok(self.open()?.is_some())
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
        let Some(file) = self.open_lock()? else {
            return Ok(None);
        };
        // A shared lock is what a read-only descriptor may ask about; a server's is exclusive.
        let question = Flock::from(FlockType::ReadLock);
        let holder = rustix::process::fcntl_getlk(&file, &question)
            .with_context(|| format!("cannot query {}", self.path().join(LOCK).display()))?;
        Ok(holder.map(|lock| lock.pid.map_or(Holder::Elsewhere, Holder::Process)))
    }

    /// Refuses, and says how to start it, if there is no server, wherever it might run.
    pub(crate) fn require_owner(&self) -> Result<()> {
        let name = &self.name;
        match self.holder()? {
            Some(_) => Ok(()),
            None if self.exists()? => Err(anyhow!(
                "the server of {name} is dead: {}",
                self.how_to_clear()
            )),
            None => Err(self.unknown()),
        }
    }

    /// What to do about what a dead server left.
    pub(crate) fn how_to_clear(&self) -> String {
        let clear = match self.record().and_then(|record| record.mountpoint) {
            Some(mountpoint) => format!("uzram umount {}", mountpoint.display()),
            None => format!("uzram detach {}", self.name),
        };
        format!("clear what it left with: {clear}")
    }

    /// Refuses a name of which there is nothing, not even what a dead server left.
    pub(crate) fn require_there(&self) -> Result<()> {
        match self.exists()? {
            true => Ok(()),
            false => Err(self.unknown()),
        }
    }

    /// What to say of a name of which there is nothing.
    fn unknown(&self) -> Error {
        let dirs = self.root.dirs().unwrap_or_default();
        let known = dirs.iter().map(|dir| dir.name.as_str());
        let meant = suggest::nearest(self.name.as_str(), known);
        let more = meant
            .map(suggest::question)
            .or_else(|| sudo::hint(&self.name));
        let more = more.unwrap_or_else(|| ": see uzram list".to_owned());
        anyhow!("no device {} is being served{more}", self.name)
    }

    /// What the server, alive or dead, serves.
    pub(crate) fn record(&self) -> Option<Record> {
        trust::record(self.open().ok()??.as_fd())
    }

    /// Takes the name, making its directory; refused while another process has it.
    pub(crate) fn lock(&self) -> Result<Lock> {
        Lock::take(self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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
            spills: Vec::new(),
            making: vec!["/b".into()],
            metrics: vec!["/m.prom".into()],
            destages_to: None,
            origin: None,
            began_with: None,
            read_only: false,
            strict: false,
            server: None,
            user: None,
            stopping: false,
        };
        let live = lock.begin_record(record.clone()).unwrap();
        assert_eq!(dir.record(), Some(record.clone()));
        live.change(|record| record.stopping = true).unwrap();
        let stopping = Record {
            stopping: true,
            ..record
        };
        assert_eq!(live.now(), stopping);
        assert_eq!(dir.record(), Some(stopping));
        assert_eq!(root.dirs().unwrap().len(), 1);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&dir.path()), mode(&root.0)), (0o700, 0o700));
        assert_eq!(mode(&dir.path().join(LOCK)), 0o600);
        lock.remove().unwrap();
        assert!(!dir.exists().unwrap());
        assert_eq!(dir.owner().unwrap(), None);
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
