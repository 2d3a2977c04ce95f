//! The sockets that the server listens on, Unix and TCP. A Unix socket's file goes when its
//! listener does, unless the socket is somebody else's who has handed it to us.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::{self, socket_acceptconn};
use rustix::net::{SocketAddrUnix, getsockname};

use crate::error::{Error, Result};
use crate::unix_socket::{self, SocketFile};

use super::address::Address;

/// A listening socket; it never blocks in accept.
pub(super) struct Listener {
    /// A Unix socket's; removed before the socket is closed.
    _file: Option<SocketFile>,
    fd: OwnedFd,
    /// With the port that was really bound.
    address: Address,
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

/// A socket that listens already, made by whoever started this process (sd_listen_fds(3)). Its file,
/// if it has one, is not removed.
pub struct InheritedSocket(Listener);

impl InheritedSocket {
    /// Takes a stream socket that listens, Unix or TCP.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it is anything else, or a Unix socket without a path;
    /// [`Error::Io`].
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let failed = |errno| Error::io("look at an inherited socket", errno);
        let wrong = |reason: &str| Error::InvalidConfig {
            option: "LISTEN_FDS",
            reason: reason.to_owned(),
        };
        if !socket_acceptconn(&fd).unwrap_or(false) {
            return Err(wrong("a descriptor is no stream socket that listens"));
        }
        let name = getsockname(&fd).map_err(failed)?;
        let address = match SocketAddr::try_from(name.clone()) {
            Ok(ip) => tcp_address(ip),
            Err(_) => match SocketAddrUnix::try_from(name).map(|name| unix_address(&name)) {
                Ok(Some(address)) => address,
                _ => return Err(wrong("a socket is neither TCP nor Unix with a path")),
            },
        };
        ioctl_fionbio(&fd, true).map_err(failed)?;
        Ok(Self(Listener {
            _file: None,
            fd,
            address,
        }))
    }

