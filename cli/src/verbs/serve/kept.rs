//! `uzram serve-kept`: a server that has a keeper, and no rights of its own: see [`crate::runtime::keeper`].
//!
//! One thread hears the keeper; who waits for an answer of his has a channel.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;
use uzram::nbd::InheritedSocket;
use uzram::{
    BackingKeep, BackingNotes, BlockDevice, Device, HandedFile, Links, control, fuse, nbd,
};

use super::announce::{leave_stdin, log_to};
use super::{Server, Surroundings, note_restored};
use crate::base::dumpable;
use crate::base::packets::Packets;
use crate::runtime::keeper::{Handed, Over, Start, ToKeeper, ToServer};
use crate::runtime::metrics::{Exporter, Outlets};
use crate::runtime::sandbox;
use crate::runtime::spill;
use crate::runtime::stop::{self, Stopper};
use crate::runtime::swap;
use crate::runtime::watchdog;
use crate::settings::Settings;

/// Serves what the keeper says, over the files that it hands over, until asked to stop.
pub(crate) fn run() -> Result<()> {
    let no_keeper = "serve-kept: uzram serve --user starts it";
    // What a terminal sends goes to the keeper alone, who hands it on; and nothing can be typed there from here.
    rustix::process::setsid().context(no_keeper)?;
    let link = Packets::on_stdin().context("cannot use stdin")?;
    leave_stdin()?;
    let Ok(Some((ToServer::Start(start), files))) = link.receive() else {
        bail!("{no_keeper}");
    };
    let user = start.settings.user.clone();
    serve(link, *start, files).map_err(|error| match &user {
        Some(user) if format!("{error:#}").contains("Permission denied") => {
            anyhow!("{error:#}: the server runs as {user}, who may not")
        }
        _ => error,
    })
}

fn serve(link: Packets, start: Start, files: Vec<OwnedFd>) -> Result<()> {
    let Start {
        mut settings,
        handed,
        watchdog,
    } = start;
    let mut files = Files::new(&handed, files)?;
    // By its path it is called after /proc/self/exe.
    let _ = fs::write("/proc/self/comm", "uzram");
    sandbox::enter_kept(&settings)?;
    if settings.swap {
        swap::lock_memory()?;
    }
    dumpable::forbid();
    let (stopper, stop_requested) = stop::install()?;
    let keeper = Keeper::new(link, files.take(Handed::Lock), &settings, &stopper)?;
    let log = files.take(Handed::Log).map(File::from);
    let device = start_device(&mut settings, &mut files, &keeper)?;
    stopper.keep(&device);
    if let (Some(image), Some(file)) = (&settings.restore, files.take(Handed::Restore)) {
        let pages = device.restore_handed(&HandedFile::new(file, false), image)?;
        note_restored(&device, &settings, image, pages, &stopper)?;
    }
    let mut server = Server::of(device);
    let opened = server.open_on(&settings, files, watchdog, &keeper);
    let ready = opened.and_then(|()| {
        stopper.ready()?;
        log.as_ref().map_or(Ok(()), log_to)?;
        Ok(keeper.say(&ToKeeper::Ready, &[])?)
    });
    if ready.is_ok() {
        // Err would mean that every sender is gone, which is no reason to go on either.
        let _ = stop_requested.recv();
    }
    let stopped = server.stop_after(ready, &settings, &*keeper, &stopper);
    stopped.map(drop)
}

/// What was handed over.
struct Files(Vec<(Handed, OwnedFd)>);

impl Files {
    fn new(kinds: &[Handed], files: Vec<OwnedFd>) -> Result<Self> {
        if kinds.len() != files.len() {
            bail!(
                "the keeper handed over {} files, not {}",
                files.len(),
                kinds.len()
            );
        }
        Ok(Self(kinds.iter().copied().zip(files).collect()))
    }

    fn take_if(&mut self, is_wanted: impl Fn(Handed) -> bool) -> Option<(Handed, OwnedFd)> {
        let at = self.0.iter().position(|(kind, _)| is_wanted(*kind))?;
        Some(self.0.remove(at))
    }

