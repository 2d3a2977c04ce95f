//! `uzram serve`: one device, from its directory in RUNDIR to its orderly stop.
//!
//! Things are made in this order and taken down in the reverse: the name's lock, the record, the
//! device, NBD, FUSE, the control socket. The record comes before what it records, so that
//! whatever a killed server leaves can be found. A failure on the way stops what is there in order: from NBD
//! on there may be clients, and what they were told is written goes home.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit};
use uzram::nbd::{Address, InheritedSocket};
use uzram::{BackingKeep, BlockDevice, Device, control, fuse, mounts, nbd};

use crate::args::Sink;
use crate::base::at_once;
use crate::base::bounded;
use crate::base::dumpable;
use crate::base::inherited;
use crate::base::stderr;
use crate::base::table::{bytes, count};
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::layers;
use crate::runtime::leftovers::{self, SocketId};
use crate::runtime::metrics::{Exporter, Outlets};
use crate::runtime::release;
use crate::runtime::rundir::{LiveRecord, Lock, Record, RunRoot, Turn};
use crate::runtime::sandbox;
use crate::runtime::server;
use crate::runtime::spill::SpillNotes;
use crate::runtime::stop;
use crate::runtime::stop::Stopper;
use crate::runtime::swap;
use crate::runtime::watchdog;
use crate::settings::Settings;
use crate::settings::exposure;
use crate::settings::shortage;
use crate::verbs::scrub;

/// How long clients may take to fetch the answers to what they have already sent.
const GRACE: Duration = Duration::from_secs(2);

/// How long what is being written to a backing may take that is to be wiped.
const LAST_WRITES: Duration = Duration::from_millis(500);

/// How long those who started us may take to hear that we are ready, or that we stop.
const LISTEN: Duration = Duration::from_millis(500);

/// How long removing the backing file may take; a large one takes its file system a while.
const SPILL: Duration = Duration::from_secs(3);

/// Serves until asked to stop.
pub(crate) fn run(settings: &Settings, root: &RunRoot, background: bool) -> Result<()> {
    let sockets = inherited::take()?;
    if background {
        // Fails only for a leader of a process group, which then has no terminal to lose.
        let _ = rustix::process::setsid();
    }
    let entered = sandbox::enter(settings, root)?;
    raise_open_files_limit();
    if settings.fuse.is_some() || settings.swap {
        join_io_flushers();
    }
    if settings.swap {
        swap::prepare()?;
    }
    dumpable::forbid();
    let (stopper, stop_requested) = stop::install()?;
    let dir = root.dir(&settings.name);
    // Who starts us in the background has it.
    let turn = (!background).then(|| Turn::to_make_while(&dir, || stopper.check()));
    let turn = turn.transpose()?;
    let lock = dir.lock()?;
    // From here on the name is ours by itself.
    drop(turn);
    stopper.note(|traces| traces.dir = Some(lock.dir().clone()));
    let served =
        Server::prepare(settings, &sockets, root, &lock, &stopper).and_then(|mut server| {
            let ready = server
                .open(settings, sockets, &lock, &stopper)
                .and_then(|()| {
                    entered.ready();
                    stopper.ready()
                })
                .and_then(|()| {
                    let log = background.then(|| lock.dir().log());
                    announce(settings, &server.record.now(), log.as_deref())
                });
            if ready.is_ok() {
                // Err would mean that every sender is gone, which is no reason to go on either.
                let _ = stop_requested.recv();
                notify(sd_notify::NotifyState::Stopping);
                tracing::info!("stopping {}", settings.name);
            }
            let stopped = server.stop(&lock, &stopper);
            if let (Err(_), Err(lost)) = (&ready, &stopped) {
                tracing::error!("{lost:#}");
            }
            ready.and(stopped)
        });
    let spill_stays = match &served {
        Ok(stopped) => *stopped == Stopped::SpillStays,
        // Threads that are at their end may have the device for a moment.
        Err(_) => lock
            .dir()
            .record()
            .is_some_and(|record| spills_stay(&record)),
    };
    // Without its record nobody would find the spill again.
    if !spill_stays && let Err(error) = lock.remove() {
        tracing::warn!("{error:#}");
    }
    served.map(drop)
}

