//! The algorithms that pages are compressed with, as users name them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How pages are compressed.
///
/// All but LZ4 are in a build with the cargo feature of their name only; [`Algorithm::ALL`] are those that are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Algorithm {
    /// LZ4 block format, compressed fast.
    Lz4,
    /// LZ4 block format, compressed well: as fast as LZ4 to read.
    Lz4hc {
        /// Compression level, one of [`Algorithm::levels`], as in each of the others.
        level: i8,
    },
    /// Zstandard.
    Zstd {
        /// Compression level.
        level: i8,
    },
    /// Deflate without a header.
    Deflate {
        /// Compression level.
        level: i8,
    },
}

impl Algorithm {
    /// Every algorithm of this build, each at the level that its name alone means: a page is small, and
    /// for zstd speed is the point.
    pub const ALL: &[Self] = &[
        Self::Lz4,
        #[cfg(feature = "lz4hc")]
        Self::Lz4hc { level: 9 },
        #[cfg(feature = "zstd")]
        Self::Zstd { level: 1 },
        #[cfg(feature = "deflate")]
        Self::Deflate { level: 6 },
    ];

    /// Its name, without a level.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Lz4hc { .. } => "lz4hc",
            Self::Zstd { .. } => "zstd",
            Self::Deflate { .. } => "deflate",
        }
    }

    /// The levels that it has, if it has any.
    pub const fn levels(self) -> Option<RangeInclusive<i8>> {
        match self {
            Self::Lz4 => None,
            Self::Lz4hc { .. } => Some(3..=12),
            Self::Zstd { .. } => Some(-7..=22),
            Self::Deflate { .. } => Some(1..=12),
        }
    }

    /// Its level, if it has levels.
    pub const fn level(self) -> Option<i8> {
        match self {
            Self::Lz4 => None,
            Self::Lz4hc { level } | Self::Zstd { level } | Self::Deflate { level } => Some(level),
        }
    }

    /// The algorithm of this build called `name`, at the level that means.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.name() == name)
    }

    /// Checks that it is in this build, and has the level that it is at.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(crate) fn check(self) -> Result<()> {
        let name = self.name();
        let known = Self::from_name(name)
            .ok_or_else(|| wrong(format!("{name} is not {}", Self::forms())))?;
        match self.level() {
            Some(level) if known.with_level(level).is_none() => Err(wrong(self.no_such_level())),
            _ => Ok(()),
        }
    }

    /// That it has no level such as was asked for.
    pub(crate) fn no_such_level(self) -> String {
        let name = self.name();
        match self.levels() {
            Some(levels) => {
                let (from, to) = (levels.start(), levels.end());
                format!("{name} has levels from {from} to {to}")
            }
            None => format!("{name} has no levels"),
        }
    }

    /// The algorithm at another level; `None` if it has no such level.
    pub fn with_level(self, level: i8) -> Option<Self> {
        self.levels().filter(|levels| levels.contains(&level))?;
        Some(match self {
            Self::Lz4 => Self::Lz4,
            Self::Lz4hc { .. } => Self::Lz4hc { level },
            Self::Zstd { .. } => Self::Zstd { level },
            Self::Deflate { .. } => Self::Deflate { level },
        })
    }

    /// The algorithm at the level that its name alone means.
    pub(crate) fn at_default_level(self) -> Self {
        Self::from_name(self.name()).unwrap_or(self)
    }

    /// What can be given where an algorithm is read.
    pub(crate) fn forms() -> String {
        let names: Vec<_> = Self::ALL.iter().map(|known| known.name()).collect();
        match names.split_last() {
            Some((last, rest)) if !rest.is_empty() => {
                format!("{} or {last}, with or without a :LEVEL", rest.join(", "))
            }
            _ => names.concat(),
        }
    }
}

fn wrong(reason: String) -> Error {
    Error::InvalidConfig {
        option: "algorithm",
        reason,
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    /// Reads a name, as in `zstd`, or a name and a level, as in `zstd:3`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let algorithm = Self::from_name(name)
            .ok_or_else(|| wrong(format!("{text:?} is not {}", Self::forms())))?;
        let Some(level) = level else {
            return Ok(algorithm);
        };
        let level = level.parse().ok();
        let with_level = level.and_then(|level| algorithm.with_level(level));
        with_level.ok_or_else(|| wrong(format!("{text:?}: {}", algorithm.no_such_level())))
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level() {
            Some(level) if *self != self.at_default_level() => {
                write!(f, "{}:{level}", self.name())
            }
            _ => f.write_str(self.name()),
        }
    }
}

/// Which of a device's algorithms: 0 for new pages, the others, in this order, for recompression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u8);

impl Priority {
    /// That of new pages.
    pub const PRIMARY: Self = Self(0);
    /// How many there are (`ZRAM_MAX_COMPS`).
    pub const COUNT: usize = 4;
    /// Those for recompression.
    pub const SECONDARY: [Self; 3] = [Self(1), Self(2), Self(3)];

    /// Each of them, in order.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Self::PRIMARY].into_iter().chain(Self::SECONDARY)
    }

    /// The priority of a number, if that is below [`Priority::COUNT`].
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < Self::COUNT).then_some(Self(number))
    }

    /// Reads a number.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().and_then(Self::new)
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read() {
        for text in [
            "lz4",
            "lz4hc",
            "zstd",
            "deflate",
            "lz4hc:12",
            "zstd:-7",
            "deflate:1",
        ] {
            let parsed: Algorithm = text.parse().expect(text);
            assert_eq!(parsed.to_string(), text);
        }
        let same: Algorithm = "zstd:1".parse().expect("zstd");
        assert_eq!(same.to_string(), "zstd");
        for bad in [
            "",
            "lzo",
            "lz4:1",
            "zstd:",
            "zstd:23",
            "zstd:x",
            "lz4hc:13",
            "deflate:0",
        ] {
            assert!(bad.parse::<Algorithm>().is_err(), "{bad}");
        }
    }
}
