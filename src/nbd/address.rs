//! Where a server listens, as the user writes it: `unix:PATH` or `tcp:[HOST[:PORT]]`.

use std::fmt;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The port of NBD (IANA), if none is named.
const PORT: u16 = 10809;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// `unix:PATH`, a Unix stream socket that only its owner may use.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`; an IPv6 address stands in brackets; port 0 is any free one. Without a port it is 10809, and
    /// without a host 127.0.0.1.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port; 0 for any.
        port: u16,
    },
}

impl Address {
    /// Whether other machines can connect to it. A name counts as what it resolves to now; one
    /// that does not resolve cannot be listened on either.
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Unix(_) => false,
            Self::Tcp { host, port } => (host.as_str(), *port)
                .to_socket_addrs()
                .is_ok_and(|mut all| all.any(|one| !one.ip().to_canonical().is_loopback())),
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_unix(path);
        }
        if let Some(rest) = text.strip_prefix("tcp:") {
            return parse_tcp(rest);
        }
        Err(invalid(format!(
            "{text:?} is neither unix:PATH nor tcp:HOST:PORT"
        )))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

fn parse_unix(path: &str) -> Result<Address> {
    if path.is_empty() {
        return Err(invalid("unix: needs the path of a socket".to_owned()));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn parse_tcp(text: &str) -> Result<Address> {
    let shape = || invalid(format!("tcp:{text} is not tcp:HOST:PORT"));
    if text.is_empty() {
        return Ok(Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: PORT,
        });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => {
            let port = port
                .parse()
                .map_err(|_| invalid(format!("{port:?} is not a port, 0 to 65535")))?;
            (host, port)
        }
        _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(invalid(format!(
                "tcp:{text} names no host; tcp:127.0.0.1:{text} is this machine only"
            )));
        }
        _ => (text, PORT),
    };
    let host = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').ok_or_else(shape)?,
        None if host.contains(':') => {
            return Err(invalid(format!(
                "an IPv6 address needs brackets: tcp:[{host}]:{port}"
            )));
        }
        None => host,
    };
    if host.is_empty() {
        return Err(invalid(format!(
            "tcp:{text} names no host; tcp:127.0.0.1:{port} is this machine only"
        )));
    }
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}

fn invalid(reason: String) -> Error {
    Error::InvalidConfig {
        option: "addresses",
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in [
            "unix:/run/uzram/a/nbd.sock",
            "unix:relative",
            "tcp:127.0.0.1:10809",
            "tcp:localhost:0",
            "tcp:[::1]:10809",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for (text, full) in [
            ("tcp:", "tcp:127.0.0.1:10809"),
            ("tcp:storage", "tcp:storage:10809"),
            ("tcp:[::1]", "tcp:[::1]:10809"),
        ] {
            assert_eq!(text.parse::<Address>().expect("valid").to_string(), full);
        }
        assert_eq!(
            "tcp:[::1]:7".parse::<Address>().expect("valid"),
            Address::Tcp {
                host: "::1".to_owned(),
                port: 7
            }
        );
    }

    #[test]
    fn only_the_loopback_and_sockets_are_this_machine_alone() {
        let exposed = |text: &str| text.parse::<Address>().expect(text).is_exposed();
        for text in [
            "unix:/x",
            "tcp:127.0.0.1:1",
            "tcp:127.1.2.3:1",
            "tcp:[::1]:1",
            "tcp:[::ffff:127.0.0.1]:1",
            "tcp:localhost:1",
        ] {
            assert!(!exposed(text), "{text}");
        }
        for text in ["tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.0.2.1:1"] {
            assert!(exposed(text), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for text in [
            "",
            "unix:",
            "tcp::10809",
            "tcp:10809",
            "tcp:[]",
            "tcp:[::1",
            "tcp:::1",
            "tcp:[]:1",
            "tcp:[::1:1",
            "tcp:::1:10809",
            "tcp:host:65536",
            "tcp:host:port",
            "/run/socket",
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(error.is_usage(), "{text}: {error}");
            assert!(error.to_string().starts_with("addresses: "), "{error}");
        }
    }
}
