//! The keeper of a server that runs as another user: what it does, and why, is said in [`crate::runtime::keeper`].
//!
//! One thread waits for signals and for the end of the server, one hears what the server says. What both use is
//! in [`Shared`]; its locks are leaves.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use uzram::SocketFile;
use uzram::fuse::Mounted;
use uzram::nbd::InheritedSocket;

use super::announce::{announce, notify, open_log};
use super::opened::{self, Opened};
use super::{SPILL, begin, free_stopping, prepare, spills_stay};
use crate::base::bounded::within;
use crate::base::failure::Said;
use crate::base::packets::Packets;
use crate::base::undo::Interrupted;
use crate::base::user::User;
use crate::runtime::keeper::{Over, ToKeeper, ToServer};
use crate::runtime::leftovers::{self, Traces};
use crate::runtime::rundir::{LiveRecord, Lock, RunDir, RunRoot, Turn};
use crate::runtime::sandbox;
use crate::runtime::spill::SpillNotes;
use crate::runtime::stop::{DEADLINE, TRACES};
use crate::settings::Settings;

/// How long a server may take to end that was told to end at once.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Has a server run as `user`, and stays beside it.
pub(super) fn run(
    settings: &Settings,
    user: &User,
    sockets: Vec<InheritedSocket>,
    root: &RunRoot,
    background: bool,
) -> Result<()> {
    prepare(settings)?;
    let signals = Signals::take()?;
    let dir = root.dir(&settings.name);
    // Who starts us in the background has it.
    let turn = (!background).then(|| Turn::to_make_while(&dir, || signals.check()));
    let turn = turn.transpose()?;
    let lock = dir.lock()?;
    // From here on the name is ours by itself.
    drop(turn);
    let mut traces = Traces {
        dir: Some(lock.dir().clone()),
        ..Traces::default()
    };
    let began = begin(settings, &sockets, root, &lock).and_then(|record| {
        let mut opened = Opened::new(settings, user, &record, &lock, &mut traces)?;
        opened.log = background
            .then(|| open_log(&lock.dir().log()))
            .transpose()?;
        signals.check()?;
        Kept::start(settings, user, &lock, record, opened, sockets)
    });
    let (ended, is_asked) = match began {
        Ok(kept) => {
            sandbox::enter_keeper(settings);
            kept.keep(&signals)
        }
        Err(error) => (Err(error), true),
    };
    clear(lock, traces, is_asked);
    ended
}

/// Removes what is left of a server that is gone: in a hurry if it was to go, else as the next command would.
fn clear(lock: Lock, traces: Traces, is_hurried: bool) {
    if is_hurried {
        // A file system may hang.
        let _ = within(TRACES, move || traces.remove_now());
        return;
    }
    let cleared = leftovers::clear_dead(&lock);
    if let Err(error) = cleared.and_then(|()| lock.remove()) {
        tracing::warn!("{error:#}");
    }
}

/// SIGTERM and SIGINT. SIGHUP is ignored, as a server does, and so is SIGXFSZ.
struct Signals {
    /// A byte for each.
    came: UnixStream,
    interrupted: Cell<bool>,
}

impl Signals {
    fn take() -> Result<Self> {
        let failed = "cannot handle signals";
        for ignored in [SIGHUP, SIGXFSZ] {
            signal_hook::flag::register(ignored, Arc::default()).context(failed)?;
        }
        let (came, comes) = UnixStream::pair().context(failed)?;
        came.set_nonblocking(true).context(failed)?;
        for signal in [SIGTERM, SIGINT] {
            let comes = comes.try_clone().context(failed)?;
            signal_hook::low_level::pipe::register(signal, comes).context(failed)?;
        }
        Ok(Self {
            came,
            interrupted: Cell::new(false),
        })
    }

    /// How many have come since this was asked last.
    fn count(&self) -> usize {
        let mut bytes = [0; 16];
        let count = (&self.came).read(&mut bytes).unwrap_or(0);
        if count > 0 {
            self.interrupted.set(true);
        }
        count
    }

    /// Fails once any has come.
    fn check(&self) -> Result<()> {
        self.count();
        match self.interrupted.get() {
            true => Err(Interrupted::error("interrupted before it was ready")),
            false => Ok(()),
        }
    }
}

/// A server, and what is kept for it.
struct Kept {
    shared: Arc<Shared>,
    child: Child,
    process: OwnedFd,
    hears: JoinHandle<()>,
    _socket_files: Vec<SocketFile>,
}

