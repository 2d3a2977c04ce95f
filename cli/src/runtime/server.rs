//! Servers as others see them: starting one in the background, stopping one, waiting for its end.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use uzram::nbd::InheritedSocket;

use crate::base::child_output::ChildOutput;
use crate::base::inherited;
use crate::base::packets::Packets;
use crate::base::undo::Interrupt;
use crate::runtime::leftovers;
use crate::runtime::rundir::{self, RunDir, RunRoot, Turn};
use crate::settings::Settings;
use crate::settings::exposure;

/// A server stops within 5 s of being asked; a frozen one never does.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(7);

/// How long a killed process may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that is to be started in the background.
pub(crate) struct Launch<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) dir: &'a RunDir,
    pub(crate) interrupt: &'a Interrupt,
    /// Ours, and the server's until it is ready.
    pub(crate) turn: &'a Turn,
    /// What we inherited, for it to serve.
    pub(crate) sockets: Vec<InheritedSocket>,
}

impl Launch<'_> {
    /// Starts a server that outlives us, and waits until it is ready.
    pub(crate) fn start(&mut self) -> Result<()> {
        let mut child = self.spawn()?;
        let ready = wait_ready(&mut child, self.interrupt);
        match ready {
            Ok(()) => exposure::warn(self.settings),
            Err(_) => {
                self.end(&mut child)?;
                clear_dead(self.dir)?;
            }
        }
        ready
    }

    /// From then on the sockets are the server's alone.
    fn spawn(&mut self) -> Result<Child> {
        let sockets = std::mem::take(&mut self.sockets);
        let program = env::current_exe().context("cannot find the uzram program")?;
        let (link, its_end) = Packets::pair().context("cannot make a pair of sockets")?;
        let turn = self.turn.share()?;
        let files: Vec<_> = turn.iter().map(AsFd::as_fd).collect();
        link.send(self.settings, &files)
            .context("cannot hand the server its settings")?;
        let mut command = Command::new(program);
        command
            // The name is for those who look at processes.
            .args(["serve-detached", "--", self.settings.name.as_str()])
            .current_dir("/")
            // Wherever it is looked for from.
            .env(rundir::OVERRIDE, self.dir.root().path())
            .stdin(its_end)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        inherited::hand_on(&sockets, &mut command)?;
        command.spawn().context("cannot start the server")
    }

    /// Ends a child that may be anywhere in its start, or already at its end. By then it may have clients, and
    /// an image for what they have written.
    fn end(&self, child: &mut Child) -> Result<()> {
        // Not collected yet, so the PID is still the child's.
        let process = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())
            .context("cannot open the server's process")?;
        match self.settings.destages_to() {
            None => end_process(process.as_fd(), &FORCIBLY)?,
            Some(image) => {
                let again = self.interrupt.again()?;
                end_writer(process.as_fd(), self.dir, image, || again.any())?;
            }
        }
        child.wait().context("cannot collect the server")?;
        Ok(())
    }
}

fn wait_ready(child: &mut Child, interrupt: &Interrupt) -> Result<()> {
    const OFTEN: Duration = Duration::from_millis(50);
    let mut output = ChildOutput::take(child).context("cannot listen to the server")?;
    while !output.is_complete() {
        output.read(OFTEN).context("cannot listen to the server")?;
        if output.stdout() == "ready\n" {
            return Ok(());
        }
        interrupt.check()?;
    }
    let complaints = output.stderr();
    let last = complaints.lines().rfind(|line| !line.trim().is_empty());
    let last = last.unwrap_or("it said nothing");
    bail!("{}", last.strip_prefix("uzram: ").unwrap_or(last))
}

/// Stops the server of `dir` if there is one, clears what is left of it, and removes the
/// directory. The caller has the name's turn.
pub(crate) fn stop(dir: &RunDir) -> Result<()> {
    if let Some(pid) = dir.owner()? {
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => {}
            Err(e) => {
                return Err(e).with_context(|| format!("cannot open process {}", pid.as_raw_pid()));
            }
            // Asked again, because the process may have ended and its PID been reused.
            Ok(process) if dir.owner()? == Some(pid) => {
                match dir.record().map(|record| record.destages_to) {
                    Some(None) => end_kept(process.as_fd(), pid, dir),
                    Some(Some(image)) => end_writer(process.as_fd(), dir, &image, || false),
                    // It may have an image to write.
                    None => end_process(process.as_fd(), &FORCIBLY[..1]),
                }
                .with_context(|| format!("cannot stop {}", dir.name()))?;
            }
            Ok(_) => {}
        }
    }
    clear_dead(dir)
}

