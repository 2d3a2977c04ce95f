//! The FUSE frontend: a directory in which `disk` is the device and the other files are its
//! attributes.
//!
//! ```text
//! program ── DIR/disk ──┐
//! loop driver ──────────┤ kernel ── /dev/fuse ── serving threads ── BlockDevice
//! cat DIR/mm_stat ──────┘                        (one queue each)
//! ```
//!
//! Where the kernel offers it, most requests take a shorter way: see `uring`. What is served over a connection that
//! outlives its server takes one of its own: see `relay`.
//!
//! Invariants:
//! 1. A request is checked once, in `filesystem`, and answered exactly once.
//! 2. Nothing here opens a file under its own mount once it serves: the writeback of this very
//!    process could depend on it.
//! 3. A [`Mount`] takes its mount away when it goes, in bounded time, whoever holds files open.
//!
//! The data path takes no lock here; opens of `disk` share one, in `disk`, and opens and reads of
//! attributes another, in `snapshots`.

mod disk;
mod filesystem;
mod inner;
mod mounted;
mod mountpoint;
mod node;
mod relay;
mod snapshots;
mod uring;
mod wire;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use crossbeam::channel;
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::io::Errno;

use crate::block_device::BlockDevice;
use crate::device::Device;
use crate::error::{Error, Result};
use disk::Disk;
use filesystem::Frontend;
pub use mounted::Mounted;
pub use mountpoint::detach_stale;
use relay::Relay;
use uring::Transport;

/// The name of the device's file in the directory.
pub const DISK_FILE: &str = "disk";

/// What stands as the source of the mount in `/proc/self/mountinfo`.
const SOURCE: &str = "uzram";

/// The largest read or write, bytes: what the kernel allows without a raised sysctl.
const MAX_REQUEST_BYTES: u32 = 1 << 20;

/// How long an unmount waits for open files to be closed before it cuts them off.
const CLOSE_GRACE: Duration = Duration::from_millis(500);

/// How long an unmount waits for the serving threads to finish the requests they have.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// How a device is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MountOptions {
    /// Threads that serve requests, at least two; two a core, from 4 to 16, if `None`.
    pub threads: Option<usize>,
}

/// A session with the kernel, and what ends it if that is up to us.
type Begun = std::io::Result<(Session<Frontend>, Option<SessionUnmounter>)>;

impl MountOptions {
    /// Sets how many threads serve.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }
}

/// A device served in a directory, until this is dropped or [`Mount::unmount`] is called.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    /// None where another process has mounted it, which is to unmount it.
    unmounter: Option<SessionUnmounter>,
    over_io_uring: bool,
    /// Says how the serving threads ended; taken once the mount is gone.
    ended: Option<Receiver<std::io::Result<()>>>,
}

impl Mount {
    /// Serves `device` and its attributes in `dir`, an empty directory. When this returns, the
    /// mount answers.
    ///
    /// # Errors
    /// [`Error::Unusable`] if `dir` or `/dev/fuse` will not do, with what would;
    /// [`Error::Io`] if the kernel or `fusermount3` refuses.
    pub fn start(device: Arc<Device>, dir: &Path, options: MountOptions) -> Result<Self> {
        Self::serve(device.clone(), Some(device), dir, options)
    }

    /// Serves any block device in `dir`, without attributes.
    ///
    /// # Errors
    /// Those of [`Mount::start`].
    pub fn start_bare(
        disk: Arc<dyn BlockDevice>,
        dir: &Path,
        options: MountOptions,
    ) -> Result<Self> {
        Self::serve(disk, None, dir, options)
    }

    fn serve(
        disk: Arc<dyn BlockDevice>,
        attributes: Option<Arc<Device>>,
        dir: &Path,
        options: MountOptions,
    ) -> Result<Self> {
        let dir = mountpoint::prepare(dir)?;
        mountpoint::check_dev_fuse()?;
        let mount = Self::serve_session(disk, attributes, &dir, options, |frontend, config| {
            let mut session = Session::new(frontend, &dir, config)?;
            let unmounter = session.unmount_callable();
            Ok((session, Some(unmounter)))
        })?;
        let answered = rustix::fs::statfs(&mount.dir);
        answered.map_err(|errno| Error::io(format!("serve {}", mount.dir.display()), errno))?;
        mount.check_served()?;
        Ok(mount)
    }

    /// Serves `device` and its attributes over the `connection` of a [`Mounted`] directory, called `dir`, which
    /// another process unmounts: before [`Mount::unmount`] is called, which then only waits.
    ///
    /// # Errors
    /// [`Error::Io`] if the connection cannot be served.
    pub fn start_on(
        connection: OwnedFd,
        device: Arc<Device>,
        dir: &Path,
        options: MountOptions,
    ) -> Result<Self> {
        let attributes = Some(device.clone());
        let mount = Self::serve_session(device, attributes, dir, options, |frontend, config| {
            let acl = SessionACL::RootAndOwner;
            let mut config = config.clone();
            // Its threads share the connection where this user can have no other.
            config.clone_fd = mountpoint::check_dev_fuse().is_ok();
            let session = Session::from_fd(frontend, connection, acl, config)?;
            Ok((session, None))
        })?;
        mount.check_served()?;
        Ok(mount)
    }