impl Kept {
    /// Starts a server, and hands it what it is to serve. By then all is there that it takes to keep it: one that
    /// may have clients is not ended because something is not to be had.
    fn start(
        settings: &Settings,
        user: &User,
        lock: &Lock,
        record: LiveRecord,
        opened: Opened,
        sockets: Vec<InheritedSocket>,
    ) -> Result<Self> {
        let (link, mut child) = opened::spawn(settings, user)?;
        let pid = Pid::from_child(&child);
        let begin = || {
            let process = rustix::process::pidfd_open(pid, PidfdFlags::empty());
            let process = process.context("cannot open the server's process")?;
            record.change(|record| record.server = Some(pid.as_raw_pid()))?;
            let shared = Arc::new(Shared {
                settings: settings.clone(),
                user: user.clone(),
                dir: lock.dir().clone(),
                link,
                record,
                mounted: opened.mounted,
                log: opened.log,
                notes: opened.notes,
                no_spills: opened.no_spills,
                asked: OnceLock::new(),
                announced: Mutex::new(None),
                freed: [AtomicBool::new(false), AtomicBool::new(false)],
            });
            let heard = Arc::clone(&shared);
            let hears = thread::Builder::new()
                .name("uzram-keeper".to_owned())
                .spawn(move || heard.hear())
                .context("cannot start the thread that hears the server")?;
            let (log, link) = (shared.log.as_ref(), &shared.link);
            opened::hand_over(&opened.files, &sockets, log, lock, settings, link)?;
            // From then on nobody else has them.
            drop((opened.files, sockets));
            Ok((shared, process, hears, opened.socket_files))
        };
        match begin() {
            Ok((shared, process, hears, socket_files)) => Ok(Self {
                shared,
                child,
                process,
                hears,
                _socket_files: socket_files,
            }),
            Err(error) => {
                // It has served nobody.
                let _ = child.kill().and_then(|()| child.wait());
                Err(error)
            }
        }
    }

    /// Stays until the server is gone; returns how it ended, and whether it was to.
    fn keep(mut self, signals: &Signals) -> (Result<()>, bool) {
        let ended = self.wait(signals);
        let (shared, hears) = (self.shared, self.hears);
        // Whoever has the server's end by now.
        shared.link.close();
        // It hears the end; what it does until then may be on a file system that hangs.
        let _ = within(shared.timeout(), move || drop(hears.join()));
        let is_asked = shared.asked.get().is_some();
        if is_asked {
            // With its spill the record stays, for the next command to find it.
            spills_stay(&shared.record.now(), shared.timeout());
        }
        let announced = shared.announced.lock().take().unwrap_or(Ok(()));
        let verdict = ended
            .context("cannot wait for the server")
            .and_then(|status| shared.verdict(status));
        (announced.and(verdict), is_asked)
    }

    /// Waits for the end of the server, and hands signals on.
    fn wait(&mut self, signals: &Signals) -> std::io::Result<ExitStatus> {
        let (mut asked, mut kill_at) = (0, None);
        loop {
            let left = kill_at.map(|at: Instant| at.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [
                PollFd::new(&self.process, PollFlags::IN),
                PollFd::new(&signals.came, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!("cannot wait for signals: {errno}: stopping");
                    self.shared.stop();
                    return self.child.wait();
                }
            }
            if !fds[0].revents().is_empty() {
                return self.child.wait();
            }
            for _ in 0..signals.count() {
                asked += 1;
                self.shared.stop();
                if asked == 2 {
                    kill_at = Some(Instant::now() + AT_ONCE);
                }
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) {
                tracing::warn!("the server does not end: killing it");
                self.child.kill()?;
                kill_at = None;
            }
        }
    }
}

/// What both threads use.
struct Shared {
    settings: Settings,
    user: User,
    dir: RunDir,
    link: Packets,
    record: LiveRecord,
    mounted: Option<Mounted>,
    log: Option<File>,
    /// `None` where what is spilled is to stay.
    notes: Option<SpillNotes>,
    /// As in [`Opened`].
    no_spills: Vec<(u64, u64)>,
    /// When the server was first asked to stop, or said that it does.
    asked: OnceLock<Instant>,
    /// Whether it could be said that the server is ready, once it was.
    announced: Mutex<Option<Result<()>>>,
    /// Whether it was freed already from what is attached over FUSE, and over NBD.
    freed: [AtomicBool; 2],
}

impl Shared {
    fn tell(&self, message: &ToServer) {
        if let Err(error) = self.link.send(message, &[]) {
            tracing::debug!("the server hears nothing: {error}");
        }
    }

