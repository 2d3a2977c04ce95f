//! What the device's callers and its writeback thread share.
//!
//! Locks: each shard has one mutex, and no two are held at once, except all of them for a moment by
//! who begins to save the device. Under a shard's only leaves are taken, to look something up: a
//! dictionary's, for what compressing with it takes, and the segments', for the number of a record in
//! one that a write failed to. Shards are locked under `recompressing`, under those of [`Tables`], under that of [`Ages`], which
//! is taken under the former if at all, under those of [`crate::origin`], and under no other.

use std::io;
use std::sync::Arc;

use crossbeam::utils::CachePadded;

use super::ages::Ages;
use super::algorithms::Algorithms;
use super::damage::Damage;
use super::layout::{Layout, ShardIndex};
use super::read_ahead::ReadAhead;
use super::room::Room;
use super::save::Saves;
use super::tables::{self, Tables};
use crate::config::DeviceConfig;
use crate::error::{Error, Result};
use crate::latency::Latencies;
use crate::log_limit::LogLimit;
use crate::memory::FrameBudget;
use crate::origin::Origin;
use crate::pool::{self, NoRoom};
use crate::shard::{Clock, Shard};
use crate::spill::{
    LogCounts, RecordAddress, RecordFormat, RecordFormats, SegmentIndex, SegmentTable, Stores,
};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::{Mutex, MutexGuard};
use crate::time::Timepiece;
use crate::units::{MAX_DEVICE_BYTES, PAGE_SHIFT, PAGE_SIZE, PageIndex};
use crate::writeback::{Allowance, Left, Waker};

/// Addresses for page frames over all shards, 32 TiB: what a process of 47 address bits can spare.
const MAX_ADDRESS_FRAMES: u64 = 1 << 33;

/// Freed page frames, over all shards, whose memory is kept for the next write: 16 MiB.
const WARM_FRAMES: usize = 4096;

/// Refusals of the kernel to give memory after each of which a writer waits for eviction.
const MAX_REFUSALS: u32 = 8;

/// What requests count outside of shards.
#[derive(Debug, Default)]
pub(crate) struct RequestCounts {
    pub(crate) failed_reads: AtomicU64,
    pub(crate) failed_writes: AtomicU64,
    pub(crate) notify_free: AtomicU64,
    /// Writes that waited for memory.
    pub(crate) write_stalls: AtomicU64,
    /// Pages read back from the backing.
    pub(crate) bd_reads: CachePadded<AtomicU64>,
    /// Pages written to the backing.
    pub(crate) bd_writes: AtomicU64,
    /// Pages that recompression has made smaller.
    pub(crate) recompressed: AtomicU64,
    /// Pages read from the image.
    pub(crate) origin_reads: AtomicU64,
}

impl RequestCounts {
    /// Starts all counts again.
    pub(crate) fn reset(&self) {
        let Self {
            failed_reads,
            failed_writes,
            notify_free,
            write_stalls,
            bd_reads,
            bd_writes,
            recompressed,
            origin_reads,
        } = self;
        for count in [
            failed_reads,
            failed_writes,
            notify_free,
            write_stalls,
            bd_reads,
            bd_writes,
            recompressed,
            origin_reads,
        ] {
            count.store(0, Relaxed);
        }
    }
}

/// Bounds between which the writeback thread works, in page frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// It stops when no more than this is used.
    pub(crate) low: u64,
    /// It starts when more than this is used.
    pub(crate) high: u64,
}

impl Watermarks {
    /// Without eviction there is only the limit.
    fn without_eviction(limit: u64) -> Self {
        Self {
            low: limit,
            high: limit,
        }
    }

    /// For a limit: what writers may take before eviction has freed anything is a sixteenth of
    /// it, at least a zspage and at most 8 MiB; eviction frees as much again.
    fn of(limit: u64) -> Self {
        if limit == FrameBudget::UNLIMITED {
            return Self::without_eviction(limit);
        }
        let reserve = (limit / 16).clamp(8, 2048);
        Self {
            low: limit.saturating_sub(2 * reserve),
            high: limit.saturating_sub(reserve),
        }
    }
}

