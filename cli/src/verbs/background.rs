//! `uzram serve --background` and `--run`: a server beside the command that asked for it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rustix::process::{Pid, Signal};
use uzram::Links;
use uzram::nbd::{Address, InheritedSocket};

use crate::args::ServeArgs;
use crate::base::failure::CommandFailed;
use crate::base::inherited;
use crate::base::output::{self, StdoutGone};
use crate::base::table::bytes;
use crate::base::undo::Interrupt;
use crate::runtime::rundir::{Record, RunDir, RunRoot, Turn};
use crate::runtime::server::{self, Launch};
use crate::settings::{Settings, shortage};

/// `uzram serve --background` or `--run`.
pub(crate) fn serve(args: ServeArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    let settings = Settings::resolve(args.name, args.device, &dir.sockets())?;
    shortage::warn(&settings);
    let turn = Turn::to_make(&dir)?;
    if dir.owner()?.is_some() {
        bail!("{} is already being served", dir.name());
    }
    let interrupt = Interrupt::install()?;
    let record = launch(&settings, &dir, inherited::take()?, &turn, &interrupt)?;
    drop(turn);
    let begun = note_pid(args.pidfile.as_deref(), &dir).and_then(|()| match &args.run {
        Some(command) => run(command, &dir, &record, &interrupt).map(Some),
        None => report(&settings, &record).map(|()| None),
    });
    match begun {
        Ok(None) => Ok(()),
        Ok(Some(status)) => {
            end(&dir)?;
            match status.code().or(status.signal().map(|signal| 128 + signal)) {
                Some(0) => Ok(()),
                code => Err(CommandFailed::error(code)),
            }
        }
        // It is not for who reads about it that a device goes.
        Err(error) if error.is::<StdoutGone>() => Err(error),
        Err(error) => {
            end(&dir)?;
            Err(error)
        }
    }
}

/// Starts a server that outlives us; what it serves once it is ready.
pub(crate) fn launch(
    settings: &Settings,
    dir: &RunDir,
    sockets: Vec<InheritedSocket>,
    turn: &Turn,
    interrupt: &Interrupt,
) -> Result<Record> {
    let mut launch = Launch {
        settings,
        dir,
        interrupt,
        turn,
        sockets,
    };
    launch.start()?;
    // The server has added what it inherited, and found real ports.
    Ok(dir.record().unwrap_or_else(|| Record::of(settings)))
}

/// Says that a device is served, and where.
pub(crate) fn report(settings: &Settings, record: &Record) -> Result<()> {
    output::report(format_args!(
        "{} ({}) is served on {}",
        settings.name,
        bytes(settings.device.size),
        record.places().join(" and ")
    ))
}

/// Writes the server's PID where it is asked for; what is there is replaced.
fn note_pid(path: Option<&Path>, dir: &RunDir) -> Result<()> {
    let (Some(path), Some(pid)) = (path, dir.owner()?) else {
        return Ok(());
    };
    let text = format!("{}\n", pid.as_raw_pid());
    Ok(uzram::write_whole(
        path,
        Links::Refuse,
        text.as_bytes(),
        0o644,
    )?)
}

/// Runs `command` with the device in its environment, to its end or ours.
fn run(command: &str, dir: &RunDir, record: &Record, interrupt: &Interrupt) -> Result<ExitStatus> {
    const OFTEN: Duration = Duration::from_millis(20);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("exportname", dir.name().as_str());
    let addresses = record.nbd.iter().filter_map(|address| address.parse().ok());
    if let Some(address) = addresses.into_iter().next() {
        shell.env("uri", uri(dir, &address));
        if let Address::Unix(path) = address {
            shell.env("unixsocket", path);
        }
    }
    if let Some(fuse) = &record.fuse {
        shell.env("disk", fuse.join("disk"));
    }
    let mut child = shell.spawn().context("cannot start sh")?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for sh")? {
            return Ok(status);
        }
        if let Err(interrupted) = interrupt.check() {
            terminate(&mut child);
            return Err(interrupted);
        }
        thread::sleep(OFTEN);
    }
}

fn terminate(child: &mut Child) {
    // It may have ended by now.
    let _ = rustix::process::kill_process(Pid::from_child(child), Signal::TERM);
    let _ = child.wait();
}

/// The device's URI (NBD's `doc/uri.md`).
fn uri(dir: &RunDir, address: &Address) -> String {
    let encoded = |bytes: &[u8]| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    let name = encoded(dir.name().as_str().as_bytes());
    match address {
        Address::Unix(path) => {
            let path = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
            format!(
                "nbd+unix:///{name}?socket={}",
                encoded(path.as_os_str().as_bytes())
            )
        }
        Address::Tcp { host, port } if host.contains(':') => {
            format!("nbd://[{host}]:{port}/{name}")
        }
        Address::Tcp { host, port } => format!("nbd://{host}:{port}/{name}"),
    }
}

/// Stops the server, whoever uses it.
fn end(dir: &RunDir) -> Result<()> {
    let _turn = Turn::by_force(dir)?;
    server::stop(dir)
}