    /// Asks the server to stop.
    fn stop(&self) {
        self.asked.get_or_init(Instant::now);
        self.tell(&ToServer::Stop);
    }

    /// How long what comes now may take.
    fn timeout(&self) -> Duration {
        let asked = self.asked.get();
        asked.map_or(SPILL, |asked| {
            let left = DEADLINE.saturating_sub(TRACES);
            left.saturating_sub(asked.elapsed()).min(SPILL)
        })
    }

    /// Hears the server until it is gone.
    fn hear(self: &Arc<Self>) {
        loop {
            match self.link.receive() {
                Ok(Some((said, files))) => self.do_as(said, &files),
                Ok(None) => return,
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    tracing::error!("the server says what makes no sense: {error}");
                }
                Err(error) => {
                    tracing::error!("cannot hear the server: {error}");
                    return;
                }
            }
        }
    }

    fn do_as(self: &Arc<Self>, said: ToKeeper, files: &[OwnedFd]) {
        match said {
            ToKeeper::Ready => self.announce(),
            ToKeeper::Alive => {
                let alive = || sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                if let Some(Err(error)) = within(AT_ONCE, alive) {
                    tracing::debug!("cannot notify systemd: {error}");
                }
            }
            ToKeeper::Stopping => {
                self.asked.get_or_init(Instant::now);
                if let Err(error) = self.record.change(|record| record.stopping = true) {
                    tracing::warn!("cannot record that the server stops: {error}");
                }
                notify(sd_notify::NotifyState::Stopping);
            }
            ToKeeper::Free { over, unhurried } => {
                let shared = Arc::clone(self);
                let freed = thread::Builder::new()
                    .name("uzram-free".to_owned())
                    .spawn(move || shared.free(over, unhurried));
                if let Err(error) = freed {
                    tracing::warn!("cannot start a thread: {error}");
                    self.free(over, unhurried);
                }
            }
            ToKeeper::Opened { path, made } => {
                let noted = self.note_opened(&path, files, made);
                let noted = noted.map_err(|error| format!("{error:#}"));
                self.tell(&ToServer::Noted(noted));
            }
            ToKeeper::Closed { path } => {
                if let Some(notes) = &self.notes {
                    notes.closed_within(&path, self.timeout());
                }
                self.tell(&ToServer::Noted(Ok(())));
            }
        }
    }

    fn announce(&self) {
        let mut announced = self.announced.lock();
        if announced.is_some() {
            return;
        }
        let said = announce(&self.settings, &self.record.now(), self.log.as_ref());
        if said.is_err() {
            self.stop();
        }
        *announced = Some(said);
    }

    /// Does once what a stopping server has no rights for.
    fn free(&self, over: Over, unhurried: bool) {
        if !self.freed[over as usize].swap(true, Ordering::SeqCst) {
            free_stopping(&self.dir, &self.record.now(), over, unhurried);
            if over == Over::Fuse
                && let Some(mounted) = &self.mounted
                && let Err(error) = mounted.unmount()
            {
                tracing::warn!("{error}");
            }
        }
        self.tell(&ToServer::Freed(over));
    }

    fn note_opened(&self, path: &Path, files: &[OwnedFd], made: bool) -> Result<()> {
        let Some(notes) = &self.notes else {
            return Ok(());
        };
        let file = files.first().context("without a file")?;
        if self.no_spills.contains(&opened::numbers(file)?) {
            bail!("{} is no spill", path.display());
        }
        let noted = notes.claimed(path, file, made, self.user.uid);
        noted.with_context(|| format!("{} of {}", path.display(), self.user))
    }

    /// What is to be said of the server's end.
    fn verdict(&self, status: ExitStatus) -> Result<()> {
        match status.code() {
            Some(0) => Ok(()),
            // It has said why.
            Some(code) => Err(Said {
                code: u8::try_from(code).unwrap_or(1),
            }
            .into()),
            None => bail!(
                "the server of {} was killed by signal {}, and what was on it is lost",
                self.settings.name,
                status.signal().unwrap_or_default()
            ),
        }
    }
}