/// The state of a device.
pub(crate) struct Core {
    pub(crate) layout: Layout,
    pub(crate) algorithms: Algorithms,
    /// Held by whoever has pages marked as being recompressed.
    pub(super) recompressing: Mutex<()>,
    pub(super) saves: Saves,
    pub(crate) budget: Arc<FrameBudget>,
    pub(crate) tables: Tables,
    pub(crate) segments: Arc<SegmentTable>,
    pub(crate) formats: RecordFormats,
    pub(crate) stores: Arc<Stores>,
    /// What a page is whose slot is empty.
    pub(crate) origin: Origin,
    pub(crate) read_ahead: ReadAhead,
    pub(crate) log_counts: Arc<LogCounts>,
    pub(crate) requests: RequestCounts,
    pub(crate) damage: Damage,
    /// For lines about failures.
    pub(crate) log_limit: LogLimit,
    /// For lines about writes that there is no room for.
    no_space: LogLimit,
    pub(crate) latencies: Latencies,
    pub(crate) room: Room,
    pub(crate) allowance: Allowance,
    /// Most bytes of the backing that may be used; 0 for all it has.
    pub(crate) backing_size: AtomicU64,
    /// Whether what an image has may go to the backing, as far as the writeback thread knows.
    pub(crate) image_spills: AtomicBool,
    /// Whether what takes long is to end early.
    stopping: AtomicBool,
    /// What wakes the writeback thread.
    pub(crate) waker: Arc<Waker>,
    pub(crate) time: Timepiece,
    pub(super) ages: Ages,
    /// The longest object that is not stored raw.
    pub(crate) max_compressed_len: usize,
    /// Bytes that an object takes, by its length.
    object_sizes: Box<[usize]>,
    /// Warm frames that a shard may keep.
    warm_frames: usize,
    /// Whether the writeback thread is going to look for warm frames by itself.
    trim_is_due: AtomicBool,
    shards: Box<[CachePadded<Mutex<Shard>>]>,
}

impl Core {
    pub(crate) fn new(config: &DeviceConfig, origin: Origin) -> Result<Self> {
        let limit = config
            .mem_limit
            .map_or(FrameBudget::UNLIMITED, |b| b / PAGE_SIZE as u64);
        let budget = Arc::new(FrameBudget::new(limit));
        let tables = Tables::new(config);
        let no_addresses = |error| Error::io("reserve address space for the device", error);
        let waker = Arc::new(Waker::default());
        let spilled = match &config.backing {
            Some(config) if config.encrypt => RecordFormat::sealed()?,
            _ => RecordFormat::Checked,
        };
        let formats = RecordFormats { spilled };
        let segments = Arc::new(SegmentTable::new(formats.clone(), Arc::clone(&waker)));
        let ages = Ages::new(Arc::clone(&waker));
        let clock = Clock::default();
        let make = |max_size| {
            let shards = config.shards.unwrap_or_else(|| shards_for(config));
            let layout = Layout::new(config.size, max_size, shards);
            let count = layout.shards().count();
            let shard = |index: ShardIndex| {
                let slots = layout.most_slots(index);
                let addresses = address_frames(slots, count);
                let (budget, clock) = (Arc::clone(&budget), Arc::clone(&clock));
                let pool = pool::new(config.pool, addresses, budget)?;
                let (segments, tables) = (Arc::clone(&segments), Arc::clone(&tables.budget));
                let present = ages.present();
                let shard = Shard::new(slots, pool, clock, segments, present, Arc::clone(&tables))?;
                let shard = match origin {
                    Origin::Home(_) => shard.with_home(tables)?,
                    Origin::Blank | Origin::Snapshot(_) => shard,
                };
                Ok(CachePadded::new(Mutex::new(shard)))
            };
            let shards: io::Result<Box<[_]>> = layout.shards().map(shard).collect();
            shards.map(|shards| (layout, shards))
        };
        let least = config.least_max_size();
        let made = match config.max_size {
            Some(_) => make(least),
            // Room to grow that nobody asked for is not to be what a device fails by.
            // An image does not grow.
            None if config.origin.is_some() => make(least),
            None => make(room_to_grow(config)).or_else(|_| make(least)),
        };
        let (layout, shards) = made.map_err(no_addresses)?;
        let count = shards.len();
        let first = shards[0].lock();
        let max_compressed_len = first.pool().max_compressed_len();
        let sizes = (0..=max_compressed_len).chain([PAGE_SIZE]);
        let object_sizes = sizes.map(|len| first.pool().object_size(len)).collect();
        drop(first);
        let allowance = Allowance::default();
        allowance.limit_daily(config.writeback_daily_limit);
        Ok(Self {
            layout,
            algorithms: Algorithms::new(
                config.algorithm,
                &config.recompress,
                Arc::clone(&tables.budget),
            ),
            recompressing: Mutex::default(),
            saves: Saves::default(),
            budget,
            tables,
            segments,
            formats,
            stores: Arc::default(),
            origin,
            read_ahead: ReadAhead::default(),
            log_counts: Arc::default(),
            requests: RequestCounts::default(),
            damage: Damage::default(),
            log_limit: LogLimit::of_requests(),
            no_space: LogLimit::of_states(),
            latencies: Latencies::new(config.slow_request),
            room: Room::new(),
            allowance,
            backing_size: AtomicU64::new(0),
            image_spills: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            waker,
            time: Timepiece::default(),
            ages,
            max_compressed_len,
            object_sizes,
            warm_frames: WARM_FRAMES / count,
            trim_is_due: AtomicBool::new(false),
            shards,
        })
    }

