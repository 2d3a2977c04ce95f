//! What the requests of a device and its background work share, each part with an owner of its own.
//!
//! Locks: those of [`Shards`]. Under a shard's only leaves are taken, to look something up: a
//! dictionary's, for what compressing with it takes, and the segments', for the number of a record in
//! one that a write failed to. Shards are locked under the mutex of recompression, under that of
//! [`Ages`], which is taken under the former if at all, under those of [`Tables`], under those of destaging,
//! and under no other.

mod ages;
mod codecs;
mod copy_before_write;
mod counts;
mod damage;
mod layout;
mod limit;
mod memory;
mod no_space;
mod quota;
mod shards;
mod spilled;
mod tables;
mod throttle;

use std::io;
use std::sync::Arc;

pub(crate) use self::ages::Ages;
pub(crate) use self::codecs::Codecs;
pub(crate) use self::copy_before_write::{Contents, CopiedRun, CopyBeforeWrite, Failed, Save};
pub(crate) use self::counts::RequestCounts;
pub(crate) use self::layout::{Layout, RUN_PAGES, Run, ShardIndex};
pub(crate) use self::limit::MemoryLimit;
#[cfg(test)]
pub(crate) use self::limit::Watermarks;
pub(crate) use self::memory::Adopted;
use self::memory::Memory;
pub(crate) use self::quota::Taken;
pub(crate) use self::shards::Shards;
pub(crate) use self::spilled::Spilled;
pub(crate) use self::tables::{Relief, Tables};
pub(crate) use self::throttle::RoundEnd;
use crate::config::DeviceConfig;
use crate::error::{Error, Result};
use crate::latency::Latencies;
use crate::log_limit::LogLimit;
use crate::memory::{DeviceMemory, FrameBudget};
use crate::origin::Origin;
use crate::pool;
use crate::shard::{Clock, Shard};
use crate::spill::RecordFormat;
use crate::sync::MutexGuard;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use crate::time::Timepiece;
use crate::units::{MAX_DEVICE_BYTES, PAGE_SHIFT, PAGE_SIZE};
use crate::waker::Waker;

/// Addresses for page frames over all shards, 32 TiB: what a process of 47 address bits can spare.
const MAX_ADDRESS_FRAMES: u64 = 1 << 33;

/// The state of a device.
pub(crate) struct Engine {
    pub(crate) shards: Shards,
    pub(crate) limit: MemoryLimit,
    pub(crate) tables: Tables,
    pub(crate) codecs: Codecs,
    pub(crate) spilled: Spilled,
    /// What a page is whose slot is empty.
    pub(crate) origin: Origin,
    pub(crate) ages: Ages,
    pub(crate) copy_before_write: CopyBeforeWrite,
    pub(crate) counts: RequestCounts,
    pub(crate) latencies: Latencies,
    /// For lines about failures.
    pub(crate) log_limit: LogLimit,
    /// For lines about writes that there is no room for.
    no_space: LogLimit,
    pub(crate) time: Timepiece,
    /// What wakes the writeback thread.
    pub(crate) waker: Arc<Waker>,
    /// Whether what takes long is to end early.
    stopping: AtomicBool,
    /// Bytes in the sectors that the device was attached with last; 0 if it never was.
    pub(crate) sector_bytes: AtomicU32,
    memory: Memory,
}

impl Engine {
    /// The state of an empty device, or one that is what its origin is; or, of the one that is found in `memory`,
    /// what it was, and what was found of its spill.
    ///
    /// # Errors
    /// [`Error::Io`] if there is not enough address space, or no key for what is spilled; or if what is in `memory`
    /// is damaged.
    pub(crate) fn new(
        config: &DeviceConfig,
        origin: Origin,
        memory: Option<DeviceMemory>,
    ) -> Result<(Self, Option<Adopted>)> {
        if let Some(memory) = &memory {
            memory.take()?;
        }
        let memory = Memory::new(memory);
        let limit = config
            .mem_limit
            .map_or(FrameBudget::UNLIMITED, |b| b / PAGE_SIZE as u64);
        let budget = Arc::new(FrameBudget::new(limit));
        let waker = Arc::new(Waker::default());
        let format = match &config.backing {
            Some(config) if config.encrypt => RecordFormat::sealed(memory.get())?,
            _ => RecordFormat::Checked,
        };
        let daily_limit = config.writeback_daily_limit;
        let spilled = Spilled::new(
            format,
            daily_limit,
            Arc::clone(&waker),
            memory.get().cloned(),
        );
        let ages = Ages::new(Arc::clone(&waker));
        let tables = Tables::new(config);
        let parts = (&budget, &tables.budget, &spilled, &ages);
        let shards = make_shards(config, &origin, parts, &memory)
            .map_err(|error| Error::io("reserve address space for the device", error))?;
        let (stores, destages) = (Arc::clone(&spilled.stores), origin.destages());
        let engine = Self {
            shards,
            limit: MemoryLimit::new(budget, stores, destages, Arc::clone(&waker)),
            codecs: Codecs::new(
                config.algorithm,
                &config.recompress,
                Arc::clone(&tables.budget),
                memory.get().cloned(),
            ),
            tables,
            spilled,
            origin,
            ages,
            copy_before_write: CopyBeforeWrite::default(),
            counts: RequestCounts::default(),
            latencies: Latencies::new(config.slow_request),
            log_limit: LogLimit::of_requests(),
            no_space: LogLimit::of_states(),
            time: Timepiece::default(),
            waker,
            stopping: AtomicBool::new(false),
            sector_bytes: AtomicU32::new(0),
            memory,
        };
        let adopted = match engine.memory.shape() {
            Some(_) => Some(engine.adopt()?),
            None => engine.begin_memory(config).map(|()| None)?,
        };
        Ok((engine, adopted))
    }

