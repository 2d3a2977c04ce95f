//! Where a server's metrics go, as the user writes it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uzram::nbd::Address;

/// A place for metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sink {
    /// Served over HTTP at this address.
    Http(Address),
    /// Written to this file from time to time: `file:PATH`.
    File(PathBuf),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "use unix:PATH, tcp:HOST:PORT or file:PATH";
        match text.strip_prefix("file:") {
            Some("") => Err(format!("file: needs a path; {FORMS}")),
            Some(path) => Ok(Self::File(path.into())),
            // The port that NBD has by default is no place for metrics.
            None if text
                .strip_prefix("tcp:")
                .is_some_and(|rest| !has_port(rest)) =>
            {
                Err(format!("{text} has no port; {FORMS}"))
            }
            None if text.starts_with("unix:") || text.starts_with("tcp:") => match text.parse() {
                Ok(address) => Ok(Self::Http(address)),
                Err(uzram::Error::InvalidConfig { reason, .. }) => Err(reason),
                Err(other) => Err(other.to_string()),
            },
            None => Err(FORMS.to_owned()),
        }
    }
}

/// Whether `HOST:PORT` has a port.
fn has_port(text: &str) -> bool {
    text.contains(':') && !text.ends_with(']')
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) => address.fmt(f),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_shown() {
        for text in ["unix:/run/m.sock", "tcp:[::1]:9100", "file:/var/m.prom"] {
            assert_eq!(text.parse::<Sink>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "file:",
            "unix:",
            "tcp:9100",
            "tcp:",
            "tcp:host",
            "tcp:[::1]",
            "/var/m.prom",
        ] {
            assert!(bad.parse::<Sink>().is_err(), "{bad}");
        }
    }
}