    fn take(&mut self, wanted: Handed) -> Option<OwnedFd> {
        Some(self.take_if(|kind| kind == wanted)?.1)
    }

    fn take_all(&mut self, wanted: Handed) -> Vec<OwnedFd> {
        std::iter::from_fn(|| self.take(wanted)).collect()
    }
}

impl Server {
    /// As [`Server::open`], with what was handed over.
    fn open_on(
        &mut self,
        settings: &Settings,
        mut files: Files,
        watchdog: Option<Duration>,
        keeper: &Arc<Keeper>,
    ) -> Result<()> {
        let device = &self.device;
        let sockets = files.take_all(Handed::Nbd).into_iter();
        let sockets: Vec<_> = sockets
            .map(InheritedSocket::new)
            .collect::<uzram::Result<_>>()?;
        if !sockets.is_empty() {
            let mut config = settings.nbd.clone();
            // They are all there.
            config.addresses.clear();
            let device: Arc<dyn BlockDevice> = Arc::<Device>::clone(device);
            self.nbd = Some(nbd::Server::start_on(sockets, config, device)?);
        }
        if let (Some(dir), Some(connection)) = (&settings.fuse, files.take(Handed::Fuse)) {
            let options = fuse::MountOptions::default();
            let mount = fuse::Mount::start_on(connection, Arc::clone(device), dir, options)?;
            self.fuse = Some(mount);
        }
        let tells = Arc::clone(keeper);
        watchdog::start(device, watchdog, move || {
            Ok(tells.say(&ToKeeper::Alive, &[])?)
        });
        let outlets = Outlets {
            sockets: files.take_all(Handed::Metrics),
            socket_files: Vec::new(),
            files: settings.metrics_files(),
        };
        self.exporter = Some(Exporter::start(outlets, &settings.name, device)?);
        let listener = files.take(Handed::Control).context("no control socket")?;
        self.control = Some(control::Server::start_on(listener, Arc::clone(device))?);
        Ok(())
    }
}

fn start_device(
    settings: &mut Settings,
    files: &mut Files,
    keeper: &Arc<Keeper>,
) -> Result<Arc<Device>> {
    let config = &mut settings.device;
    let mut keep = BackingKeep::default();
    if let Some(backing) = &mut config.backing {
        keep = backing.keep;
        let handed = files.take_if(|kind| matches!(kind, Handed::Backing { .. }));
        backing.handed = handed
            .map(|(kind, file)| HandedFile::new(file, kind == Handed::Backing { made: true }));
    }
    if let Some(origin) = &mut config.origin {
        let file = files.take(Handed::Origin);
        origin.handed = file.map(|file| HandedFile::new(file, false));
    }
    let device = match keep {
        BackingKeep::Keep => Device::new(config),
        BackingKeep::Remove | BackingKeep::Wipe => Device::noting(config, Arc::clone(keeper) as _),
    };
    Ok(Arc::new(device?))
}

/// The keeper, as its server sees it.
struct Keeper {
    link: Arc<Packets>,
    freed: [Mutex<Receiver<()>>; 2],
    /// Held by who waits for an answer.
    noted: Mutex<Receiver<Result<(), String>>>,
    /// What is being opened, if it was handed over, and whether it is made for us.
    opening: Mutex<Option<(Option<HandedFile>, bool)>>,
}

/// What hears the keeper.
struct Ear {
    link: Arc<Packets>,
    freed: [Sender<()>; 2],
    noted: Sender<Result<(), String>>,
    lock: Option<OwnedFd>,
    stopper: Stopper,
    name: String,
}

