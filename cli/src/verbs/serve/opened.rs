//! What a keeper opens for its server, and the start of that.

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use uzram::fuse::Mounted;
use uzram::nbd::InheritedSocket;
use uzram::{BackingKeep, BackingNotes, HandedFile, Links, SocketFile, mounts};

use crate::base::capabilities;
use crate::base::output;
use crate::base::packets::Packets;
use crate::base::user::User;
use crate::runtime::keeper::{Handed, Start, ToServer};
use crate::runtime::leftovers::Traces;
use crate::runtime::metrics::Outlets;
use crate::runtime::rundir::{self, LiveRecord, Lock};
use crate::runtime::spill::SpillNotes;
use crate::runtime::swap;
use crate::settings::{Settings, exposure};

/// What the keeper has opened for its server.
pub(super) struct Opened {
    pub(super) files: Vec<(Handed, OwnedFd)>,
    /// They go with the sockets.
    pub(super) socket_files: Vec<SocketFile>,
    pub(super) mounted: Option<Mounted>,
    /// Where a server in the background logs to.
    pub(super) log: Option<File>,
    /// `None` where what is spilled is to stay.
    pub(super) notes: Option<SpillNotes>,
    /// What the server may write to that is no spill, whatever it says: device and inode numbers.
    pub(super) no_spills: Vec<(u64, u64)>,
}

impl Opened {
    /// Opens all that the settings name; what is to be removed of it at the end is in `traces`.
    pub(super) fn new(
        settings: &Settings,
        user: &User,
        record: &LiveRecord,
        lock: &Lock,
        traces: &mut Traces,
    ) -> Result<Self> {
        let backing = settings.device.backing.as_ref();
        let mut opened = Self {
            files: Vec::new(),
            socket_files: Vec::new(),
            mounted: None,
            log: None,
            notes: Some(SpillNotes {
                record: record.clone(),
                wipe: backing.is_some_and(|backing| backing.keep == BackingKeep::Wipe),
            })
            .filter(|_| backing.is_none_or(|backing| backing.keep != BackingKeep::Keep)),
            no_spills: vec![numbers(lock.file())?],
        };
        opened.open_files(settings, user)?;
        opened.listen(settings, record, lock)?;
        traces.files = settings.metrics_files();
        if let Some(dir) = &settings.fuse {
            opened.mount(dir, record, lock)?;
            traces.fuse = Some(dir.clone());
        }
        Ok(opened)
    }

    fn open_files(&mut self, settings: &Settings, user: &User) -> Result<()> {
        if let Some(backing) = &settings.device.backing {
            if let Some(notes) = &self.notes {
                notes.opening(&backing.path, None)?;
            }
            let handed = backing.hand();
            let is_made = handed.as_ref().is_ok_and(HandedFile::is_made);
            if let Some(notes) = &self.notes {
                // What was there is noted when the server has found that it is of no worth.
                match is_made {
                    true => notes.opened(&backing.path)?,
                    false => notes.not_opened(&backing.path),
                }
            }
            let handed = handed?;
            if is_made {
                user.own(&handed)?;
            }
            let file = handed.as_fd().try_clone_to_owned()?;
            self.files.push((Handed::Backing { made: is_made }, file));
        }
        if let Some(origin) = &settings.device.origin {
            let file = origin.hand()?.as_fd().try_clone_to_owned()?;
            self.no_spills.push(numbers(&file)?);
            self.files.push((Handed::Origin, file));
        }
        if let Some(image) = &settings.restore {
            let file = uzram::open_named_file(image, Links::Follow)?;
            self.files.push((Handed::Restore, file.into()));
        }
        Ok(())
    }

    fn listen(&mut self, settings: &Settings, record: &LiveRecord, lock: &Lock) -> Result<()> {
        let (control, file) = uzram::listen_unix(&lock.dir().control_socket())?;
        self.files.push((Handed::Control, control));
        self.socket_files.push(file);
        let inherited = record.now().inherited;
        let mut addresses = inherited.clone();
        for address in &settings.nbd.addresses {
            if inherited.contains(&address.to_string()) {
                continue;
            }
            for (socket, file) in InheritedSocket::bind(address)? {
                addresses.push(socket.address().to_string());
                self.files
                    .push((Handed::Nbd, socket.as_fd().try_clone_to_owned()?));
                self.socket_files.extend(file);
            }
        }
        // Port 0 has become a real one.
        record.change(|record| record.nbd = addresses)?;
        let outlets = Outlets::open(&settings.metrics)?;
        let sockets = outlets.sockets.into_iter();
        self.files
            .extend(sockets.map(|socket| (Handed::Metrics, socket)));
        self.socket_files.extend(outlets.socket_files);
        Ok(())
    }