/// Removes what a server has spilled to; says whether anything of that stays.
fn spills_stay(record: &Record) -> bool {
    let removed = remove_spills(record);
    if let Err(error) = &removed {
        tracing::warn!("the backing file stays until the next start or detach: {error:#}");
    }
    removed.is_err()
}

/// What an orderly stop has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// Nothing.
    Clean,
    /// The backing file: its file system does not let go of it.
    SpillStays,
}

/// Everything that is running.
struct Server {
    device: Arc<Device>,
    nbd: Option<nbd::Server>,
    fuse: Option<fuse::Mount>,
    control: Option<control::Server>,
    exporter: Option<Exporter>,
    record: LiveRecord,
}

impl Server {
    /// The device, which nobody reaches yet.
    fn prepare(
        settings: &Settings,
        sockets: &[InheritedSocket],
        root: &RunRoot,
        lock: &Lock,
        stopper: &Stopper,
    ) -> Result<Self> {
        leftovers::clear_dead(lock)?;
        if let Some(fuse) = &settings.fuse {
            server::clear_dead_users_of(fuse, lock.dir(), root)?;
        }
        let mut record = Record::of(settings);
        record.inherited = sockets.iter().map(|s| s.address().to_string()).collect();
        let record = lock.begin_record(record)?;
        check_layers(settings, root)?;
        let device = start_device(settings, &record)?;
        stopper.keep(&device);
        let (name, root) = (settings.name.clone(), root.clone());
        device.check_places(Box::new(move |path| layers::check(path, &name, &root)));
        if let Some(image) = &settings.restore {
            restore(&device, image, settings.verify_image, stopper)?;
        }
        Ok(Self {
            device,
            nbd: None,
            fuse: None,
            control: None,
            exporter: None,
            record,
        })
    }

    /// Serves it. After a failure what is served by then is to be stopped.
    fn open(
        &mut self,
        settings: &Settings,
        sockets: Vec<InheritedSocket>,
        lock: &Lock,
        stopper: &Stopper,
    ) -> Result<()> {
        let Self { device, record, .. } = self;
        self.nbd = start_nbd(settings, sockets, device, stopper)?;
        if let Some(nbd) = &self.nbd {
            // Port 0 has become a real one.
            let addresses = nbd.addresses().iter().map(ToString::to_string).collect();
            record.change(|record| record.nbd = addresses)?;
        }
        self.fuse = start_fuse(settings, lock, device, stopper)?;
        if let Some(mount) = &self.fuse {
            let device = mounts::at(mount.dir())?.map(|mount| mount.device);
            record.change(|record| record.fuse_device = device)?;
        }
        watchdog::start(device);
        self.exporter = Some(start_exporter(settings, device, stopper)?);
        let socket = lock.dir().control_socket();
        self.control = Some(control::Server::start(&socket, Arc::clone(device))?);
        Ok(())
    }

