//! The sockets that the server listens on, Unix and TCP. A Unix socket's file goes when its
//! listener does, unless the socket is somebody else's who has handed it to us.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::ioctl_fionbio;
use rustix::net::sockopt::socket_acceptconn;
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

    /// Where it listens.
    pub fn address(&self) -> &Address {
        self.0.address()
    }

    pub(super) fn into_listener(self) -> Listener {
        self.0
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
        let socket = TcpListener::bind("[::1]:0").expect("any port");
        let port = socket.local_addr().expect("bound").port();
        let inherited = InheritedSocket::new(socket.into()).expect("it listens");
        assert_eq!(inherited.address().to_string(), format!("tcp:[::1]:{port}"));
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
