//! The name of a device: its NBD export, and its directory in RUNDIR.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that is safe as one path component and on one line of output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Name(String);

impl Name {
    /// Most bytes in a name: leaves room for the rest of a Unix socket's path.
    pub(crate) const MAX_BYTES: usize = 64;

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a device made for `mountpoint`, an absolute path, as people read it: `/mnt/scratch` gives
    /// `mnt-scratch`. Another path may give the same.
    pub(crate) fn readable(mountpoint: &Path) -> Self {
        let bytes = mountpoint.as_os_str().as_bytes();
        let mut text: String = bytes
            .iter()
            .map(|&b| match b {
                b'/' => '-',
                _ if b.is_ascii_alphanumeric() || b"._-".contains(&b) => char::from(b),
                _ => '_',
            })
            .collect();
        text = text.trim_matches('-').to_owned();
        if text.is_empty() || text.bytes().all(|b| b == b'.') {
            text = "root".to_owned();
        }
        // The text is ASCII, so any index is a character border.
        text.truncate(Self::MAX_BYTES);
        Self(text)
    }

    /// As [`Name::readable`], but no other path gives the same: where one could, it ends in a hash of the path.
    pub(crate) fn distinct(mountpoint: &Path) -> Self {
        let bytes = mountpoint.as_os_str().as_bytes();
        let Self(mut text) = Self::readable(mountpoint);
        let is_ambiguous = bytes
            .iter()
            .any(|&b| !(b == b'/' || b.is_ascii_alphanumeric() || b"._".contains(&b)));
        if is_ambiguous || bytes.len() > Self::MAX_BYTES {
            let hash = fnv1a(bytes);
            let hash = format!("-{:08x}", (hash >> 32) ^ (hash & 0xffff_ffff));
            text.truncate(Self::MAX_BYTES - hash.len());
            text.push_str(&hash);
        }
        Self(text)
    }
}

/// FNV-1a: the name must stay the same from run to run, which std's hasher does not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            Err("a name cannot be empty".to_owned())
        } else if text.contains('/') {
            Err("a name cannot contain '/'".to_owned())
        } else if text == "." || text == ".." {
            Err("a name cannot be '.' or '..'".to_owned())
        } else if text.len() > Self::MAX_BYTES {
            Err(format!(
                "a name has at most {} bytes, this one has {}",
                Self::MAX_BYTES,
                text.len()
            ))
        } else if text.chars().any(char::is_control) {
            Err("a name cannot contain control characters".to_owned())
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_name() {
        for good in ["a", "scratch", "a b", "vm-1.disk", "héé", "..."] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", "a/b", "/", "a\nb", "\u{7f}", &long] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mountpoints_give_valid_and_distinct_names() {
        let readable = |path: &str| Name::readable(Path::new(path)).0;
        assert_eq!(readable("/mnt/my-disk"), "mnt-my-disk");
        assert_eq!(readable("/mnt/a b"), "mnt-a_b");
        let name = |path: &str| Name::distinct(Path::new(path)).0;
        assert_eq!(name("/mnt/scratch"), "mnt-scratch");
        assert_eq!(name("/"), "root");
        assert_eq!(name("/mnt/v1.0_b"), "mnt-v1.0_b");
        assert!(name("/mnt/a b\n").starts_with("mnt-a_b_-"));
        let alike = ["/mnt/x/y", "/mnt/x-y", "/mnt-x/y", "/mnt-x-y"].map(name);
        let distinct: std::collections::HashSet<_> = alike.iter().collect();
        assert_eq!(distinct.len(), alike.len(), "{alike:?}");
        assert_ne!(name("/mnt/a b"), name("/mnt/a_b"));
        let (a, b) = ("/a".repeat(80), "/a".repeat(81));
        assert_ne!(name(&a), name(&b));
        for path in [a.as_str(), &b, "/..", "/mnt/\u{e9}"] {
            assert!(name(path).parse::<Name>().is_ok(), "{path}");
        }
    }
}
