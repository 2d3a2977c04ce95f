//! How a server says that it is there, and lets go of who started it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::base::bounded;
use crate::base::stderr;
use crate::base::table::bytes;
use crate::runtime::rundir::Record;
use crate::settings::{Settings, exposure, shortage};

/// How long those who started us may take to hear that we are ready, or that we stop.
const LISTEN: Duration = Duration::from_millis(500);

/// Says that the device is there: on stdout, to systemd, and in the log, which goes to the file
/// `log` from here on, and nothing to our starter any more, if we are in the background.
///
/// Whoever started us with a socket need not wait, and stdout may be for its own data: nothing is said
/// there then, unless we are in the background, where stdout is the pipe on which our starter waits.
pub(super) fn announce(settings: &Settings, record: &Record, log: Option<&File>) -> Result<()> {
    match log {
        Some(log) => {
            log_to(log)?;
            leave_stdin()?;
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
pub(super) fn notify(state: sd_notify::NotifyState<'static>) {
    match bounded::within(LISTEN, || sd_notify::notify(&[state])) {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::warn!(%error, "cannot notify systemd"),
        None => tracing::warn!("cannot notify systemd: nobody reads NOTIFY_SOCKET"),
    }
}

/// The file that a server in the background logs to, once it is ready.
pub(super) fn open_log(path: &Path) -> Result<File> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path);
    log.with_context(|| format!("cannot open {}", path.display()))
}

/// Sends everything that is logged from now on to `log`, and nothing to the starter's stderr.
pub(super) fn log_to(log: &File) -> Result<()> {
    // What was said before is the starter's to read.
    stderr::flush(stderr::LAST_LINES);
    rustix::stdio::dup2_stderr(log).context("cannot redirect the log")?;
    Ok(())
}

/// Lets go of our starter's turn, which was ours until here (the name is ours by itself), or of whatever stdin is.
pub(super) fn leave_stdin() -> Result<()> {
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
