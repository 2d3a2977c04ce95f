//! The FUSE frontend: a directory in which `disk` is the device and the other files are its
//! attributes.
//!
//! ```text
//! program ── DIR/disk ──┐
//! loop driver ──────────┤ kernel ── /dev/fuse ── serving threads ── BlockDevice
//! cat DIR/mm_stat ──────┘                        (one queue each)
//! ```
//!
//! Where the kernel offers it, most requests take a shorter way: see `uring`.
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
mod mountpoint;
mod node;
mod snapshots;
mod uring;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel;
use fuser::{Config, MountOption, Session, SessionUnmounter};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::block_device::BlockDevice;
use crate::device::Device;
use crate::error::{Error, Result};
use disk::Disk;
use filesystem::Frontend;
pub use mountpoint::detach_stale;
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
pub struct MountOptions {
    /// Threads that serve requests, at least two; two a core, from 4 to 16, if `None`.
    pub threads: Option<usize>,
}

/// A device served in a directory, until this is dropped or [`Mount::unmount`] is called.
#[derive(Debug)]
pub struct Mount {
    dir: PathBuf,
    unmounter: SessionUnmounter,
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
        let rings = uring::Offer::default();
        let frontend = Frontend::new(Disk::new(disk), attributes, rings.clone());
        let cannot_mount = |error| Error::io(format!("mount on {}", dir.display()), error);
        let config = session_config(options);
        let mut session = Session::new(frontend.clone(), &dir, &config)
            .map_err(|error| cannot_mount(one_line(&error)))?;
        let workers = threads(options);
        let transport = Transport::start(&rings, session.as_fd(), &dir, frontend, config, workers)
            .map_err(&cannot_mount)?;
        check_threads(workers).map_err(&cannot_mount)?;
        let over_io_uring = transport.is_some();
        let unmounter = session.unmount_callable();
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
        let mount = Self {
            dir,
            unmounter,
            over_io_uring,
            ended: Some(ended),
        };
        mount.wait_until_served()?;
        Ok(mount)
    }

    /// A first request through the mount: answered, or refused because the threads did not start.
    fn wait_until_served(&self) -> Result<()> {
        let failed = |error| Error::io(format!("serve {}", self.dir.display()), error);
        rustix::fs::statfs(&self.dir).map_err(|errno| failed(errno.into()))?;
        match self.ended.as_ref().map(Receiver::try_recv) {
            Some(Ok(Err(error))) => Err(failed(error)),
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
        // The first try is fuser's, so that it knows of it and does not unmount what comes to
        // stand here later; for a user it is fusermount3's, which detaches.
        let Err(error) = self.unmounter.unmount() else {
            return Ok(());
        };
        let deadline = Instant::now() + CLOSE_GRACE;
        let mut result = Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
        while result == Err(Errno::BUSY) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            result = unmount(&self.dir, UnmountFlags::empty());
        }
        if result == Err(Errno::BUSY) {
            // Forcing ends the connection, so that nothing waits for an answer that never comes.
            result = unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
        }
        match result {
            // Somebody else unmounted it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
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
