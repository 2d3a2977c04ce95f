//! Listening sockets from whoever started this process (sd_listen_fds(3)): systemd, of a socket unit.

use std::os::fd::OwnedFd;

use anyhow::Result;
use listenfd::ListenFd;
use uzram::nbd::InheritedSocket;

use crate::failure::Usage;

/// The number of the first descriptor (SD_LISTEN_FDS_START).
const FIRST: usize = 3;

/// The sockets that were handed to this process, if any were. To be asked once, while there are no
/// other threads: it takes them out of the environment.
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
                "LISTEN_FDS: descriptor {} is no stream socket: use ListenStream= in the unit",
                FIRST + index
            ))),
        }
    });
    taken.collect()
}
