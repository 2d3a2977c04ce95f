//! What a verb is about: a device by its name, or by where it is.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::base::name::Name;

/// A device, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Name(Name),
    /// Its mount point, its block device, or its FUSE directory.
    Path(PathBuf),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A name has no slash.
        if text.contains('/') || matches!(text, "." | "..") {
            let path: Result<_, Infallible> = text.parse();
            return path.map(Self::Path).map_err(|never| match never {});
        }
        text.parse().map(Self::Name)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}
