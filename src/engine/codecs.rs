//! A device's algorithms: one for new pages, and up to three for recompression, by priority.

use std::sync::Arc;

use crossbeam::atomic::AtomicCell;

use crate::algorithm::{Algorithm, Priority};
use crate::codec::{self, Codec, Compression, Dictionaries, DictionaryId, NotAPage};
use crate::error::{Error, Result};
use crate::memory::{DeviceMemory, FrameBudget};
use crate::sync::Mutex;
use crate::units::{Page, PageIndex};

/// The algorithms, and the dictionaries that they and the objects there are use. What is set holds
/// for what is compressed from then on.
pub(crate) struct Codecs {
    /// By priority; the first is there.
    all: [AtomicCell<Option<Compression>>; Priority::COUNT],
    pub(crate) dictionaries: Dictionaries,
    /// Held while one is set.
    setting: Mutex<()>,
}

impl Codecs {
    /// Algorithms whose dictionaries' memory is of `budget`, and which are kept in `memory`, if that outlives the process.
    pub(crate) fn new(
        primary: Algorithm,
        secondary: &[Algorithm],
        budget: Arc<FrameBudget>,
        memory: Option<DeviceMemory>,
    ) -> Self {
        let all: [AtomicCell<Option<Compression>>; Priority::COUNT] = Default::default();
        let given = [&primary].into_iter().chain(secondary);
        for (cell, &algorithm) in all.iter().zip(given) {
            cell.store(Some(algorithm.into()));
        }
        Self {
            all,
            dictionaries: Dictionaries::new(budget, memory),
            setting: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, priority: Priority) -> Option<Compression> {
        self.all[priority.index()].load()
    }

    pub(crate) fn set(&self, priority: Priority, algorithm: Algorithm) {
        let _one_at_a_time = self.setting.lock();
        self.put(priority, algorithm.into());
    }

    /// Sets zstd at a level with a dictionary.
    ///
    /// # Errors
    /// Those of [`Dictionaries::prepare`].
    pub(crate) fn set_with_dictionary(
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
    pub(crate) fn secondary(&self) -> Vec<(Priority, Compression)> {
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
    ) -> std::result::Result<(), NotAPage> {
        codec::decompress(codec, object, &self.dictionaries, page)
    }

    /// Makes a page of its object.
    ///
    /// # Errors
    /// [`Error::Corrupt`] about page `index`.
    pub(crate) fn unpack(
        &self,
        index: PageIndex,
        codec: Codec,
        object: &[u8],
        page: &mut Page,
    ) -> Result<()> {
        self.decompress(codec, object, page)
            .map_err(|_| Error::Corrupt { page: index.0 })
    }
}
