//! `uzram serve`: one device, from its directory in RUNDIR to its orderly stop.
//!
//! Things are made in this order and taken down in the reverse: the name's lock, the record, the
//! device, NBD, FUSE, the control socket. The record comes before what it records, so that
//! whatever a killed server leaves can be found. A failure on the way stops what is there in order: from NBD
//! on there may be clients, and what they were told is written is destaged.
//!
//! All of it is one process, unless it is to run as another user: then what needs rights is made and taken down by
//! a `keeper`, and the rest is `kept`.

mod announce;
mod keeper;
mod kept;
mod opened;

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use self::announce::{announce, leave_stdin, notify, open_log};
pub(crate) use self::kept::run as serve_kept;
use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit};
use uzram::nbd::{Address, InheritedSocket};
use uzram::{BackingKeep, BlockDevice, Device, control, fuse, mounts, nbd};

use crate::args::Sink;
use crate::base::at_once;
use crate::base::dumpable;
use crate::base::inherited;
use crate::base::packets::Packets;
use crate::base::table::count;
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::keeper::Over;
use crate::runtime::layers;
use crate::runtime::leftovers::{self, SocketId};
use crate::runtime::metrics::{Exporter, Outlets};
use crate::runtime::release;
use crate::runtime::rundir::{LiveRecord, Lock, Record, RunDir, RunRoot, Turn};
use crate::runtime::sandbox;
use crate::runtime::server;
use crate::runtime::spill::SpillNotes;
use crate::runtime::stop;
use crate::runtime::stop::Stopper;
use crate::runtime::swap;
use crate::runtime::watchdog;
use crate::settings::Settings;
use crate::settings::exposure;
use crate::verbs::scrub;

/// How long clients may take to fetch the answers to what they have already sent.
const GRACE: Duration = Duration::from_secs(2);

/// How long what is being written to a backing may take that is to be wiped.
const LAST_WRITES: Duration = Duration::from_millis(500);

/// How long removing the backing file may take; a large one takes its file system a while.
const SPILL: Duration = Duration::from_secs(3);

/// `uzram serve-detached`: serves what whoever started it hands over, in the background.
pub(crate) fn serve_detached(root: &RunRoot) -> Result<()> {
    let link = Packets::on_stdin().context("cannot use stdin")?;
    let Ok(Some((settings, turn))) = link.receive::<Settings>() else {
        bail!("serve-detached: uzram serve --background starts it");
    };
    // Ours until we are ready.
    match turn.first() {
        Some(turn) => rustix::stdio::dup2_stdin(turn).context("cannot keep the turn")?,
        None => leave_stdin()?,
    }
    drop((link, turn));
    run(&settings, root, true)
}

/// Serves until asked to stop.
pub(crate) fn run(settings: &Settings, root: &RunRoot, background: bool) -> Result<()> {
    let sockets = inherited::take()?;
    if background {
        // Fails only for a leader of a process group, which then has no terminal to lose.
        let _ = rustix::process::setsid();
    }
    match &settings.user {
        Some(user) => keeper::run(settings, user, sockets, root, background),
        None => serve(settings, sockets, root, background),
    }
}

/// Serves in this process.
fn serve(
    settings: &Settings,
    sockets: Vec<InheritedSocket>,
    root: &RunRoot,
    background: bool,
) -> Result<()> {
    let entered = sandbox::enter(settings, root)?;
    prepare(settings)?;
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
        prepare_device(settings, &sockets, root, &lock, &stopper).and_then(|(device, record)| {
            let mut server = Server::of(device);
            let alone = Alone {
                lock: &lock,
                record: &record,
            };
            let opened = server.open(settings, sockets, &alone, &stopper);
            let ready = opened.and_then(|()| {
                entered.ready();
                let log = background.then(|| open_log(&lock.dir().log()));
                let log = log.transpose()?;
                stopper.ready()?;
                announce(settings, &record.now(), log.as_ref())
            });
            if ready.is_ok() {
                // Err would mean that every sender is gone, which is no reason to go on either.
                let _ = stop_requested.recv();
                notify(sd_notify::NotifyState::Stopping);
            }
            server.stop_after(ready, settings, &alone, &stopper)
        });
    let spill_stays = match &served {
        Ok(stopped) => *stopped == Stopped::SpillStays,
        // Threads that are at their end may have the device for a moment.
        Err(_) => lock
            .dir()
            .record()
            .is_some_and(|record| spills_stay(&record, SPILL)),
    };
    // Without its record nobody would find the spill again.
    if !spill_stays && let Err(error) = lock.remove() {
        tracing::warn!("{error:#}");
    }
    served.map(drop)
}

/// Has this process, and those that it starts, be fit to serve.
fn prepare(settings: &Settings) -> Result<()> {
    raise_open_files_limit();
    if settings.fuse.is_some() || settings.swap {
        join_io_flushers();
    }
    if settings.swap {
        swap::prepare()?;
    }
    Ok(())
}

/// Removes what a server has spilled to; says whether anything of that stays.
fn spills_stay(record: &Record, timeout: Duration) -> bool {
    let removed = remove_spills(record, timeout);
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
}

/// The device, which nobody reaches yet, and the record of its server.
fn prepare_device(
    settings: &Settings,
    sockets: &[InheritedSocket],
    root: &RunRoot,
    lock: &Lock,
    stopper: &Stopper,
) -> Result<(Arc<Device>, LiveRecord)> {
    let record = begin(settings, sockets, root, lock)?;
    let device = start_device(settings, &record)?;
    stopper.keep(&device);
    let (name, root) = (settings.name.clone(), root.clone());
    device.check_places(Box::new(move |path| layers::check(path, &name, &root)));
    if let Some(image) = &settings.restore {
        let pages = device.restore(image)?;
        note_restored(&device, settings, image, pages, stopper)?;
    }
    Ok((device, record))
}

