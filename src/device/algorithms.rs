//! The algorithms of a device, set while it is in use.

use std::path::Path;

use rustix::io::Errno;

use super::Device;
use crate::algorithm::{Algorithm, Priority};
use crate::codec::MAX_DICTIONARY_LEN;
use crate::error::{Error, Result};
use crate::named_file::read_named_file;

impl Device {
    /// How new pages are compressed.
    pub fn algorithm(&self) -> Algorithm {
        let how = self.engine.codecs.get(Priority::PRIMARY);
        how.map_or(Algorithm::Lz4, |how| how.algorithm)
    }

    /// Compresses new pages like this from here on; those that are stored stay as they are.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if this build leaves the algorithm out, or it has no such level.
    pub fn set_algorithm(&self, algorithm: Algorithm) -> Result<()> {
        self.set_algorithm_of(Priority::PRIMARY, algorithm)
    }

    /// The algorithm of a priority, if there is one.
    pub fn algorithm_of(&self, priority: Priority) -> Option<Algorithm> {
        self.engine.codecs.get(priority).map(|how| how.algorithm)
    }

    /// Sets the algorithm of a priority, from here on. What no other made smaller is tried again
    /// with one for recompression.
    ///
    /// # Errors
    /// Those of [`Device::set_algorithm`].
    pub fn set_algorithm_of(&self, priority: Priority, algorithm: Algorithm) -> Result<()> {
        algorithm.check()?;
        self.engine.codecs.set(priority, algorithm);
        if priority != Priority::PRIMARY {
            self.forget_tried();
        }
        self.engine.remember()
    }

    /// Sets the level and the dictionary of the algorithm of a priority; those that are not given
    /// become what they are by default.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if it has no such level, or the dictionary is not for zstd;
    /// [`Error::Refused`], EINVAL if there is no algorithm or the dictionary is none, ENOSPC after 32
    /// of them, or if it has no room beside the tables; [`Error::Io`] if it cannot be read, or there is no memory for it.
    pub fn set_algorithm_params(
        &self,
        priority: Priority,
        level: Option<i8>,
        dictionary: Option<&Path>,
    ) -> Result<()> {
        let wrong = |reason: String| Error::InvalidConfig {
            option: "algorithm_params",
            reason,
        };
        let none = || Error::Refused {
            what: "algorithm_params",
            reason: format!("there is no algorithm of priority {}", priority.number()),
            errno: Errno::INVAL.into(),
        };
        let algorithm = self.algorithm_of(priority).ok_or_else(none)?;
        let algorithm = match level {
            None => algorithm.at_default_level(),
            Some(level) => algorithm
                .with_level(level)
                .ok_or_else(|| wrong(algorithm.no_such_level()))?,
        };
        let dictionary = match dictionary {
            None => None,
            Some(_) if !matches!(algorithm, Algorithm::Zstd { .. }) => {
                return Err(wrong("only zstd takes a dictionary".to_owned()));
            }
            Some(path) => {
                let bytes = read_named_file(path, MAX_DICTIONARY_LEN)?;
                Some(self.engine.codecs.dictionaries.add(&bytes)?)
            }
        };
        let codecs = &self.engine.codecs;
        match (algorithm, dictionary) {
            (Algorithm::Zstd { level }, Some(id)) => {
                codecs.set_with_dictionary(priority, level, id)?;
            }
            _ => codecs.set(priority, algorithm),
        }
        if priority != Priority::PRIMARY {
            self.forget_tried();
        }
        self.engine.remember()
    }

    /// Has recompression try again what it has tried: there is something new to try.
    fn forget_tried(&self) {
        let shards = &self.engine.shards;
        shards.change_notes(|_, _, slot| slot.without_tried());
    }
}