    /// The orderly stop. Whatever does not end by itself is left to the watchdog.
    ///
    /// # Errors
    /// If what was written home could not be made durable.
    fn stop(self, lock: &Lock, stopper: &Stopper) -> Result<Stopped> {
        let Self {
            device,
            nbd,
            fuse,
            control,
            exporter,
            record,
        } = self;
        // First of all: who finds it is not to ask again.
        if let Err(error) = record.change(|record| record.stopping = true) {
            tracing::warn!("cannot record that the server stops: {error}");
        }
        let outlives = device.outlives_the_device();
        let dir = lock.dir();
        // Nobody waits for pages to be written back that are forgotten in a moment.
        device.stop();
        let attached = attachments::of(dir, &record.now()).unwrap_or_else(|error| {
            tracing::warn!("{error:#}");
            Vec::new()
        });
        let (over_fuse, over_nbd): (Vec<_>, Vec<_>) = attached
            .into_iter()
            .partition(|device| matches!(device, Attachment::Loop(_)));
        let written = thread::scope(|scope| {
            // Nothing that can hang stands before the data: not the clients, not the files of others.
            let control = at_once::begin(scope, || {
                if let Some(server) = control {
                    server.shutdown();
                }
            });
            let exporter = at_once::begin(scope, || drop(exporter));
            // Each while its server still answers, so that a file system on top can be written out.
            let nbd = at_once::begin(scope, || {
                release::free_stopping(&over_nbd, outlives);
                if let Some(server) = nbd {
                    server.shutdown(GRACE);
                }
            });
            let fuse = at_once::begin(scope, || {
                release::free_stopping(&over_fuse, outlives);
                if let Some(Err(error)) = fuse.map(fuse::Mount::unmount) {
                    tracing::warn!("{error}");
                }
            });
            nbd.finish();
            fuse.finish();
            let written = stop::write_home(&device).inspect(|()| stopper.let_go());
            control.finish();
            exporter.finish();
            written
        })
        .context("what was written may be lost");
        if device.backing_keep() == BackingKeep::Wipe && !device.stop_spilling(LAST_WRITES) {
            tracing::warn!("the backing is still being written to: some of that may stay");
        }
        if spills_stay(&record.now()) {
            // It would try the same, and hang in it where a file system is frozen.
            std::mem::forget(device);
            return Ok(Stopped::SpillStays);
        }
        written.map(|()| Stopped::Clean)
    }
}

/// Refuses what would have the device wait for itself: one that is attached by NBD is there before its
/// server is started again.
fn check_layers(settings: &Settings, root: &RunRoot) -> Result<()> {
    let Settings {
        device, restore, ..
    } = settings;
    let backing = device.backing.as_ref().map(|backing| &backing.path);
    let origin = device.origin.as_ref().map(|origin| &origin.path);
    let mut places = backing.into_iter().chain(origin).chain(restore);
    Ok(places.try_for_each(|path| layers::check(path, &settings.name, root))?)
}

/// The device. Whoever ends it before its end finds in the record what it spills to.
fn start_device(settings: &Settings, record: &LiveRecord) -> Result<Arc<Device>> {
    let backing = settings.device.backing.as_ref();
    let keep = backing.map_or_else(BackingKeep::default, |backing| backing.keep);
    let device = match keep {
        BackingKeep::Keep => Device::new(&settings.device),
        BackingKeep::Remove | BackingKeep::Wipe => {
            let notes = SpillNotes {
                record: record.clone(),
                wipe: keep == BackingKeep::Wipe,
            };
            Device::noting(&settings.device, Arc::new(notes))
        }
    };
    Ok(Arc::new(device?))
}

/// Removes the files that were made to spill to; those that were there the device empties at its end.
fn remove_spills(record: &Record) -> Result<()> {
    let start = Instant::now();
    let mut made = record.spills.iter().filter(|spill| !spill.was_found());
    made.try_for_each(|spill| spill.clear(SPILL.saturating_sub(start.elapsed())))
}

fn restore(device: &Device, image: &Path, verify: bool, stopper: &Stopper) -> Result<()> {
    let pages = device.restore(image)?;
    let how = if verify {
        scrub::verify_image(device, image, pages, stopper)?;
        "all intact"
    } else {
        "which come as they are wanted, and in the background"
    };
    tracing::info!("{} pages of {}, {how}", count(pages), image.display());
    Ok(())
}