    /// Unlocks a shard that was changed, and wakes the writeback thread if that gives it work.
    pub(crate) fn unlock(&self, shard: MutexGuard<'_, Shard>) {
        let care = self.shards.needs_care(&shard);
        drop(shard);
        self.limit.wake_if_needed(care);
    }

    /// Empties sparse zspages until none can be freed that way or the device stops; returns the page
    /// frames freed.
    pub(crate) fn compact(&self) -> u64 {
        let freed = self.shards.compact(|| self.is_stopping());
        self.waker.wake();
        freed
    }

    /// Gives freed memory back, of the pools and of the tables: what is in excess if the device is `busy`,
    /// else all of it. Returns whether some is left to look for when it is idle.
    pub(crate) fn trim(&self, busy: bool) -> bool {
        let keep = self.shards.frames_to_keep(busy);
        self.shards.trim(keep, || {
            self.tables.release(&self.shards, keep / 2);
        })
    }

    /// Has what takes long end early, now and from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.waker.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }
}

/// The shards of a device, with room to grow.
fn make_shards(
    config: &DeviceConfig,
    origin: &Origin,
    (budget, tables, spilled, ages): (&Arc<FrameBudget>, &Arc<FrameBudget>, &Spilled, &Ages),
    memory: &Memory,
) -> io::Result<Shards> {
    let source = memory.source();
    if memory.outlives_process() {
        // There where each device of the shape looks for it.
        spilled.segments.make_in(&source)?;
    }
    let mark = source.mark();
    let clock = Clock::default();
    let make_of = |layout: Layout, pool_kind| {
        source.rewind(mark);
        Shards::new(layout, |layout, index| {
            let slots = layout.most_slots(index);
            let addresses = address_frames(slots, layout.shards().count());
            let pool = pool::new(pool_kind, addresses, Arc::clone(budget), &source)?;
            let (clock, segments) = (Arc::clone(&clock), Arc::clone(&spilled.segments));
            let (present, tables) = (ages.present(), Arc::clone(tables));
            let shard = Shard::new(
                slots,
                pool,
                clock,
                segments,
                present,
                Arc::clone(&tables),
                &source,
            )?;
            match origin {
                Origin::WriteBack(..) => shard.with_dirty_map(tables, &source),
                Origin::Blank | Origin::Snapshot(_) => Ok(shard),
            }
        })
    };
    if let Some(shape) = memory.shape() {
        let pool = memory::check_shape(shape, config, origin)?;
        let bytes = shape.capacity << PAGE_SHIFT;
        return make_of(Layout::new(bytes, bytes, shape.shards), pool);
    }
    let shards = config.shards.unwrap_or_else(|| shards_for(config));
    let make = |max_size| make_of(Layout::new(config.size, max_size, shards), config.pool);
    let least = config.least_max_size();
    match config.max_size {
        Some(_) => make(least),
        // An image does not grow.
        None if config.origin.is_some() => make(least),
        // Room to grow that nobody asked for is not to be what a device fails by.
        None => make(room_to_grow(config)).or_else(|_| make(least)),
    }
}

/// What a device may be grown to by default, in bytes: four times what it is, as far as its shards
/// can hold that.
fn room_to_grow(config: &DeviceConfig) -> u64 {
    let shards = config.shards.unwrap_or_else(|| shards_for(config));
    let of_shards = u64::from(shards) << (31 + PAGE_SHIFT);
    let wanted = config.size.saturating_mul(4).min(of_shards);
    wanted.clamp(config.size, MAX_DEVICE_BYTES)
}

/// How many shards a device has by default: one a core, but none so small that the sparse zspages
/// which every shard has of every size class would matter.
pub(crate) fn shards_for(config: &DeviceConfig) -> u32 {
    /// Bytes of memory that are worth a shard.
    const WORTH: u64 = 128 << 20;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let bytes = config.mem_limit.unwrap_or(u64::MAX).min(config.size);
    let shards = (bytes / WORTH).clamp(1, cores.min(64)) as u32;
    shards.max(DeviceConfig::min_shards(config.least_max_size()))
}

/// Address space for a shard's page frames: the arena's worst case is eight times what the pool
/// holds, which is about a frame a slot.
fn address_frames(slots: u32, shards: usize) -> usize {
    let wanted = (u64::from(slots) + 4096) * 8;
    wanted
        .min(MAX_ADDRESS_FRAMES / shards as u64)
        .min(u64::from(u32::MAX)) as usize
}
