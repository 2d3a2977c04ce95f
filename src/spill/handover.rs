//! How the stores of a device whose memory outlives the process outlive it, too: whoever keeps the memory keeps their
//! open files, and the device remembers what they are.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::address::StoreIndex;
use super::config::BackingKeep;

/// Where a backing comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    Made,
    Found,
    BlockDevice,
}

/// What another process goes on with a store by.
pub struct Handover<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) note: StoreNote,
}

/// What a store is, beside its open file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreNote {
    /// Its path's bytes, which need be no text.
    path: Vec<u8>,
    /// Of a backing.
    pub(super) backing: Option<(Kind, BackingKeep)>,
}

impl StoreNote {
    pub(crate) fn of_image(path: &Path) -> Self {
        Self::new(path, None)
    }

    pub(super) fn of_backing(path: &Path, kind: Kind, keep: BackingKeep) -> Self {
        Self::new(path, Some((kind, keep)))
    }

    fn new(path: &Path, backing: Option<(Kind, BackingKeep)>) -> Self {
        Self {
            path: path.as_os_str().as_bytes().to_vec(),
            backing,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        OsString::from_vec(self.path.clone()).into()
    }
}

/// A store that was found kept.
#[derive(Debug)]
pub(crate) struct KeptStore {
    pub(crate) file: OwnedFd,
    pub(crate) note: StoreNote,
}

impl StoreIndex {
    /// What the open file of the store in this place is kept as.
    pub(crate) fn kept_as(self) -> String {
        match self {
            Self::IMAGE => "image".to_owned(),
            Self(place) => format!("backing-{place}"),
        }
    }

    /// All places.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }
}
