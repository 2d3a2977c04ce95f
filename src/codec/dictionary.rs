//! Dictionaries: what zstd is told of pages before it sees one.
//!
//! A device keeps each that it was ever given for as long as it lives: objects name theirs by its
//! number, wherever they lie. One that is given again is the same one. What compressing with one
//! takes, which may be forty times as much, is kept while it is in use. All of it is counted, in the
//! budget of the device's tables.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::zstd::{CDict, DDict, train};
use crate::error::{Error, Result};
use crate::memory::{DeviceMemory, FrameBudget};
use crate::size::human_size;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::units::{PAGE_SIZE, Page};

/// Most dictionaries of a device.
pub(super) const MAX_DICTIONARIES: usize = 32;

/// Most bytes of a dictionary.
pub const MAX_DICTIONARY_LEN: usize = 1 << 20;

/// Least bytes of a dictionary.
const MIN_DICTIONARY_LEN: usize = 256;

/// Which of a device's dictionaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DictionaryId(NonZeroU8);

impl DictionaryId {
    /// The dictionary of an index, if that is below the most there are.
    pub(crate) fn new(index: usize) -> Option<Self> {
        let number = u8::try_from(index + 1).ok()?;
        (index < MAX_DICTIONARIES).then_some(Self(NonZeroU8::new(number)?))
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0.get()) - 1
    }
}

/// What dictionaries take, of a budget that others share.
#[derive(Clone)]
struct Memory {
    budget: Arc<FrameBudget>,
    /// Page frames.
    taken: Arc<AtomicU64>,
}

impl Memory {
    /// Takes so many bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] (ENOSPC) if they do not fit.
    fn take(&self, bytes: usize) -> Result<Taken> {
        let frames = bytes.div_ceil(PAGE_SIZE) as u64;
        if !self.budget.try_take(frames) {
            return Err(Error::Refused {
                what: "dict",
                reason: "there is no room for it beside the device's tables \
                         (`DeviceConfig::table_limit`)"
                    .to_owned(),
                errno: Errno::NOSPC.into(),
            });
        }
        self.taken.fetch_add(frames, Relaxed);
        Ok(Taken {
            memory: self.clone(),
            frames,
        })
    }
}

/// Memory that is given back with this.
struct Taken {
    memory: Memory,
    frames: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.memory.taken.fetch_sub(self.frames, Relaxed);
        self.memory.budget.give_back(self.frames);
    }
}

/// What compressing with a dictionary at a level takes.
#[cfg_attr(not(feature = "zstd"), expect(dead_code, reason = "there is none"))]
pub(super) struct Prepared {
    pub(super) dictionary: CDict,
    _memory: Taken,
}

/// A dictionary, and what zstd has made of it.
pub(crate) struct Dictionary {
    bytes: Vec<u8>,
    #[cfg_attr(not(feature = "zstd"), expect(dead_code, reason = "there is none"))]
    decompressing: DDict,
    /// By level. A leaf, held for no longer than it takes to look.
    compressing: Mutex<BTreeMap<i8, Arc<Prepared>>>,
    memory: Taken,
}

