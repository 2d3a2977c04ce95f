//! A device whose memory outlives the process: what it remembers there beside its pages, and how the next process
//! finds it.
//!
//! Slots say where pages are, and all that follows from that is derived of them. What does not is remembered: a
//! record of settings and ages, written whole whenever one of them has changed. A setting is remembered before
//! whoever set it is told so.

use std::io;

use serde::{Deserialize, Serialize};

use super::Engine;
use super::ages::AgesRecord;
use super::layout::Layout;
use super::quota::QuotaRecord;
use crate::algorithm::{Algorithm, Priority};
use crate::codec::DictionaryId;
use crate::config::DeviceConfig;
use crate::error::{Error, Result};
use crate::memory::{DeviceMemory, FrameBudget, MemorySource, Shape};
use crate::origin::Origin;
use crate::pool::PoolKind;
use crate::spill::{Imported, KeptStores, RecordAddress, StoreIndex, StoresRecord, UsedSegments};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::units::{MAX_DEVICE_BYTES, PAGE_SHIFT};

/// Pages of the largest device.
const MAX_PAGES: u64 = MAX_DEVICE_BYTES >> PAGE_SHIFT;

/// What a device remembers of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pages: u64,
    /// Page frames, if there is a limit.
    mem_limit: Option<u64>,
    sector_bytes: u32,
    backing_size: u64,
    /// By priority.
    algorithms: Vec<Option<AlgorithmRecord>>,
    quota: QuotaRecord,
    ages: AgesRecord,
    stores: StoresRecord,
    /// Whether slots are being pointed at an image.
    imports: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct AlgorithmRecord {
    name: String,
    dictionary: Option<usize>,
}

/// The memory of a device, if it outlives the process.
#[derive(Default)]
pub(super) struct Memory {
    memory: Option<DeviceMemory>,
    /// Whether something has changed that is not remembered.
    is_stale: AtomicBool,
    /// Whether slots are being pointed at an image: what they say so far is none of the device's.
    imports: AtomicBool,
    /// What was remembered last. Held while something else is.
    last: Mutex<Vec<u8>>,
}

impl Memory {
    pub(super) fn new(memory: Option<DeviceMemory>) -> Self {
        Self {
            memory,
            ..Self::default()
        }
    }

    pub(super) fn get(&self) -> Option<&DeviceMemory> {
        self.memory.as_ref()
    }

    pub(super) fn source(&self) -> MemorySource {
        match &self.memory {
            Some(memory) => MemorySource::Device(memory.clone()),
            None => MemorySource::Process,
        }
    }

    pub(super) fn outlives_process(&self) -> bool {
        self.memory.is_some()
    }

    /// The shape of the device that is in it.
    pub(super) fn shape(&self) -> Option<Shape> {
        self.memory.as_ref().and_then(DeviceMemory::shape)
    }
}

/// What was found of the spill.
#[derive(Default)]
pub(crate) struct Adopted {
    pub(crate) used: UsedSegments,
    /// The records that slots refer to, by store.
    pub(crate) records: [Imported; StoreIndex::COUNT],
    pub(crate) stores: KeptStores,
    /// Whether the device is to be emptied: a death came while it was being made one of an image.
    pub(crate) is_void: bool,
}

/// The shape of a device, by which its memory is cut.
pub(super) fn shape_of(config: &DeviceConfig, origin: &Origin, layout: &Layout) -> Shape {
    let encrypts = config
        .backing
        .as_ref()
        .is_some_and(|backing| backing.encrypt);
    Shape {
        capacity: layout.capacity(),
        shards: layout.shards().count() as u32,
        pool: pool_number(config.pool),
        destages: u32::from(origin.destages()),
        encrypts: u32::from(encrypts),
    }
}

fn pool_number(pool: PoolKind) -> u32 {
    match pool {
        PoolKind::Zsmalloc => 0,
        PoolKind::Zbud => 1,
        PoolKind::Z3fold => 2,
    }
}

/// Whether a device of a shape is one of `config` as far as its memory goes; returns its pool.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`]: it is not, or of no shape that there is.
pub(super) fn check_shape(
    shape: Shape,
    config: &DeviceConfig,
    origin: &Origin,
) -> io::Result<PoolKind> {
    let wrong = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let is_it = |pool: &PoolKind| pool_number(*pool) == shape.pool;
    let pool = PoolKind::ALL.into_iter().find(is_it);
    let encrypts = config
        .backing
        .as_ref()
        .is_some_and(|backing| backing.encrypt);
    if u32::from(origin.destages()) != shape.destages {
        return Err(wrong("it is not of the same `DeviceConfig::origin`"));
    }
    if u32::from(encrypts) != shape.encrypts {
        return Err(wrong("it is not of the same `BackingConfig::encrypt`"));
    }
    let is_possible = shape.shards > 0 && shape.capacity > 0 && shape.capacity <= MAX_PAGES;
    match pool {
        Some(pool) if is_possible => Ok(pool),
        _ => Err(wrong("its shape is no device's")),
    }
}

fn unusable(error: io::Error) -> Error {
    Error::io("adopt the device that is in memory", error)
}

fn damaged() -> Error {
    unusable(io::Error::new(
        io::ErrorKind::InvalidData,
        "its settings are damaged",
    ))
}

