//! The sockets that the server listens on, Unix and TCP. A Unix socket's file goes when its
//! listener does.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

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
    let bound = listener.local_addr()?;
    Ok(Listener {
        _file: None,
        fd: listener.into(),
        address: Address::Tcp {
            host: bound.ip().to_string(),
            port: bound.port(),
        },
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
    use std::os::unix::net::UnixStream;

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
