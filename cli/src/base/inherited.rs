//! What this process has from whoever started it. Descriptors are not for the processes that it starts, some
//! of which outlive it: they would keep a caller's lock locked and its pipe open. Listening sockets
//! (sd_listen_fds(3)) are for the server alone: from systemd, of a socket unit.

use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::{Context, Result};
use listenfd::ListenFd;
use rustix::io::{FdFlags, fcntl_setfd};
use uzram::nbd::InheritedSocket;

use crate::base::failure::Usage;

/// How many there are, in the environment; they stand one after the other from [`FIRST`] on.
const COUNT: &str = "LISTEN_FDS";

/// Which process they are for.
const FOR: &str = "LISTEN_PID";

/// The number of the first descriptor (SD_LISTEN_FDS_START).
const FIRST: usize = 3;

/// Keeps every descriptor but stdin, stdout and stderr from the processes that this one will start. To be
/// called first of all: what this process opens itself is its own in any case.
pub(crate) fn keep_from_children() {
    close_fds::set_fds_cloexec(FIRST as i32, &[]);
}

/// The sockets that were handed to this process, if any were. To be asked once, while there are no
/// other threads: it takes them out of the environment. Tools that this process runs do not get them.
///
/// # Errors
/// If one is no listening stream socket.
pub(crate) fn take() -> Result<Vec<InheritedSocket>> {
    let mut sockets = ListenFd::from_env();
    let taken = (0..sockets.len()).map(|index| {
        let unix = sockets
            .take_unix_listener(index)
            .map(|s| s.map(OwnedFd::from));
        let fd = unix.or_else(|_| {
            let tcp = sockets.take_tcp_listener(index);
            tcp.map(|s| s.map(OwnedFd::from))
        });
        match fd {
            Ok(Some(fd)) => Ok(InheritedSocket::new(fd)?),
            _ => Err(Usage::error(format!(
                "{COUNT}: descriptor {} is no stream socket: use ListenStream= in the unit",
                FIRST + index
            ))),
        }
    });
    taken.collect()
}

/// Hands all that [`take`] returned on to the process that `command` starts. Every process that is
/// started before they are dropped gets them.
pub(crate) fn hand_on(sockets: &[InheritedSocket], command: &mut Command) -> Result<()> {
    if sockets.is_empty() {
        return Ok(());
    }
    // The number of the process is not known before it runs; without one they are for whoever reads
    // how many there are.
    command
        .env(COUNT, sockets.len().to_string())
        .env_remove(FOR);
    for socket in sockets {
        fcntl_setfd(socket, FdFlags::empty()).context("cannot hand on an inherited socket")?;
    }
    Ok(())
}
