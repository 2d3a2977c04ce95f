//! How large the sectors are of a block device that is made of a served device.
//!
//! A partition table counts in sectors and does not say how large they are, so what is made with
//! the one size cannot be read with the other: a device remembers what it was attached with.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a block device can be read and written by, and what file systems may not go below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SectorSize {
    /// 512 bytes, as few as there are anywhere: whatever is on a disk can be used with that.
    Least,
    /// 4096 bytes, a page of the device: a smaller write would be a read and a write there.
    Page,
}

impl SectorSize {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Least, Self::Page];

    /// Bytes in a sector.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Least => 512,
            Self::Page => 4096,
        }
    }

    /// That of so many bytes, if there is one.
    pub fn of_bytes(bytes: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|size| size.bytes() == bytes)
    }
}

impl FromStr for SectorSize {
    type Err = Error;

    /// Reads `512` or `4096`.
    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|size| size.to_string() == text);
        named.ok_or_else(|| Error::InvalidConfig {
            option: "sector_size",
            reason: format!("{text:?} is not 512 or 4096"),
        })
    }
}

impl fmt::Display for SectorSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}
