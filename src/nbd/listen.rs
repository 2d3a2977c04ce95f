//! Listening sockets. A Unix socket is private from the moment it exists, takes the place of one
//! that a dead server left, never that of a live one, and is removed when dropped.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, fchmod, flock, lstat, open, unlink};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::error::{Error, Result};

use super::address::Address;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket; it never blocks in accept.
pub(super) struct Listener {
    fd: OwnedFd,
    /// With the port that was really bound.
    address: Address,
    /// What to remove in the end.
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on `address`: one socket, or one for each address a host name stands for.
    pub(super) fn bind(address: &Address) -> Result<Vec<Self>> {
        match address {
            Address::Unix(path) => Ok(vec![bind_unix(path)?]),
            Address::Tcp { host, port } => bind_tcp(host, *port),
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.remove();
        }
    }
}

/// A socket's file, known by its inode: another server may have put its own in this place.
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn find(path: &Path) -> io::Result<Self> {
        let stat = lstat(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }

    fn remove(&self) {
        let ours = lstat(&self.path)
            .is_ok_and(|stat| stat.st_dev == self.device && stat.st_ino == self.inode);
        if ours && let Err(error) = unlink(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn bind_tcp(host: &str, port: u16) -> Result<Vec<Listener>> {
    let action = |address: &dyn std::fmt::Display| format!("listen on tcp:{address}");
    let whole = Address::Tcp {
        host: host.to_owned(),
        port,
    };
    let named = |error| Error::io(format!("listen on {whole}"), error);
    let mut listeners: Vec<Listener> = Vec::new();
    let mut failure = None;
    for candidate in (host, port).to_socket_addrs().map_err(named)? {
        // Any free port is meant to be one port.
        if port == 0 && !listeners.is_empty() {
            break;
        }
        match tcp_listener(candidate) {
            Ok(listener) => listeners.push(listener),
            Err(error) => failure = Some(Error::io(action(&candidate), error)),
        }
    }
    match failure {
        Some(error) if listeners.is_empty() => Err(error),
        None if listeners.is_empty() => Err(named(io::ErrorKind::AddrNotAvailable.into())),
        _ => Ok(listeners),
    }
}

fn tcp_listener(address: SocketAddr) -> io::Result<Listener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    Ok(Listener {
        fd: listener.into(),
        address: Address::Tcp {
            host: bound.ip().to_string(),
            port: bound.port(),
        },
        file: None,
    })
}

fn bind_unix(path: &Path) -> Result<Listener> {
    let name = SocketAddrUnix::new(path).map_err(|_| Error::Unusable {
        path: path.to_owned(),
        reason: "a socket's path is at most 107 bytes long".to_owned(),
    })?;
    let failed = |error: io::Error| Error::io(format!("listen on unix:{}", path.display()), error);

    let _turn = Turn::take(path).map_err(failed)?;
    let fd = unix_socket().map_err(failed)?;
    // Linux makes the file with the mode of the socket itself, so it is never open to others.
    fchmod(&fd, Mode::RUSR | Mode::WUSR).map_err(|error| failed(error.into()))?;
    match bind(&fd, &name) {
        Ok(()) => {}
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &name)?;
            bind(&fd, &name).map_err(|error| failed(error.into()))?;
        }
        Err(error) => return Err(failed(error.into())),
    }
    let file = SocketFile::find(path).map_err(failed)?;
    let listener = Listener {
        fd,
        address: Address::Unix(path.to_owned()),
        file: Some(file),
    };
    listen(&listener.fd, BACKLOG).map_err(|error| failed(error.into()))?;
    Ok(listener)
}

fn unix_socket() -> io::Result<OwnedFd> {
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Removes what is at `path` if it is a socket that nobody listens on.
fn remove_stale(path: &Path, name: &SocketAddrUnix) -> Result<()> {
    let unusable = |reason: &str| {
        Err(Error::Unusable {
            path: path.to_owned(),
            reason: reason.to_owned(),
        })
    };
    let failed = |error: Errno| Error::io(format!("listen on unix:{}", path.display()), error);
    let stat = match lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return unusable("it exists and is not a socket; remove it or choose another path");
    }
    let probe = unix_socket().map_err(|error| Error::io("make a socket", error))?;
    match connect(&probe, name) {
        Err(Errno::CONNREFUSED) => match unlink(path) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed(error)),
        },
        Err(Errno::NOENT) => Ok(()),
        // A full backlog or a refusal by permission is an owner as well.
        _ => unusable("address in use: another server listens on this socket"),
    }
}

/// A turn at making a socket in a directory, so that of two servers that both find a stale socket
/// the second finds the first one's in its place.
struct Turn {
    _directory: Option<OwnedFd>,
}

impl Turn {
    /// Attempts before giving up on whoever holds the directory, 10 ms apart.
    const ATTEMPTS: u32 = 200;

    fn take(socket: &Path) -> io::Result<Self> {
        let directory = match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match open(directory, flags, Mode::empty()) {
            Ok(fd) => fd,
            // It can be written without being readable; then there is no turn to take.
            Err(Errno::ACCESS) => return Ok(Self { _directory: None }),
            Err(error) => return Err(error.into()),
        };
        for _ in 0..Self::ATTEMPTS {
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    return Ok(Self {
                        _directory: Some(fd),
                    });
                }
                Err(Errno::WOULDBLOCK) => thread::sleep(Duration::from_millis(10)),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "another process keeps the socket's directory locked",
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn unix(path: &Path) -> Result<Vec<Listener>> {
        Listener::bind(&Address::Unix(path.to_owned()))
    }

    #[test]
    fn a_unix_socket_is_private_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let listeners = unix(&path).expect("a free path");
        let mode = std::fs::metadata(&path).expect("it exists").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        UnixStream::connect(&path).expect("it listens");
        drop(listeners);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        drop(UnixListener::bind(&path).expect("a free path"));
        assert!(path.exists(), "std leaves its sockets behind");
        let first = unix(&path).expect("nobody listens on it");

        let error = unix(&path).err().expect("the first still listens");
        assert!(error.to_string().contains("address in use"), "{error}");
        UnixStream::connect(&path).expect("the first is unharmed");
        drop(first);
        unix(&path).expect("free again");
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious");
        std::fs::write(&path, "data").expect("a file");
        let error = unix(&path).err().expect("it is in the way");
        assert!(matches!(error, Error::Unusable { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("still there"), b"data");
    }

    #[test]
    fn a_listener_does_not_remove_the_socket_of_its_successor() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let first = unix(&path).expect("a free path");
        std::fs::remove_file(&path).expect("removed by someone");
        let second = unix(&path).expect("a free path again");
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn port_0_becomes_the_port_that_was_bound() {
        let address = "tcp:127.0.0.1:0".parse().expect("an address");
        let listeners = Listener::bind(&address).expect("any port");
        let [listener] = &listeners[..] else {
            panic!("one address, one listener")
        };
        let Address::Tcp { port, .. } = listener.address() else {
            panic!("a TCP address stays one")
        };
        assert_ne!(*port, 0);
        let error = Listener::bind(listener.address()).err().expect("taken");
        assert!(
            error.to_string().contains("listen on tcp:127.0.0.1"),
            "{error}"
        );
    }
}