    fn mount(&mut self, dir: &Path, record: &LiveRecord, lock: &Lock) -> Result<()> {
        if *dir == lock.dir().fuse_dir() {
            lock.make_fuse_dir()?;
        }
        let (mounted, connection) = Mounted::new(dir)?;
        let device = mounts::at(mounted.dir())?.map(|mount| mount.device);
        record.change(|record| record.fuse_device = device)?;
        self.files.push((Handed::Fuse, connection));
        self.mounted = Some(mounted);
        Ok(())
    }
}

/// Hands a server these files and sockets.
pub(super) fn hand_over(
    files: &[(Handed, OwnedFd)],
    sockets: &[InheritedSocket],
    log: Option<&File>,
    lock: &Lock,
    settings: &Settings,
    link: &Packets,
) -> Result<()> {
    let inherited: Vec<_> = sockets.iter().map(|s| s.address().clone()).collect();
    exposure::warn_of_writers(&settings.nbd, &inherited);
    let files = files.iter().map(|(kind, file)| (*kind, file.as_fd()));
    let more = sockets.iter().map(|socket| (Handed::Nbd, socket.as_fd()));
    let mut handed: Vec<_> = files.chain(more).collect();
    handed.push((Handed::Lock, lock.file()));
    handed.extend(log.map(|log| (Handed::Log, log.as_fd())));
    let (kinds, files): (Vec<_>, Vec<_>) = handed.into_iter().unzip();
    let start = ToServer::Start(Box::new(Start {
        settings: settings.clone(),
        handed: kinds,
        watchdog: sd_notify::watchdog_enabled(),
    }));
    link.send(&start, &files)
        .context("cannot hand over what the server needs")
}

/// What tells a file while it is open.
pub(super) fn numbers(file: impl AsFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(file).context("cannot look at what is handed over")?;
    Ok((stat.st_dev, stat.st_ino))
}

/// What it is told of the environment: the rest is for programs of root's, and may be secret.
const VARIABLES: [&str; 5] = [
    "NO_COLOR",
    "RUST_BACKTRACE",
    "TZ",
    "UZRAM_DUMPABLE",
    "UZRAM_LOG",
];

/// Starts the process that is to serve, which waits for what it is handed; returns the way to it.
pub(super) fn spawn(settings: &Settings, user: &User) -> Result<(Packets, Child)> {
    let (link, theirs) = Packets::pair().context("cannot make a pair of sockets")?;
    // By this name, as the user may have no right to the directory that the program is in.
    let mut command = Command::new("/proc/self/exe");
    let told = VARIABLES.map(|name| (name, env::var_os(name)));
    command
        .arg0("uzram")
        .args(output::as_args())
        .args(["serve-kept", "--", settings.name.as_str()])
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        .uid(user.uid)
        .gid(user.gid)
        .env_clear()
        .envs(
            told.into_iter()
                .filter_map(|(name, set)| Some((name, set?))),
        )
        // It has no right to ours, and no use for any.
        .env(rundir::OVERRIDE, "/nonexistent");
    if io::stderr().is_terminal() {
        // It is open for reading as well, where what root types is to be had.
        let mut terminal = File::options();
        terminal.write(true).custom_flags(libc::O_NOCTTY);
        let terminal = terminal.open("/proc/self/fd/2");
        command.stderr(terminal.context("cannot open the terminal for the server's log")?);
    }
    let failed = || format!("cannot start a server as {user}");
    let spawned = match settings.swap && !swap::has_limit_to_lock() {
        true => capabilities::with_memory_locking(|| command.spawn()).with_context(failed)?,
        false => command.spawn(),
    };
    Ok((link, spawned.with_context(failed)?))
}