impl Keeper {
    fn new(
        link: Packets,
        lock: Option<OwnedFd>,
        settings: &Settings,
        stopper: &Stopper,
    ) -> Result<Arc<Self>> {
        let link = Arc::new(link);
        let (over_fuse, fuse_freed) = mpsc::channel();
        let (over_nbd, nbd_freed) = mpsc::channel();
        let (noted, answers) = mpsc::channel();
        let ear = Ear {
            link: Arc::clone(&link),
            freed: [over_fuse, over_nbd],
            noted,
            lock,
            stopper: stopper.clone(),
            name: settings.name.to_string(),
        };
        thread::Builder::new()
            .name("uzram-kept".to_owned())
            .spawn(move || ear.hear())
            .context("cannot start the thread that hears the keeper")?;
        Ok(Arc::new(Self {
            link,
            freed: [Mutex::new(fuse_freed), Mutex::new(nbd_freed)],
            noted: Mutex::new(answers),
            opening: Mutex::default(),
        }))
    }

    fn say(&self, message: &ToKeeper, files: &[&HandedFile]) -> io::Result<()> {
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.link.send(message, &files)
    }
}

impl Keeper {
    /// Says something of a spill, and waits until it is noted.
    fn have_noted(&self, message: &ToKeeper, files: &[&HandedFile]) -> io::Result<()> {
        let answers = lock(&self.noted);
        self.say(message, files)?;
        match answers.recv() {
            Ok(noted) => noted.map_err(io::Error::other),
            Err(_) => Err(io::Error::other("the keeper is gone")),
        }
    }
}

impl Ear {
    fn hear(self) {
        let mut asked = false;
        loop {
            match self.link.receive() {
                Ok(Some((ToServer::Stop, _))) => {
                    if std::mem::replace(&mut asked, true) {
                        self.stopper.exit(1);
                    }
                    self.stopper.request();
                }
                // Nobody may wait for it any more.
                Ok(Some((ToServer::Freed(over), _))) => drop(self.freed[over as usize].send(())),
                Ok(Some((ToServer::Noted(noted), _))) => drop(self.noted.send(noted)),
                Ok(Some((ToServer::Start(_), _))) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("cannot hear the keeper: {error}");
                    break;
                }
            }
        }
        tracing::error!("the keeper of {} is gone: stopping", self.name);
        // Until we are gone the name is ours.
        if let Some(lock) = &self.lock {
            let _ = rustix::fs::fcntl_lock(lock, FlockOperation::NonBlockingLockExclusive);
        }
        self.stopper.request();
        // Closed, it would let go of the lock.
        std::mem::forget(self.lock);
    }
}

impl Surroundings for Keeper {
    fn note_stopping(&self) {
        if let Err(error) = self.say(&ToKeeper::Stopping, &[]) {
            tracing::debug!("cannot tell the keeper: {error}");
        }
    }

    fn free(&self, over: Over, unhurried: bool) {
        let free = ToKeeper::Free { over, unhurried };
        if self.say(&free, &[]).is_ok() {
            // An error is the keeper's end.
            let _ = lock(&self.freed[over as usize]).recv();
        }
    }

    fn spills_stay(&self) -> bool {
        // The keeper removes them when we are gone.
        false
    }
}

impl BackingNotes for Keeper {
    fn opening(&self, path: &Path, handed: Option<&HandedFile>) -> io::Result<()> {
        let made = handed.map_or_else(|| spill::is_missing(path), HandedFile::is_made);
        *lock(&self.opening) = Some((handed.cloned(), made));
        Ok(())
    }

    fn opened(&self, path: &Path) -> io::Result<()> {
        let (handed, made) = lock(&self.opening).take().unwrap_or_default();
        let file = match handed {
            Some(handed) => handed,
            None => match uzram::open_named_file(path, Links::Refuse) {
                Ok(file) => HandedFile::new(file, made),
                // A block device, of which nothing is to be noted.
                Err(uzram::Error::Unusable { .. }) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            },
        };
        let path = std::path::absolute(path)?;
        self.have_noted(&ToKeeper::Opened { path, made }, &[&file])
    }

    fn not_opened(&self, _path: &Path) {
        lock(&self.opening).take();
    }

    fn closed(&self, path: &Path) {
        let closed = std::path::absolute(path)
            .and_then(|path| self.have_noted(&ToKeeper::Closed { path }, &[]));
        if let Err(error) = closed {
            tracing::debug!("cannot tell the keeper: {error}");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