    /// The same over a connection that outlives this process: a new one, or one that another process has `begun` to
    /// serve and left as it was, perhaps in the midst of requests. Whoever keeps it has a descriptor of it all the time.
    ///
    /// # Errors
    /// Those of [`Mount::start_on`]. One that was begun takes Linux 6.9.
    pub fn start_kept(
        connection: OwnedFd,
        begun: bool,
        device: Arc<Device>,
        dir: &Path,
        options: MountOptions,
    ) -> Result<Self> {
        let cannot_serve = |error| Error::io(format!("serve {}", dir.display()), error);
        let (disk, attributes) = (Disk::new(device.clone()), Some(device));
        // What the kernel has put into a ring is lost with its server.
        let frontend = Frontend::new(disk, attributes, uring::Offer::declining());
        let (config, readers) = (session_config(options), threads(options));
        check_threads(readers).map_err(cannot_serve)?;
        let relay = Relay::start(connection, begun, frontend, config, readers);
        let relay = relay.map_err(cannot_serve)?;
        let (end, ended) = mpsc::channel();
        thread::Builder::new()
            .name("uzram-fuse".to_owned())
            .spawn(move || {
                // Nobody listens once the mount has been given up on.
                let _ = end.send(relay.join());
            })
            .map_err(cannot_serve)?;
        Ok(Self {
            dir: dir.to_owned(),
            unmounter: None,
            over_io_uring: false,
            ended: Some(ended),
        })
    }

    fn serve_session(
        disk: Arc<dyn BlockDevice>,
        attributes: Option<Arc<Device>>,
        dir: &Path,
        options: MountOptions,
        begin: impl FnOnce(Frontend, &Config) -> Begun,
    ) -> Result<Self> {
        let rings = uring::Offer::default();
        let frontend = Frontend::new(Disk::new(disk), attributes, rings.clone());
        let cannot_mount = |error| Error::io(format!("mount on {}", dir.display()), error);
        let config = session_config(options);
        let (session, unmounter) =
            begin(frontend.clone(), &config).map_err(|error| cannot_mount(one_line(&error)))?;
        let workers = threads(options);
        let transport = Transport::start(&rings, session.as_fd(), dir, frontend, config, workers)
            .map_err(&cannot_mount)?;
        check_threads(workers).map_err(&cannot_mount)?;
        let over_io_uring = transport.is_some();
        let (end, ended) = mpsc::channel();
        thread::Builder::new()
            .name("uzram-fuse".to_owned())
            .spawn(move || {
                let served = session.run();
                if let Some(transport) = transport {
                    transport.join();
                }
                // Nobody listens once the mount has been given up on.
                let _ = end.send(served);
            })
            .map_err(&cannot_mount)?;
        Ok(Self {
            dir: dir.to_owned(),
            unmounter,
            over_io_uring,
            ended: Some(ended),
        })
    }

    /// Fails if the serving threads did not start.
    fn check_served(&self) -> Result<()> {
        match self.ended.as_ref().map(Receiver::try_recv) {
            Some(Ok(Err(error))) => Err(Error::io(format!("serve {}", self.dir.display()), error)),
            _ => Ok(()),
        }
    }

    /// The directory, absolute and without symlinks.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device's file.
    pub fn disk_path(&self) -> PathBuf {
        self.dir.join(DISK_FILE)
    }

    /// Whether rings were agreed on with the kernel, as they are where it offers them and this
    /// process may make them. What it lets go through `/dev/fuse` all the same is its affair.
    pub fn is_over_io_uring(&self) -> bool {
        self.over_io_uring
    }

    /// Takes the mount away: at once if nothing is open, else after half a second, cutting off
    /// whoever still has a file open. Without root, files that are open go on being served until
    /// they are closed or the process ends. Returns within about three seconds.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not let go of the directory.
    pub fn unmount(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        let Some(ended) = self.ended.take() else {
            return Ok(());
        };
        self.release_directory()
            .map_err(|error| Error::io(format!("unmount {}", self.dir.display()), error))?;
        match ended.recv_timeout(DRAIN_GRACE) {
            Ok(Err(error)) => tracing::warn!("serving {} ended: {error}", self.dir.display()),
            Ok(Ok(())) => {}
            Err(_) => tracing::warn!("{} is unmounted but still in use", self.dir.display()),
        }
        Ok(())
    }

    fn release_directory(&mut self) -> std::io::Result<()> {
        let Some(unmounter) = &mut self.unmounter else {
            return Ok(());
        };
        // The first try is fuser's, so that it knows of it and does not unmount what comes to
        // stand here later; for a user it is fusermount3's, which detaches.
        match unmounter.unmount() {
            Ok(()) => Ok(()),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                mounted::release(&self.dir, Err(errno))
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            tracing::error!("{error}");
        }
    }
}

/// A thread that waits for the backing, or for memory, must leave others to serve; beyond that
/// more threads only cost their buffers, about 2 MiB each.
fn default_threads() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (2 * cores).clamp(4, 16)
}

fn threads(options: MountOptions) -> usize {
    options.threads.unwrap_or_else(default_threads).max(2)
}

/// Whether `count` threads can be had, and the one that waits for them. fuser starts them one by one, and of
/// those that it has started when one fails it lets the others serve a mount that goes away.
fn check_threads(count: usize) -> std::io::Result<()> {
    thread::scope(|scope| {
        let (enough, wait) = channel::bounded::<()>(0);
        let started = (0..=count).try_for_each(|_| {
            let wait = wait.clone();
            // Until there is nobody to receive anything from.
            let rest = move || wait.recv().is_ok();
            thread::Builder::new().spawn_scoped(scope, rest).map(drop)
        });
        drop(enough);
        started
    })
}

fn session_config(options: MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(SOURCE.to_owned()),
        MountOption::Subtype(SOURCE.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    config.n_threads = Some(threads(options));
    config.clone_fd = true;
    config
}

/// What the kernel is told of `error`.
fn errno(error: &Error) -> fuser::Errno {
    fuser::Errno::from_i32(error.errno().raw_os_error())
}

/// fusermount3's words come with their newlines.
fn one_line(error: &std::io::Error) -> std::io::Error {
    let words: Vec<_> = error
        .to_string()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    std::io::Error::new(error.kind(), words.join(" "))
}
