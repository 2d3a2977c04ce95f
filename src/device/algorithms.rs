//! A device's algorithms: one for new pages, and up to three for recompression, by priority.

use std::path::Path;
use std::sync::Arc;

use crossbeam::atomic::AtomicCell;
use rustix::io::Errno;

use super::Device;
use super::core::Core;
use crate::algorithm::{Algorithm, Priority};
use crate::codec::{
    self, Codec, Compression, Dictionaries, DictionaryId, MAX_DICTIONARY_LEN, NotAPage,
};
use crate::error::{Error, Result};
use crate::memory::FrameBudget;
use crate::named_file::read_named_file;
use crate::sync::Mutex;
use crate::units::Page;

/// The algorithms, and the dictionaries that they and the objects there are use. What is set holds
/// for what is compressed from then on.
pub(crate) struct Algorithms {
    /// By priority; the first is there.
    all: [AtomicCell<Option<Compression>>; Priority::COUNT],
    pub(crate) dictionaries: Dictionaries,
    /// Held while one is set.
    setting: Mutex<()>,
}

impl Algorithms {
    /// Algorithms whose dictionaries' memory is of `budget`.
    pub(super) fn new(
        primary: Algorithm,
        secondary: &[Algorithm],
        budget: Arc<FrameBudget>,
    ) -> Self {
        let all: [AtomicCell<Option<Compression>>; Priority::COUNT] = Default::default();
        let given = [&primary].into_iter().chain(secondary);
        for (cell, &algorithm) in all.iter().zip(given) {
            cell.store(Some(algorithm.into()));
        }
        Self {
            all,
            dictionaries: Dictionaries::new(budget),
            setting: Mutex::default(),
        }
    }

    pub(super) fn get(&self, priority: Priority) -> Option<Compression> {
        self.all[priority.index()].load()
    }

    fn set(&self, priority: Priority, algorithm: Algorithm) {
        let _one_at_a_time = self.setting.lock();
        self.put(priority, algorithm.into());
    }

    /// # Errors
    /// Those of [`Dictionaries::prepare`].
    fn set_with_dictionary(
        &self,
        priority: Priority,
        level: i8,
        dictionary: DictionaryId,
    ) -> Result<()> {
        let _one_at_a_time = self.setting.lock();
        self.dictionaries.prepare(dictionary, level)?;
        let how = Compression {
            algorithm: Algorithm::Zstd { level },
            dictionary: Some(dictionary),
        };
        self.put(priority, how);
        Ok(())
    }

    fn put(&self, priority: Priority, how: Compression) {
        self.all[priority.index()].store(Some(how));
        self.dictionaries.forget_unused(|id, level| {
            let algorithm = Algorithm::Zstd { level };
            let mut all = self.all.iter().filter_map(AtomicCell::load);
            all.any(|how| how.dictionary == Some(id) && how.algorithm == algorithm)
        });
    }

    /// Those that pages are recompressed with, in order.
    pub(super) fn secondary(&self) -> Vec<(Priority, Compression)> {
        let there = |priority| Some((priority, self.get(priority)?));
        Priority::SECONDARY.into_iter().filter_map(there).collect()
    }

    /// Compresses a new page; `None` if it is to be stored raw.
    pub(crate) fn compress(
        &self,
        page: &Page,
        out: &mut [u8],
        max_len: usize,
    ) -> Option<(Codec, usize)> {
        let how = self.get(Priority::PRIMARY)?;
        let dictionaries = &self.dictionaries;
        codec::compress(how, Priority::PRIMARY, dictionaries, page, out, max_len)
    }

    pub(crate) fn decompress(
        &self,
        codec: Codec,
        object: &[u8],
        page: &mut Page,
    ) -> Result<(), NotAPage> {
        codec::decompress(codec, object, &self.dictionaries, page)
    }
}

impl Core {
    /// Has recompression try again what it has tried: there is something new to try.
    fn forget_tried(&self) {
        for index in self.layout.shards() {
            let (mut at, end) = (0, self.layout.slots(index));
            while at < end {
                let mut shard = self.shard(index);
                at = shard.change_notes(at..end, |_, slot| slot.without_tried());
            }
        }
    }
}

impl Device {
    /// How new pages are compressed.
    pub fn algorithm(&self) -> Algorithm {
        let how = self.core.algorithms.get(Priority::PRIMARY);
        how.map_or(Algorithm::Lz4, |how| how.algorithm)
    }

    /// Compresses new pages like this from here on; those that are stored stay as they are.
    pub fn set_algorithm(&self, algorithm: Algorithm) {
        self.core.algorithms.set(Priority::PRIMARY, algorithm);
    }

    /// The algorithm of a priority, if there is one.
    pub fn algorithm_of(&self, priority: Priority) -> Option<Algorithm> {
        self.core.algorithms.get(priority).map(|how| how.algorithm)
    }

    /// Sets the algorithm of a priority, from here on. What no other made smaller is tried again
    /// with one for recompression.
    pub fn set_algorithm_of(&self, priority: Priority, algorithm: Algorithm) {
        self.core.algorithms.set(priority, algorithm);
        if priority != Priority::PRIMARY {
            self.core.forget_tried();
        }
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
            errno: Errno::INVAL,
        };
        let algorithm = self.algorithm_of(priority).ok_or_else(none)?;
        let algorithm = match level {
            None => algorithm.at_default_level(),
            Some(level) => algorithm.with_level(level).ok_or_else(|| {
                wrong(match algorithm.levels() {
                    Some(levels) => {
                        let (from, to) = (levels.start(), levels.end());
                        format!("{} has levels from {from} to {to}", algorithm.name())
                    }
                    None => format!("{} has no levels", algorithm.name()),
                })
            })?,
        };
        let dictionary = match dictionary {
            None => None,
            Some(_) if !matches!(algorithm, Algorithm::Zstd { .. }) => {
                return Err(wrong("only zstd takes a dictionary".to_owned()));
            }
            Some(path) => {
                let bytes = read_named_file(path, MAX_DICTIONARY_LEN)?;
                Some(self.core.algorithms.dictionaries.add(&bytes)?)
            }
        };
        let algorithms = &self.core.algorithms;
        match (algorithm, dictionary) {
            (Algorithm::Zstd { level }, Some(id)) => {
                algorithms.set_with_dictionary(priority, level, id)?;
            }
            _ => algorithms.set(priority, algorithm),
        }
        if priority != Priority::PRIMARY {
            self.core.forget_tried();
        }
        Ok(())
    }
}