impl Dictionary {
    fn new(bytes: &[u8], memory: &Memory) -> Result<Self> {
        let decompressing = decompressing(bytes)?;
        Ok(Self {
            memory: memory.take(bytes.len() + decompressing.sizeof())?,
            bytes: bytes.to_vec(),
            decompressing,
            compressing: Mutex::default(),
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    #[cfg(feature = "zstd")]
    pub(super) fn decompressing(&self) -> &DDict {
        &self.decompressing
    }

    fn prepare(&self, level: i8) -> Result<()> {
        if self.compressing(level).is_some() {
            return Ok(());
        }
        let made = CDict::try_create(&self.bytes, level.into());
        let made = made.ok_or_else(|| Error::io("prepare the dictionary", Errno::NOMEM))?;
        let prepared = Prepared {
            _memory: self.memory.memory.take(made.sizeof())?,
            dictionary: made,
        };
        self.compressing.lock().insert(level, Arc::new(prepared));
        Ok(())
    }

    /// What compressing at a level takes, once that is prepared.
    pub(super) fn compressing(&self, level: i8) -> Option<Arc<Prepared>> {
        self.compressing.lock().get(&level).map(Arc::clone)
    }
}

/// The dictionaries of a device.
pub(crate) struct Dictionaries {
    all: [OnceLock<Dictionary>; MAX_DICTIONARIES],
    /// Held while one is added.
    adding: Mutex<()>,
    memory: Memory,
    /// Where they are kept, if the device outlives the process.
    kept: Option<DeviceMemory>,
}

impl Default for Dictionaries {
    /// None, that may take any memory.
    fn default() -> Self {
        Self::new(Arc::new(FrameBudget::new(FrameBudget::UNLIMITED)), None)
    }
}

impl Dictionaries {
    /// None, whose memory is of `budget`, and which are kept in what outlives the process, if that is given.
    pub(crate) fn new(budget: Arc<FrameBudget>, kept: Option<DeviceMemory>) -> Self {
        Self {
            all: Default::default(),
            adding: Mutex::default(),
            memory: Memory {
                budget,
                taken: Arc::default(),
            },
            kept,
        }
    }

    /// Makes the dictionary of a place, and keeps it before anything refers to it.
    fn make(&self, index: usize, bytes: &[u8]) -> Result<()> {
        let dictionary = Dictionary::new(bytes, &self.memory)?;
        if let Some(kept) = &self.kept {
            let kept = kept.keep_dictionary(index, bytes);
            kept.map_err(|error| Error::io("keep the dictionary", error))?;
        }
        self.all[index].get_or_init(|| dictionary);
        Ok(())
    }

    /// Page frames that they take.
    pub(crate) fn frames(&self) -> u64 {
        self.memory.taken.load(Relaxed)
    }

    /// Forgets what compressing takes, but for the dictionaries at the levels that `is_used` says;
    /// who is compressing has it until then.
    pub(crate) fn forget_unused(&self, is_used: impl Fn(DictionaryId, i8) -> bool) {
        for id in (0..MAX_DICTIONARIES).filter_map(DictionaryId::new) {
            if let Some(dictionary) = self.get(id) {
                let mut compressing = dictionary.compressing.lock();
                compressing.retain(|&level, _| is_used(id, level));
            }
        }
    }

    /// The dictionary of a number, if it was given.
    pub(crate) fn get(&self, id: DictionaryId) -> Option<&Dictionary> {
        self.all[id.index()].get()
    }

    /// Makes what compressing with a dictionary at a level takes, which may take a large part of a
    /// second; until then no page is compressed so.
    ///
    /// # Errors
    /// [`Error::Io`] (ENOMEM); [`Error::Refused`] (ENOSPC) beyond the budget.
    pub(crate) fn prepare(&self, id: DictionaryId, level: i8) -> Result<()> {
        let there = self.get(id);
        there.map_or(Ok(()), |dictionary| dictionary.prepare(level))
    }

    /// Keeps a dictionary; returns its number.
    ///
    /// # Errors
    /// [`Error::Refused`]: EINVAL if it is none, ENOSPC if there are too many, or beyond the budget.
    pub(crate) fn add(&self, bytes: &[u8]) -> Result<DictionaryId> {
        let _one_at_a_time = self.adding.lock();
        let is_free_or_it = |place: &OnceLock<Dictionary>| {
            let there = place.get();
            there.is_none_or(|there| there.bytes == bytes)
        };
        let index = self.all.iter().position(is_free_or_it);
        let index = index.ok_or_else(too_many)?;
        if self.all[index].get().is_none() {
            self.make(index, bytes)?;
        }
        DictionaryId::new(index).ok_or_else(too_many)
    }

    /// Keeps a dictionary under the number that objects from elsewhere name it by.
    ///
    /// # Errors
    /// [`Error::Refused`]: EINVAL if it is none, EEXIST if another has that number, ENOSPC beyond the
    /// budget.
    pub(crate) fn add_as(&self, id: DictionaryId, bytes: &[u8]) -> Result<()> {
        let _one_at_a_time = self.adding.lock();
        let place = &self.all[id.index()];
        match place.get() {
            None => return self.make(id.index(), bytes),
            Some(there) if there.bytes == bytes => return Ok(()),
            Some(_) => {}
        }
        Err(Error::Refused {
            what: "dict",
            reason: format!("there is another dictionary number {}", id.index()),
            errno: Errno::EXIST.into(),
        })
    }
}

/// What decompressing with the dictionary `bytes` takes.
///
/// # Errors
/// [`Error::Refused`] (EINVAL) if it is none, or too short or too long.
fn decompressing(bytes: &[u8]) -> Result<DDict> {
    if !(MIN_DICTIONARY_LEN..=MAX_DICTIONARY_LEN).contains(&bytes.len()) {
        return Err(refused(format!(
            "a dictionary has from {} to {}, and this has {}",
            human_size(MIN_DICTIONARY_LEN as u64),
            human_size(MAX_DICTIONARY_LEN as u64),
            human_size(bytes.len() as u64)
        )));
    }
    let no_dictionary = "it is no dictionary of zstd's: `Device::train_dictionary` makes one";
    DDict::try_create(bytes).ok_or_else(|| refused(no_dictionary.to_owned()))
}

fn refused(reason: String) -> Error {
    Error::Refused {
        what: "dict",
        reason,
        errno: Errno::INVAL.into(),
    }
}

fn too_many() -> Error {
    Error::Refused {
        what: "dict",
        reason: format!("a device has at most {MAX_DICTIONARIES} dictionaries in its life"),
        errno: Errno::NOSPC.into(),
    }
}

/// A dictionary of at most `len` bytes for pages that are like these.
///
/// # Errors
/// [`Error::Refused`] (EINVAL) if these are too few, or too much the same.
pub fn train_dictionary(pages: &[Page], len: usize) -> Result<Vec<u8>> {
    let too_alike = |error: String| Error::Refused {
        what: "train-dict",
        reason: format!(
            "{} pages are too few to learn from, or too much the same: {error}",
            pages.len()
        ),
        errno: Errno::INVAL.into(),
    };
    let trained = train(pages, len).map_err(too_alike)?;
    // Of pages that are all the same zstd makes one that holds next to nothing.
    match decompressing(&trained) {
        Ok(_) => Ok(trained),
        Err(_) => Err(too_alike("nothing was learned".to_owned())),
    }
}
