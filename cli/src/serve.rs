//! `uzram serve`: one device, from its directory in RUNDIR to its orderly stop.
//!
//! Things are made in this order and taken down in the reverse: the name's lock, the record, the
//! device, NBD, FUSE, the control socket. The record comes before what it records, so that
//! whatever a killed server leaves can be found. A failure on the way takes down what is there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit};
use uzram::nbd::Address;
use uzram::{BlockDevice, Device, control, fuse, nbd};

use crate::leftovers::{FileId, Traces};
use crate::rundir::{Lock, Record, RunRoot};
use crate::settings::Settings;
use crate::stop::Stopper;
use crate::table::bytes;
use crate::{release, stop};

/// How long clients may take to fetch the answers to what they have already sent.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until asked to stop.
pub(crate) fn run(settings: &Settings, root: &RunRoot, background: bool) -> Result<()> {
    if background {
        // Fails only for a leader of a process group, which then has no terminal to lose.
        let _ = rustix::process::setsid();
    }
    raise_open_files_limit();
    let lock = root.dir(&settings.name).lock()?;
    let (stopper, stop_requested) = stop::install(Traces {
        dir: lock.dir().clone(),
        fuse: None,
        sockets: Vec::new(),
        spill: None,
    })?;
    let server = match Server::start(settings, &lock, &stopper) {
        Ok(server) => server,
        Err(error) => {
            if let Err(second) = lock.remove() {
                tracing::warn!("{second:#}");
            }
            return Err(error);
        }
    };
    if background {
        log_to_file(&lock.dir().log())?;
    }
    announce(settings, &server.record);
    if background {
        leave_stdout()?;
    }
    // Err would mean that every sender is gone, which is no reason to go on either.
    let _ = stop_requested.recv();
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping {}", settings.name);
    server.stop();
    lock.remove()
}

/// The mount, shared with the control server, which asks it whether the disk is open.
type SharedMount = Arc<Mutex<Option<fuse::Mount>>>;

/// Everything that is running.
struct Server {
    device: Arc<Device>,
    nbd: Option<nbd::Server>,
    fuse: SharedMount,
    control: control::Server,
    record: Record,
}

impl Server {
    fn start(settings: &Settings, lock: &Lock, stopper: &Stopper) -> Result<Self> {
        lock.clear_leftovers()?;
        let mut record = settings.record();
        lock.write_record(&record)?;
        let (device, spill) = start_device(settings)?;
        stopper.note(|traces| traces.spill = spill.clone());
        record.spill = spill;
        lock.write_record(&record)?;
        let nbd = start_nbd(settings, &device, stopper)?;
        if let Some(nbd) = &nbd {
            // Port 0 has become a real one.
            record.nbd = nbd.addresses().iter().map(ToString::to_string).collect();
            lock.write_record(&record)?;
        }
        let fuse = start_fuse(settings, lock, &device, stopper)?;
        let fuse = Arc::new(Mutex::new(fuse));
        let control = start_control(&record, lock, &device, &fuse, stopper)?;
        Ok(Self {
            device,
            nbd,
            fuse,
            control,
            record,
        })
    }

    /// The orderly stop. Whatever does not end by itself is left to the watchdog.
    fn stop(self) {
        let Self {
            device,
            nbd,
            fuse,
            control,
            record,
        } = self;
        thread::scope(|scope| {
            scope.spawn(|| control.shutdown());
            scope.spawn(|| nbd.map(|server| server.shutdown(GRACE)));
            scope.spawn(|| {
                // While FUSE still answers, so that a file system on top can be written out.
                if let Some(dir) = &record.fuse {
                    release::loops_of_stopping_server(dir);
                }
                let mount = mount_of(&fuse).take();
                if let Some(Err(error)) = mount.map(fuse::Mount::unmount) {
                    tracing::warn!("{error}");
                }
            });
        });
        drop(device);
        // Only if a client still holds the device: then it does not get to do so itself.
        if let Some(Err(error)) = record.spill.map(|spill| spill.remove()) {
            tracing::warn!("cannot remove the backing file: {error}");
        }
    }
}