    /// Listens on `address`, for another process to serve: a socket, or one for each address that a host name
    /// stands for. The file of a Unix socket goes with what is returned beside it.
    ///
    /// # Errors
    /// [`Error::Unusable`] if a Unix socket is in use or something else is in its place; [`Error::Io`] if the
    /// address cannot be had.
    pub fn bind(address: &Address) -> Result<Vec<(Self, Option<SocketFile>)>> {
        let listeners = Listener::bind(address)?.into_iter();
        let apart = listeners.map(|mut listener| {
            let file = listener._file.take();
            (Self(listener), file)
        });
        Ok(apart.collect())
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    pub(super) fn into_listener(self) -> Listener {
        self.0
    }
}

impl AsFd for InheritedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn unix_address(name: &SocketAddrUnix) -> Option<Address> {
    let path = name.path()?;
    Some(Address::Unix(OsStr::from_bytes(path.to_bytes()).into()))
}

fn tcp_address(address: SocketAddr) -> Address {
    Address::Tcp {
        host: address.ip().to_string(),
        port: address.port(),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn bind_tcp(host: &str, port: u16) -> Result<Vec<Listener>> {
    let whole = Address::Tcp {
        host: host.to_owned(),
        port,
    };
    let named = |error| Error::io(format!("listen on {whole}"), error);
    let mut candidates: Vec<_> = (host, port).to_socket_addrs().map_err(named)?.collect();
    // A hosts file may name one twice.
    let mut seen = HashSet::new();
    candidates.retain(|candidate| seen.insert(*candidate));
    let listeners = bind_all(&candidates)?;
    if listeners.is_empty() {
        return Err(named(io::ErrorKind::AddrNotAvailable.into()));
    }
    Ok(listeners)
}

/// Listens on all that a name stands for, but for what this machine does not have, IPv6 say. One that
/// another program has fails: half of the clients would find that program there.
fn bind_all(candidates: &[SocketAddr]) -> Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut failures = Vec::new();
    for candidate in candidates {
        // Any free port is meant to be one port.
        if candidate.port() == 0 && !listeners.is_empty() {
            break;
        }
        let failed = |error| Error::io(format!("listen on tcp:{candidate}"), error);
        match tcp_listener(*candidate) {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(failed(error)),
            Err(error) => failures.push(failed(error)),
        }
    }
    if listeners.is_empty()
        && let Some(error) = failures.pop()
    {
        return Err(error);
    }
    for error in failures {
        tracing::warn!("{error}");
    }
    Ok(listeners)
}

/// Has small replies leave at once, and a client that vanished give its place back, after two minutes.
pub(super) fn tune_tcp(connection: impl AsFd) -> rustix::io::Result<()> {
    let connection = connection.as_fd();
    sockopt::set_tcp_nodelay(connection, true)?;
    sockopt::set_socket_keepalive(connection, true)?;
    sockopt::set_tcp_keepidle(connection, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(connection, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(connection, 6)
}

fn tcp_listener(address: SocketAddr) -> io::Result<Listener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = tcp_address(listener.local_addr()?);
    Ok(Listener {
        _file: None,
        fd: listener.into(),
        address,
    })
}

fn bind_unix(path: &Path) -> Result<Listener> {
    let (fd, file) = unix_socket::listen(path)?;
    Ok(Listener {
        _file: Some(file),
        fd,
        address: Address::Unix(path.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn unix(path: &Path) -> Result<Vec<Listener>> {
        Listener::bind(&Address::Unix(path.to_owned()))
    }

    #[test]
    fn a_unix_socket_goes_with_its_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let listeners = unix(&path).expect("a free path");
        UnixStream::connect(&path).expect("it listens");
        drop(listeners);
        assert!(!path.exists());
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
    fn an_inherited_socket_is_left_where_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("nbd.sock");
        let socket = UnixListener::bind(&path).expect("a free path");
        let inherited = InheritedSocket::new(socket.into()).expect("it listens");
        assert_eq!(*inherited.address(), Address::Unix(path.clone()));
        drop(inherited);
        assert!(path.exists());
        let socket = TcpListener::bind("127.0.0.1:0").expect("any port");
        let port = socket.local_addr().expect("bound").port();
        let inherited = InheritedSocket::new(socket.into()).expect("it listens");
        let expected = format!("tcp:127.0.0.1:{port}");
        assert_eq!(inherited.address().to_string(), expected);
    }

    #[test]
    fn what_does_not_listen_is_not_inherited() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let file = tempfile::tempfile().expect("a file");
        for fd in [OwnedFd::from(one), other.into(), file.into()] {
            let error = InheritedSocket::new(fd).err().expect("refused");
            assert!(error.is_usage(), "{error}");
        }
    }

    #[test]
    fn an_address_of_several_that_is_taken_fails_and_one_that_is_not_there_does_not() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("any port");
        let taken = taken.local_addr().expect("an address");
        let beside = SocketAddr::new("127.0.0.2".parse().expect("an address"), taken.port());
        for candidates in [[beside, taken], [taken, beside]] {
            let error = bind_all(&candidates).err().expect("taken").to_string();
            assert!(error.contains(&format!("listen on tcp:{taken}")), "{error}");
        }
        // For documentation only (RFC 5737).
        let nowhere = SocketAddr::new("192.0.2.1".parse().expect("an address"), taken.port());
        assert_eq!(bind_all(&[nowhere, beside]).expect("one of them").len(), 1);
        let error = bind_all(&[nowhere])
            .err()
            .expect("none of them")
            .to_string();
        assert!(error.contains("192.0.2.1"), "{error}");
    }

    #[test]
    fn a_tcp_client_that_vanished_is_found_out() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("any port");
        let address = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(address).expect("it listens");
        tune_tcp(&client).expect("set");
        assert!(sockopt::socket_keepalive(&client).expect("known"));
        let idle = sockopt::tcp_keepidle(&client).expect("known");
        let between = sockopt::tcp_keepintvl(&client).expect("known");
        let probes = sockopt::tcp_keepcnt(&client).expect("known");
        assert_eq!(idle + between * probes, Duration::from_secs(120));
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