/// Serves NBD where the settings say, and on the sockets that were inherited.
fn start_nbd(
    settings: &Settings,
    sockets: Vec<InheritedSocket>,
    device: &Arc<Device>,
    stopper: &Stopper,
) -> Result<Option<nbd::Server>> {
    if settings.nbd.addresses.is_empty() && sockets.is_empty() {
        return Ok(None);
    }
    let device: Arc<dyn BlockDevice> = Arc::<Device>::clone(device);
    let inherited: Vec<_> = sockets.iter().map(|s| s.address().clone()).collect();
    exposure::warn_of_writers(&settings.nbd, &inherited);
    let server = nbd::Server::start_on(sockets, settings.nbd.clone(), device)?;
    let addresses = settings.nbd.addresses.iter();
    let ours = addresses.filter(|address| !inherited.contains(address));
    let sockets = ours.filter_map(|address| match address {
        Address::Unix(path) => SocketId::of(path),
        Address::Tcp { .. } => None,
    });
    stopper.note(|traces| traces.sockets.extend(sockets));
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

fn start_exporter(
    settings: &Settings,
    device: &Arc<Device>,
    stopper: &Stopper,
) -> Result<Exporter> {
    let outlets = Outlets::open(&settings.metrics)?;
    let exporter = Exporter::start(outlets, &settings.name, device)?;
    stopper.note(|traces| {
        for sink in &settings.metrics {
            match sink {
                Sink::Http(Address::Unix(path)) => traces.sockets.extend(SocketId::of(path)),
                Sink::Http(Address::Tcp { .. }) => {}
                Sink::File(path) => traces.files.push(path.clone()),
            }
        }
    });
    Ok(exporter)
}

/// Says that the device is there: on stdout, to systemd, and in the log, which goes to the file
/// `log` from here on, and nothing to our starter any more, if we are in the background.
///
/// Whoever started us with a socket need not wait, and stdout may be for its own data: nothing is said
/// there then, unless we are in the background, where stdout is the pipe on which our starter waits.
fn announce(settings: &Settings, record: &Record, log: Option<&Path>) -> Result<()> {
    match log {
        Some(log) => {
            log_to_file(log)?;
            leave_turn()?;
        }
        // Of one in the background its starter warns.
        None => {
            exposure::warn(settings);
            shortage::warn(settings);
        }
    }
    tracing::info!(
        "serving {}, {}, on {}",
        settings.name,
        bytes(record.size),
        record.places().join(" and ")
    );
    notify(sd_notify::NotifyState::Ready);
    if log.is_some() {
        // The pipe is our starter's, who waits at it, and has room.
        write_ready().context("cannot say ready to who started the server")?;
        return leave_stdout();
    }
    if record.inherited.is_empty() {
        say_ready();
    }
    Ok(())
}

fn write_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "ready")?;
    stdout.flush()
}

fn say_ready() {
    let said = bounded::within(LISTEN, write_ready);
    // Whoever started us does not listen; that is no reason not to serve.
    match said {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::warn!(%error, "cannot say ready on stdout"),
        None => tracing::warn!("stdout is full: nobody reads there that the server is ready"),
    }
}

/// Tells systemd, if it is there to be told.
pub(crate) fn notify(state: sd_notify::NotifyState<'static>) {
    match bounded::within(LISTEN, || sd_notify::notify(&[state])) {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::warn!(%error, "cannot notify systemd"),
        None => tracing::warn!("cannot notify systemd: nobody reads NOTIFY_SOCKET"),
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
    // What was said before is the starter's to read.
    stderr::flush(stderr::LAST_LINES);
    rustix::stdio::dup2_stderr(&log).context("cannot redirect the log")?;
    Ok(())
}

/// Lets go of our starter's turn, which was ours until here. The name is ours by itself.
fn leave_turn() -> Result<()> {
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot leave stdin")?;
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

/// What a file system on our own device waits for must not wait for that file system to write
/// pages out: our memory is not to be had by that.
fn join_io_flushers() {
    // Only root may, and only root has file systems on the device.
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!(%error, "cannot become an IO flusher");
    }
}
