//! The backing, and how it is changed in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::Device;
use crate::config::NO_BACKING;
use crate::error::{Error, Result};
use crate::maintain::{Command, NewBacking};
use crate::spill::{Backing, BackingConfig, BackingKeep, Opener, RecordFormat, segments_of};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel;

/// Whether a device may spill or be saved to a path, or else why not.
pub type PlaceCheck = dyn Fn(&Path) -> Result<()> + Send + Sync;

/// What a device knows of the backings that it is given.
pub(super) struct Backings {
    /// What becomes of the first, and of those that take its place.
    keep: BackingKeep,
    /// What is asked before a path comes to be used.
    place_check: OnceLock<Box<PlaceCheck>>,
    opener: Opener,
}

impl Backings {
    /// Of a device that begins with one, or without.
    pub(super) fn new(first: Option<&BackingConfig>, opener: Opener) -> Self {
        Self {
            keep: first.map_or_else(BackingKeep::default, |first| first.keep),
            place_check: OnceLock::new(),
            opener,
        }
    }
}

impl Device {
    /// Has `check` decide over each path that the device is told to spill or to be saved to from here on:
    /// the device does not know what lies on it. There can be one for the life of a device.
    pub fn check_places(&self, check: Box<PlaceCheck>) {
        // A second one changes nothing.
        let _ = self.backings.place_check.set(check);
    }

    pub(super) fn check_place(&self, path: &Path) -> Result<()> {
        self.backings
            .place_check
            .get()
            .map_or(Ok(()), |check| check(path))
    }

    /// The backing's path, if there is one.
    pub fn backing_path(&self) -> Option<PathBuf> {
        let backing = self.engine.spilled.stores.current();
        backing.map(|backing| backing.path().to_owned())
    }

    /// Whether what is spilled is encrypted: fixed when the device is made.
    pub fn encrypts(&self) -> bool {
        matches!(self.engine.spilled.formats.spilled, RecordFormat::Sealed(_))
    }

    /// What becomes of the backing at the end, and of one that takes its place by way of an
    /// attribute.
    pub fn backing_keep(&self) -> BackingKeep {
        self.backings.keep
    }

    /// Spills to a backing from here on, or with `None` to nothing. What an earlier one holds is
    /// moved to the new one, or to memory, before this returns; the device is in use meanwhile.
    ///
    /// # Errors
    /// Those of [`Device::new`] and [`Device::noting`] about the backing, and of its [`PlaceCheck`];
    /// [`Error::Refused`] (EBUSY) if there is no room
    /// for what the earlier one holds, or it cannot be read: then that serves on.
    pub fn set_backing(&self, config: Option<&BackingConfig>) -> Result<()> {
        match config {
            Some(_) if self.engine.origin.destages() => Err(Error::Refused {
                what: "backing_dev",
                reason: NO_BACKING.to_owned(),
                errno: Errno::INVAL.into(),
            }),
            Some(config) if config.encrypt != self.encrypts() => Err(Error::InvalidConfig {
                option: "backing_encrypt",
                reason: "is fixed when the device is made".to_owned(),
            }),
            Some(config) => {
                self.check_place(&config.path)?;
                let backing = self.backings.opener.open(config)?;
                self.replace_backing(Some(backing), config.size)
            }
            None => self.replace_backing(None, None),
        }
    }

    pub(super) fn replace_backing(
        &self,
        backing: Option<Arc<dyn Backing>>,
        size: Option<u64>,
    ) -> Result<()> {
        let capacity = match &backing {
            Some(backing) => segments_of(&**backing, size)?,
            None => 0,
        };
        let (done, answer) = channel::bounded(1);
        self.command(Command::Replace {
            backing: backing.map(|backing| NewBacking {
                backing,
                capacity,
                size,
            }),
            done,
        });
        let stopping = || Err("the device is stopping".to_owned());
        let replaced = answer.recv().unwrap_or_else(|_| stopping());
        replaced.map_err(|reason| Error::Refused {
            what: "backing_dev",
            reason,
            errno: Errno::BUSY.into(),
        })
    }

    /// Most bytes of the backing that may be used, if there is a bound.
    pub fn backing_size(&self) -> Option<u64> {
        Some(self.engine.spilled.backing_size.load(Relaxed)).filter(|&size| size != 0)
    }

    /// Sets how many bytes of the backing may be used; with `None`, all it has.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] below two segments; [`Error::Refused`] (EBUSY) if there is no
    /// backing, another is still leaving, or more of it is in use.
    pub fn set_backing_size(&self, size: Option<u64>) -> Result<()> {
        let (done, answer) = channel::bounded(1);
        self.command(Command::Resize { size, done });
        let resized = answer.recv().unwrap_or_else(|_| {
            Err(Error::Refused {
                what: "backing_size",
                reason: "the device is stopping".to_owned(),
                errno: Errno::BUSY.into(),
            })
        });
        resized.and_then(|()| self.engine.remember())
    }
}