    /// Counts and logs that a page's record is damaged, if that was not known yet.
    pub(crate) fn note_damage(&self, page: PageIndex, record: RecordAddress, sequence: u64) {
        if self.damage.note(record, sequence)
            && let Some(end) = self.log_limit.admit()
        {
            let path = self.stores.path_of(SegmentIndex::of(record));
            tracing::error!(
                "page {} is lost: its record at byte {} of {} is damaged{end}",
                page.0,
                record.within_store().byte(),
                path.display()
            );
        }
    }

    /// Logs, once a minute, that what was written could not be stored, if that is the error. Whoever wrote may
    /// hear of it late or never: a file system writes behind the back of those who write to it.
    pub(super) fn warn_of_no_space(&self, error: &Error) {
        let Error::NoSpace(reason) = error else {
            return;
        };
        if self.is_stopping() {
            return;
        }
        if let Some(end) = self.no_space.admit() {
            let remedy = self.remedy(reason);
            tracing::warn!("writes fail with ENOSPC, as {reason}: {remedy}{end}");
        }
    }

    /// What gives writes room again, which they lack for `reason`.
    fn remedy(&self, reason: &str) -> &'static str {
        if reason == tables::SPENT {
            "give it a larger --table-limit when it is started next"
        } else if !self.evicts() {
            "uzram set NAME backing_dev=PATH, or mem_limit=SIZE to a larger one"
        } else {
            "see to that, or uzram set NAME mem_limit=SIZE to a larger one"
        }
    }

    /// Bytes that an object of `len` bytes takes in a pool.
    pub(super) fn object_size(&self, len: usize) -> usize {
        self.object_sizes[len.min(self.object_sizes.len() - 1)]
    }

    /// Locks a shard.
    pub(crate) fn shard(&self, index: ShardIndex) -> MutexGuard<'_, Shard> {
        self.shards[index.0 as usize].lock()
    }

    /// What the next append to the backing may take.
    ///
    /// # Errors
    /// What is spent, as a writer without room is told.
    pub(crate) fn may_write(&self) -> Result<Left, &'static str> {
        self.allowance.left(self.time.now())
    }

    /// Has what takes long end early, now and from now on.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.waker.wake();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Whether a shard is left in a state that the writeback thread must be told of: sparse, or
    /// with freed frames that are too many or that the thread does not expect.
    pub(crate) fn needs_care(&self, shard: &Shard) -> bool {
        let idle = shard.idle_frames();
        idle > self.warm_frames || idle > 0 && !self.trim_is_due.load(Acquire) || shard.is_churned()
    }

    /// Whether pages can leave memory, to a backing or home.
    pub(super) fn evicts(&self) -> bool {
        self.stores.spills() || self.origin.home().is_some()
    }

    /// Between what bounds memory is to be kept now.
    pub(crate) fn watermarks(&self) -> Watermarks {
        let limit = self.budget.limit();
        if self.evicts() {
            Watermarks::of(limit)
        } else {
            Watermarks::without_eviction(limit)
        }
    }

    /// Wakes the writeback thread if memory is above the high watermark, or if the caller knows
    /// of other work.
    pub(crate) fn wake_if_needed(&self, other_work: bool) {
        if other_work || self.budget.used() > self.watermarks().high {
            self.waker.wake();
        }
    }

    /// Calls `store` on a locked shard until it finds room, waiting in between.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(crate) fn store_with_room(
        &self,
        index: ShardIndex,
        mut store: impl FnMut(&mut Shard) -> Result<(), NoRoom>,
    ) -> Result<()> {
        let mut refusals = 0;
        loop {
            let mut shard = self.shard(index);
            let stored = store(&mut shard);
            let care = self.needs_care(&shard);
            drop(shard);
            self.wake_if_needed(care);
            match stored {
                Ok(()) => return Ok(()),
                Err(NoRoom::NoMemory) if refusals == MAX_REFUSALS => {
                    return Err(Error::NoSpace("the kernel has no memory to give"));
                }
                Err(NoRoom::TableBusy) => self.tables.await_release(),
                Err(NoRoom::TableLimit) => self.make_table_room()?,
                Err(no_room) => {
                    refusals += u32::from(no_room == NoRoom::NoMemory);
                    self.requests.write_stalls.fetch_add(1, Relaxed);
                    self.room.wait(|| self.waker.wake())?;
                }
            }
        }
    }

    /// Empties sparse zspages until none can be freed that way or the device stops; returns the page
    /// frames freed.
    pub(super) fn compact(&self) -> u64 {
        let mut freed = 0;
        for index in self.layout.shards() {
            // The lock is let go after each zspage.
            while !self.is_stopping()
                && let Some(frames) = {
                    let mut shard = self.shard(index);
                    shard.compact()
                }
            {
                freed += frames;
            }
        }
        self.waker.wake();
        freed
    }

    /// Gives freed memory back: what is in excess if the device is `busy`, else all of it. Returns
    /// whether some is left to look for when it is idle.
    pub(crate) fn trim(&self, busy: bool) -> bool {
        self.trim_is_due.store(true, Release);
        let keep = if busy { self.warm_frames_to_keep() } else { 0 };
        self.release_tables(keep / 2);
        if self.release_warm_frames(keep) {
            return true;
        }
        // Whoever frees memory from here on sees that no trim is due, under the lock of a shard
        // that is looked at after it, or has freed it before that look.
        self.trim_is_due.store(false, Release);
        let left = self
            .layout
            .shards()
            .any(|index| self.shard(index).idle_frames() > 0);
        self.trim_is_due.store(left, Release);
        left
    }

    /// Releases the memory of freed frames in excess of `keep` frames a shard; returns whether
    /// any are left.
    pub(crate) fn release_warm_frames(&self, keep: usize) -> bool {
        let mut left = false;
        for index in self.layout.shards() {
            let mut idle = self.shard(index).pool_mut().take_idle(keep);
            if let Err(error) = idle.release() {
                tracing::warn!("cannot give freed memory back: {error}");
            }
            let mut shard = self.shard(index);
            shard.pool_mut().accept_idle(idle);
            left |= shard.idle_frames() > 0;
        }
        left
    }

    /// Warm frames a shard keeps while it is busy.
    pub(crate) fn warm_frames_to_keep(&self) -> usize {
        self.warm_frames / 2
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
pub(super) fn shards_for(config: &DeviceConfig) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_leave_room_below_any_limit() {
        for limit in [8, 9, 100, 16384, 1 << 30] {
            let Watermarks { low, high } = Watermarks::of(limit);
            assert!(low <= high && high + 8 <= limit, "{limit}: {low}, {high}");
        }
        assert_eq!(
            Watermarks::of(16384),
            Watermarks {
                low: 14336,
                high: 15360
            }
        );
        assert_eq!(
            Watermarks::of(FrameBudget::UNLIMITED).high,
            FrameBudget::UNLIMITED
        );
    }
}