impl Engine {
    /// Says that the device, which is new, is in its memory from here on, if that outlives the process.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn begin_memory(&self, config: &DeviceConfig) -> Result<()> {
        let Some(memory) = &self.memory.memory else {
            return Ok(());
        };
        self.remember()?;
        let shape = shape_of(config, &self.origin, &self.shards.layout);
        memory
            .begin(shape)
            .map_err(|error| Error::io("write to the device's memory", error))
    }

    /// Remembers settings and ages as they are, if the device's memory outlives the process.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remember(&self) -> Result<()> {
        let Some(memory) = &self.memory.memory else {
            return Ok(());
        };
        let mut last = self.memory.last.lock();
        self.memory.is_stale.store(false, Relaxed);
        let record = serde_json::to_vec(&self.record()).expect("numbers and strings");
        if record != *last {
            memory
                .remember(&record)
                .map_err(|error| Error::io("write to the device's memory", error))?;
            *last = record;
        }
        Ok(())
    }

    /// Notes that something has changed that is to be remembered soon, by the writeback thread.
    pub(crate) fn note_changes(&self) {
        if self.memory.outlives_process() {
            self.memory.is_stale.store(true, Relaxed);
            self.waker.wake();
        }
    }

    /// Remembers what has changed that nobody waits for.
    pub(crate) fn remember_changes(&self) {
        if self.memory.outlives_process()
            && (self.ages.take_change() || self.memory.is_stale.load(Relaxed))
            && let Err(error) = self.remember()
            && let Some(end) = self.log_limit.admit()
        {
            tracing::warn!("{error}{end}");
        }
    }

    fn record(&self) -> Record {
        let algorithm = |priority| {
            let how = self.codecs.get(priority)?;
            Some(AlgorithmRecord {
                name: how.algorithm.to_string(),
                dictionary: how.dictionary.map(DictionaryId::index),
            })
        };
        let limit = self.limit.budget.limit();
        Record {
            pages: self.shards.layout.pages(),
            mem_limit: (limit != FrameBudget::UNLIMITED).then_some(limit),
            sector_bytes: self.sector_bytes.load(Relaxed),
            backing_size: self.spilled.backing_size.load(Relaxed),
            algorithms: Priority::all().map(algorithm).collect(),
            quota: self.spilled.quota.record(),
            ages: self.ages.record(),
            stores: self.spilled.stores.record(),
            imports: self.memory.imports.load(Relaxed),
        }
    }

    /// Makes the device what was found in its memory; returns what was found of the spill.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel's, or that the memory is damaged.
    pub(super) fn adopt(&self) -> Result<Adopted> {
        let Some(memory) = &self.memory.memory else {
            return Ok(Adopted::default());
        };
        let record = memory.remembered().map_err(unusable)?.ok_or_else(damaged)?;
        let record: Record = serde_json::from_slice(&record).map_err(|_| damaged())?;
        self.adopt_dictionaries(memory)?;
        let (stores, is_void) = self.adopt_settings(record)?;
        Ok(Adopted {
            stores,
            is_void,
            ..self.adopt_pages().map_err(unusable)?
        })
    }

    /// Says whether slots are being pointed at an image.
    ///
    /// # Errors
    /// Those of [`Engine::remember`].
    pub(crate) fn set_importing(&self, imports: bool) -> Result<()> {
        self.memory.imports.store(imports, Relaxed);
        self.remember()
    }

    fn adopt_dictionaries(&self, memory: &DeviceMemory) -> Result<()> {
        for (index, id) in (0..).map_while(|index| Some((index, DictionaryId::new(index)?))) {
            if let Some(bytes) = memory.dictionary(index).map_err(unusable)? {
                self.codecs.dictionaries.add_as(id, &bytes)?;
            }
        }
        Ok(())
    }

    /// Returns the stores there were, and whether the device is to be emptied.
    fn adopt_settings(&self, record: Record) -> Result<(KeptStores, bool)> {
        if record.pages > self.shards.layout.capacity() {
            return Err(damaged());
        }
        self.shards.layout.resize(record.pages);
        let limit = record.mem_limit.unwrap_or(FrameBudget::UNLIMITED);
        self.limit.budget.set_limit(limit);
        self.sector_bytes.store(record.sector_bytes, Relaxed);
        self.spilled
            .backing_size
            .store(record.backing_size, Relaxed);
        for (priority, algorithm) in Priority::all().zip(record.algorithms) {
            let Some(AlgorithmRecord { name, dictionary }) = algorithm else {
                continue;
            };
            let algorithm: Algorithm = name.parse()?;
            match (algorithm, dictionary.and_then(DictionaryId::new)) {
                (Algorithm::Zstd { level }, Some(id)) => {
                    self.codecs.set_with_dictionary(priority, level, id)?;
                }
                _ => self.codecs.set(priority, algorithm),
            }
        }
        self.spilled.quota.adopt(record.quota);
        self.ages.adopt(&record.ages);
        let stores = self.spilled.stores.take_kept(record.stores);
        Ok((stores, record.imports))
    }

    fn adopt_pages(&self) -> io::Result<Adopted> {
        let used = self.spilled.segments.adopt()?;
        let ranks = self.ages.ranks();
        let mut records: Vec<(RecordAddress, u32)> = Vec::new();
        for index in self.shards.layout.shards() {
            self.shards.lock(index).adopt(ranks, &mut |at, len| {
                let bytes = self.spilled.formats.at(at).record_len(len);
                records.push((at, bytes as u32));
            })?;
        }
        records.sort_unstable_by_key(|&(at, _)| at);
        let mut adopted = Adopted {
            used,
            ..Adopted::default()
        };
        for (at, bytes) in records {
            let store = &mut adopted.records[StoreIndex::of(at).number()];
            store.add(at.within_store(), bytes as usize);
        }
        Ok(adopted)
    }
}