/// Waits until the server of `dir`, which is stopping by itself, is gone.
pub(crate) fn wait_for_stopping(dir: &RunDir) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(30);
    const OFTEN: Duration = Duration::from_millis(20);
    let began = Instant::now();
    while dir.record().is_some_and(|record| record.stopping) && dir.owner()?.is_some() {
        if began.elapsed() > TIMEOUT {
            bail!("{} is being stopped: try again when it is gone", dir.name());
        }
        thread::sleep(OFTEN);
    }
    Ok(())
}

/// Clears what a dead server left, and its directory; one that is alive is left alone.
fn clear_dead(dir: &RunDir) -> Result<()> {
    if dir.exists()? && dir.holder()?.is_none() {
        let lock = dir.lock()?;
        leftovers::clear_dead(&lock)?;
        lock.remove()?;
    }
    Ok(())
}

/// Clears what dead servers of other names left of `fuse_dir`, before `ours` comes to use it:
/// what is attached to them is not found any more once another mount stands there.
pub(crate) fn clear_dead_users_of(fuse_dir: &Path, ours: &RunDir, root: &RunRoot) -> Result<()> {
    for other in root.dirs()? {
        let recorded = other.record().and_then(|record| record.fuse);
        if other.name() != ours.name() && recorded.as_deref() == Some(fuse_dir) {
            clear_dead(&other)?;
        }
    }
    Ok(())
}

/// Asking a process to end, and making it if it does not.
const FORCIBLY: [(Signal, Duration); 2] =
    [(Signal::TERM, STOP_TIMEOUT), (Signal::KILL, KILL_TIMEOUT)];

/// Ends the process that has the name of `dir`, `pid`; of one that is frozen, or is the keeper of one that is, its
/// server first: it would go on.
fn end_kept(process: BorrowedFd<'_>, pid: Pid, dir: &RunDir) -> Result<()> {
    let [asking, killing] = FORCIBLY;
    if end_process(process, &[asking]).is_err()
        && let Some(server) = served_for(pid, dir)
    {
        // It may have ended since.
        let _ = rustix::process::pidfd_send_signal(&server, Signal::KILL);
        if ended_within(process, KILL_TIMEOUT)? {
            return Ok(());
        }
    }
    end_process(process, &[killing])
}

/// The process that serves, where `keeper` keeps rights for it.
fn served_for(keeper: Pid, dir: &RunDir) -> Option<OwnedFd> {
    let server = dir.record()?.server?;
    let process = rustix::process::pidfd_open(Pid::from_raw(server)?, PidfdFlags::empty()).ok()?;
    let status = fs::read_to_string(format!("/proc/{server}/status")).ok()?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    (parent.trim().parse() == Ok(keeper.as_raw_pid())).then_some(process)
}

/// Ends a process by one signal or the next.
fn end_process(process: BorrowedFd<'_>, signals: &[(Signal, Duration)]) -> Result<()> {
    for &(signal, timeout) in signals {
        match rustix::process::pidfd_send_signal(process, signal) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
        if ended_within(process, timeout)? {
            return Ok(());
        }
    }
    bail!("its process does not end");
}

/// Asks a server to end, and waits until it has written all to its image, unless that is to be given up. One that has
/// been asked is asked again only then: it gives up; so who asks has the name's turn.
fn end_writer(
    process: BorrowedFd<'_>,
    dir: &RunDir,
    image: &Path,
    is_given_up: impl Fn() -> bool,
) -> Result<()> {
    const MENTIONED_AFTER: Duration = Duration::from_secs(5);
    const OFTEN: Duration = Duration::from_millis(20);
    let is_stopping = || dir.record().is_some_and(|record| record.stopping);
    let mut stops = is_stopping();
    if !stops {
        match rustix::process::pidfd_send_signal(process, Signal::TERM) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let (name, image) = (dir.name(), image.display());
    let (mut since, mut mentioned) = (Instant::now(), false);
    while !ended_within(process, OFTEN)? {
        if is_given_up() {
            tracing::warn!("{name}: interrupted again: what is not in {image} by now is lost");
            return end_process(process, &FORCIBLY);
        }
        if !stops && is_stopping() {
            (stops, since, mentioned) = (true, Instant::now(), false);
        }
        if since.elapsed() > MENTIONED_AFTER && !std::mem::replace(&mut mentioned, true) {
            match stops {
                true => tracing::info!("waiting for {name} to write all to {image}"),
                false => tracing::info!("waiting for {name} to begin to stop"),
            }
        }
    }
    Ok(())
}

/// Waits for a process to end. It counts as ended although its parent has not collected it.
fn ended_within(process: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs())?,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    loop {
        let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("cannot wait for the server"),
        }
    }
}
