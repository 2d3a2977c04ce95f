//! Who is at the other end of a connection, for the log.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::getpeername;

/// A client, as the kernel knows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    Unix {
        pid: i32,
        uid: u32,
    },
    /// It has gone, or is of another kind.
    Unknown,
}

impl Peer {
    /// Who is connected to `socket`.
    pub(super) fn of(socket: impl AsFd) -> Self {
        let address = getpeername(&socket).ok().flatten();
        match address.map(SocketAddr::try_from) {
            Some(Ok(address)) => Self::Tcp(address),
            // The number of a process of another PID namespace is 0.
            Some(Err(_)) => {
                getsockopt(&socket, PeerCredentials).map_or(Self::Unknown, |who| Self::Unix {
                    pid: who.pid(),
                    uid: who.uid(),
                })
            }
            None => Self::Unknown,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix { pid, uid } => write!(f, "process {pid} of user {uid}"),
            Self::Unknown => f.write_str("a client that has gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_client_is_named_by_what_leads_to_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("any port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("it listens");
        let (accepted, from) = listener.accept().expect("a client");
        assert_eq!(Peer::of(&accepted).to_string(), from.to_string());
        drop(client);
        let (one, _other) = UnixStream::pair().expect("a pair");
        let expected = format!("process {} of user", std::process::id());
        let shown = Peer::of(&one).to_string();
        assert!(shown.starts_with(&expected), "{shown}");
    }
}