/// Begins the record of a server, with nothing there that an earlier one has left.
fn begin(
    settings: &Settings,
    sockets: &[InheritedSocket],
    root: &RunRoot,
    lock: &Lock,
) -> Result<LiveRecord> {
    leftovers::clear_dead(lock)?;
    if let Some(fuse) = &settings.fuse {
        server::clear_dead_users_of(fuse, lock.dir(), root)?;
    }
    let mut record = Record::of(settings);
    record.inherited = sockets.iter().map(|s| s.address().to_string()).collect();
    let record = lock.begin_record(record)?;
    check_layers(settings, root)?;
    Ok(record)
}

/// What a stopping server has done about what is around it, for which it may not have the rights.
trait Surroundings: Sync {
    /// Lets who finds it know that it stops.
    fn note_stopping(&self);

    /// Frees the device from what is attached to it that way, as far as there is time.
    fn free(&self, over: Over, unhurried: bool);

    /// Removes what was made to spill to; says whether anything of that stays.
    fn spills_stay(&self) -> bool;
}

/// Those of a server that does it itself.
struct Alone<'a> {
    lock: &'a Lock,
    record: &'a LiveRecord,
}

impl Surroundings for Alone<'_> {
    fn note_stopping(&self) {
        if let Err(error) = self.record.change(|record| record.stopping = true) {
            tracing::warn!("cannot record that the server stops: {error}");
        }
    }

    fn free(&self, over: Over, unhurried: bool) {
        free_stopping(self.lock.dir(), &self.record.now(), over, unhurried);
    }

    fn spills_stay(&self) -> bool {
        spills_stay(&self.record.now(), SPILL)
    }
}

/// Frees the device of `dir` from what is attached to it in one way.
fn free_stopping(dir: &RunDir, record: &Record, over: Over, unhurried: bool) {
    let mut attached = attachments::of(dir, record).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        Vec::new()
    });
    attached.retain(|device| match device {
        Attachment::Loop(_) | Attachment::Fuse2fs(_) => over == Over::Fuse,
        Attachment::Nbd(_) => over == Over::Nbd,
    });
    release::free_stopping(&attached, unhurried);
}

impl Server {
    /// One that serves nobody yet.
    fn of(device: Arc<Device>) -> Self {
        Self {
            device,
            nbd: None,
            fuse: None,
            control: None,
            exporter: None,
        }
    }

    /// Serves it, in this process. After a failure what is served by then is to be stopped.
    fn open(
        &mut self,
        settings: &Settings,
        sockets: Vec<InheritedSocket>,
        alone: &Alone<'_>,
        stopper: &Stopper,
    ) -> Result<()> {
        let (device, record, lock) = (&self.device, alone.record, alone.lock);
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
        watchdog::start(device, sd_notify::watchdog_enabled(), || {
            Ok(sd_notify::notify(&[sd_notify::NotifyState::Watchdog])?)
        });
        self.exporter = Some(start_exporter(settings, device, stopper)?);
        let socket = lock.dir().control_socket();
        self.control = Some(control::Server::start(&socket, Arc::clone(device))?);
        Ok(())
    }

    /// The orderly stop of one that was `ready`, or whose start has failed.
    fn stop_after(
        self,
        ready: Result<()>,
        settings: &Settings,
        around: &impl Surroundings,
        stopper: &Stopper,
    ) -> Result<Stopped> {
        if ready.is_ok() {
            tracing::info!("stopping {}", settings.name);
        }
        let stopped = self.stop(around, stopper);
        if let (Err(_), Err(lost)) = (&ready, &stopped) {
            tracing::error!("{lost:#}");
        }
        ready.and(stopped)
    }

    /// The orderly stop. Whatever does not end by itself is left to the watchdog.
    ///
    /// # Errors
    /// If what was destaged could not be made durable.
    fn stop(self, around: &impl Surroundings, stopper: &Stopper) -> Result<Stopped> {
        let Self {
            device,
            nbd,
            fuse,
            control,
            exporter,
        } = self;
        // First of all: who finds it is not to ask again.
        around.note_stopping();
        let outlives = device.outlives_the_device();
        // Nobody waits for pages to be written back that are forgotten in a moment.
        device.stop();
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
                around.free(Over::Nbd, outlives);
                if let Some(server) = nbd {
                    server.shutdown(GRACE);
                }
            });
            let fuse = at_once::begin(scope, || {
                around.free(Over::Fuse, outlives);
                if let Some(Err(error)) = fuse.map(fuse::Mount::unmount) {
                    tracing::warn!("{error}");
                }
            });
            nbd.finish();
            fuse.finish();
            let written = stop::destage(&device).inspect(|()| stopper.let_go());
            control.finish();
            exporter.finish();
            written
        })
        .context("what was written may be lost");
        if device.backing_keep() == BackingKeep::Wipe && !device.stop_spilling(LAST_WRITES) {
            tracing::warn!("the backing is still being written to: some of that may stay");
        }
        if around.spills_stay() {
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
fn remove_spills(record: &Record, timeout: Duration) -> Result<()> {
    let start = Instant::now();
    let mut made = record.spills.iter().filter(|spill| !spill.was_found());
    made.try_for_each(|spill| spill.clear(timeout.saturating_sub(start.elapsed())))
}

/// Says that so many pages of an image are on the device, once all of them are read if they are to be verified.
fn note_restored(
    device: &Device,
    settings: &Settings,
    image: &Path,
    pages: u64,
    stopper: &Stopper,
) -> Result<()> {
    let how = if settings.verify_image {
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