fn mount_of(fuse: &SharedMount) -> MutexGuard<'_, Option<fuse::Mount>> {
    fuse.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device, and its backing file if that is new: the device removes it at its end, and whoever
/// ends it before its end must do so instead.
fn start_device(settings: &Settings) -> Result<(Arc<Device>, Option<FileId>)> {
    let path = settings.device.backing.as_ref().map(|b| b.path.as_path());
    let new = path.filter(|path| fs::symlink_metadata(path).is_err());
    let device = Arc::new(Device::new(&settings.device)?);
    Ok((device, new.and_then(FileId::of)))
}

fn start_nbd(
    settings: &Settings,
    device: &Arc<Device>,
    stopper: &Stopper,
) -> Result<Option<nbd::Server>> {
    if settings.nbd.addresses.is_empty() {
        return Ok(None);
    }
    let device: Arc<dyn BlockDevice> = Arc::<Device>::clone(device);
    let server = nbd::Server::start(settings.nbd.clone(), device)?;
    let sockets = settings
        .nbd
        .addresses
        .iter()
        .filter_map(|address| match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp { .. } => None,
        });
    stopper.note(|traces| traces.sockets = sockets.collect());
    Ok(Some(server))
}

fn start_fuse(
    settings: &Settings,
    lock: &Lock,
    device: &Arc<Device>,
    stopper: &Stopper,
) -> Result<Option<fuse::Mount>> {
    let Some(dir) = &settings.fuse else {
        return Ok(None);
    };
    if *dir == lock.dir().fuse_dir() {
        lock.make_fuse_dir()?;
    }
    let mount = fuse::Mount::start(Arc::clone(device), dir, fuse::MountOptions::default())?;
    stopper.note(|traces| traces.fuse = Some(dir.clone()));
    Ok(Some(mount))
}

fn start_control(
    record: &Record,
    lock: &Lock,
    device: &Arc<Device>,
    fuse: &SharedMount,
    stopper: &Stopper,
) -> Result<control::Server> {
    let fuse = Arc::clone(fuse);
    let stopper = stopper.clone();
    let context = control::Context {
        device: Arc::clone(device),
        info: control::Info {
            name: lock.dir().name().to_string(),
            pid: std::process::id(),
            disksize: record.size,
            nbd: record.nbd.clone(),
            fuse: record.fuse.clone(),
        },
        in_use: Box::new(move || {
            mount_of(&fuse)
                .as_ref()
                .is_some_and(fuse::Mount::is_disk_open)
        }),
        stop: Box::new(move || stopper.request()),
    };
    Ok(control::Server::start(
        &lock.dir().control_socket(),
        context,
    )?)
}

/// Says that the device is there: on stdout, to systemd, and in the log.
fn announce(settings: &Settings, record: &Record) {
    let fuse = record.fuse.iter().map(|dir| dir.display().to_string());
    let places: Vec<_> = record.nbd.iter().cloned().chain(fuse).collect();
    tracing::info!(
        "serving {}, {}, on {}",
        settings.name,
        bytes(record.size),
        places.join(" and ")
    );
    notify(&[sd_notify::NotifyState::Ready]);
    let mut stdout = io::stdout();
    let said = writeln!(stdout, "ready").and_then(|()| stdout.flush());
    if let Err(error) = said {
        // Whoever started us does not listen; that is no reason not to serve.
        tracing::warn!(%error, "cannot say ready on stdout");
    }
}

/// Tells systemd, if it is there to be told.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// Sends everything that is logged from now on to `path`, and nothing to the starter's stderr.
fn log_to_file(path: &Path) -> Result<()> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    rustix::stdio::dup2_stderr(&log).context("cannot redirect the log")?;
    Ok(())
}

/// Lets go of the pipe on which `ready` was said.
fn leave_stdout() -> Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("cannot leave stdout")?;
    Ok(())
}

/// A client is a descriptor or two; the usual soft limit of 1024 is too few for many of them.
fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}
