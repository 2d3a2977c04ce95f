//! The device: what frontends serve.

mod ages;
mod ahead;
pub(crate) mod algorithms;
mod backing;
mod block_state;
pub(crate) mod core;
pub(crate) mod damage;
mod discard;
mod extents;
mod home;
pub(crate) mod layout;
mod map;
mod need;
mod policies;
mod read;
mod read_ahead;
mod read_back;
mod recompress;
mod resize;
mod restore;
pub(crate) mod room;
mod save;
mod scrub;
mod streams;
mod tables;
#[cfg(test)]
mod tests;
mod train;
mod write;

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

pub use self::backing::PlaceCheck;
pub use self::block_state::BlockStates;
use self::core::Core;
pub use self::map::{MAX_MAP_CELLS, MapCell, PageMap};
use self::recompress::Background;
pub use self::restore::saved_size;
pub use self::save::{SaveProgress, Saved};
pub use self::scrub::Scrubbed;
use crate::block_device::BlockDevice;
use crate::config::{BackingKeep, DeviceConfig, check_mem_limit};
use crate::error::{Error, Result};
use crate::latency::{Operation, OperationLatencies};
use crate::memory::FrameBudget;
use crate::origin::{FileImage, Home, Origin, OriginConfig, OriginUse, Periodic, SyncPolicy};
use crate::pool::ClassStats;
use crate::sector_size::SectorSize;
use crate::shard::Counts;
use crate::spill::{Backing, BackingNotes, Opener, random_sequence};
use crate::stats::{Stats, rss_bytes};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use crate::sync::channel::{self, Sender};
use crate::sync::thread::{self, JoinHandle};
use crate::units::{Extent, PAGE_SHIFT, PAGE_SIZE, PageIndex};
use crate::users::{User, Users, Who};
use crate::writeback::{Command, Writeback};

/// A compressed RAM block device. Dropping it writes home what is dirty, ends its writeback thread,
/// frees its memory and removes the backing file that it made.
pub struct Device {
    core: Arc<Core>,
    users: Arc<Users>,
    /// Held while the device changes its size.
    resizing: Mutex<()>,
    /// What becomes of the first backing, and of those that take its place.
    backing_keep: BackingKeep,
    /// What it asks before it comes to use a path.
    place_check: OnceLock<Box<PlaceCheck>>,
    opener: Opener,
    /// Whether it stays as it is, since it was saved to be stopped.
    is_final: AtomicBool,
    /// Whether it stays as it began, or was restored.
    read_only: bool,
    /// Bytes in the sectors that it was attached with last; 0 if it never was.
    sector_bytes: AtomicU32,
    commands: Option<Sender<Command>>,
    writeback: Option<JoinHandle<()>>,
    recompression: Option<Background>,
    periodic: Option<Periodic>,
}

impl Device {
    /// Makes an empty device.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unusable`] or [`Error::Io`] about the backing;
    /// [`Error::Io`] if there is not enough address space.
    pub fn new(config: &DeviceConfig) -> Result<Self> {
        Self::opening_with(Opener::default(), config)
    }

    /// Makes an empty device, for whose backings `notes` are kept.
    ///
    /// # Errors
    /// Those of [`Device::new`], and of `notes`.
    pub fn noting(config: &DeviceConfig, notes: Arc<dyn BackingNotes>) -> Result<Self> {
        Self::opening_with(Opener::noting(notes), config)
    }

    fn opening_with(opener: Opener, config: &DeviceConfig) -> Result<Self> {
        config.validate()?;
        let origin = match &config.origin {
            Some(origin) => open_origin(origin, config.size)?,
            None => Origin::Blank,
        };
        let backing = match &config.backing {
            Some(backing) => Some(opener.open(backing)?),
            None => None,
        };
        let mut device = Self::with_stores(config, origin, backing)?;
        device.opener = opener;
        Ok(device)
    }

    /// Makes a device that begins as `origin` and spills to `backing`.
    pub(crate) fn with_stores(
        config: &DeviceConfig,
        origin: Origin,
        backing: Option<Arc<dyn Backing>>,
    ) -> Result<Self> {
        let core = Arc::new(Core::new(config, origin)?);
        let (sender, receiver) = channel::unbounded();
        let writeback = Writeback::new(Arc::clone(&core), receiver, random_sequence()?);
        let thread = thread::Builder::new()
            .name("uzram-writeback".into())
            .spawn(move || writeback.run())
            .map_err(|error| Error::io("start the writeback thread", error))?;
        let mut device = Self {
            core,
            users: Arc::default(),
            resizing: Mutex::default(),
            backing_keep: config
                .backing
                .as_ref()
                .map_or_else(BackingKeep::default, |backing| backing.keep),
            place_check: OnceLock::new(),
            opener: Opener::default(),
            is_final: AtomicBool::new(false),
            read_only: config.read_only,
            sector_bytes: AtomicU32::new(0),
            commands: Some(sender),
            writeback: Some(thread),
            recompression: None,
            periodic: None,
        };
        if let Some(backing) = backing {
            let size = config.backing.as_ref().and_then(|backing| backing.size);
            device.replace_backing(Some(backing), size)?;
        }
        if let Some(age) = config.recompress_after {
            let core = Arc::clone(&device.core);
            device.recompression = Some(Background::start(core, age)?);
        }
        let home = device.core.origin.home();
        if let Some(SyncPolicy::Every(period)) = home.map(Home::policy) {
            let core = Arc::clone(&device.core);
            device.periodic = Some(Periodic::start(core, period)?);
        }
        Ok(device)
    }

    /// A snapshot of the counters. Each shard's are taken at one time, but not all shards'.
    pub fn stats(&self) -> Stats {
        let Core {
            budget,
            requests,
            damage,
            log_counts,
            segments,
            ..
        } = &*self.core;
        let page = PAGE_SIZE as u64;
        // Both change while they are read: what is live is never shown to be more than is used.
        let (live, used) = (segments.live_bytes(), log_counts.used_bytes());
        let mut stats = Stats {
            disksize: self.size(),
            mem_used_total: budget.used() * page,
            mem_limit: self.mem_limit().unwrap_or(0),
            mem_used_max: budget.max_used() * page,
            dictionary_bytes: self.core.algorithms.dictionaries.frames() * page,
            table_limit: self.core.tables.budget.limit() * page,
            backing_bytes_used: used,
            backing_bytes_live: live.min(used),
            backing_bytes_written: log_counts.written_bytes(),
            backing_bytes_day: self.core.allowance.bytes_in_day(self.core.time.now()),
            bd_reads: requests.bd_reads.load(Relaxed),
            bd_writes: requests.bd_writes.load(Relaxed),
            recompressed_pages: requests.recompressed.load(Relaxed),
            damaged_records: damage.count(),
            failed_reads: requests.failed_reads.load(Relaxed),
            failed_writes: requests.failed_writes.load(Relaxed),
            notify_free: requests.notify_free.load(Relaxed),
            origin_reads: requests.origin_reads.load(Relaxed),
            write_stalls: requests.write_stalls.load(Relaxed),
            restore_bytes_left: segments.image_bytes(),
            rss_bytes: rss_bytes(),
            ..Stats::default()
        };
        if let Some(home) = self.core.origin.home() {
            stats.origin_writes = home.counts.writes.load(Relaxed);
            stats.origin_discards = home.counts.holes.load(Relaxed);
            stats.origin_syncs = home.counts.syncs.load(Relaxed);
        }
        for index in self.core.layout.shards() {
            let (counts, dirty, tables) = {
                let shard = self.core.shard(index);
                (shard.counts(), shard.dirty_pages(), shard.table_pages())
            };
            stats.dirty_pages += dirty;
            stats.slot_table_bytes += tables * page;
            stats.orig_data_size += pages_with_data(&counts) * page;
            stats.compr_data_size += counts.compr_bytes;
            stats.same_pages += counts.same_pages;
            stats.resident_pages += counts.resident_pages;
            stats.written_back_pages += counts.written_back_pages;
            stats.huge_pages += counts.huge_pages;
            stats.huge_pages_since += counts.huge_pages_since;
            stats.pages_compacted += counts.pages_compacted;
        }
        stats
    }

    /// How long operations took.
    pub fn latencies(&self) -> OperationLatencies {
        self.core.latencies.snapshot()
    }

    /// Bytes in pages that hold data: [`Stats::orig_data_size`] at a fraction of the cost.
    pub fn orig_data_size(&self) -> u64 {
        self.pages_with_data() << PAGE_SHIFT
    }

    fn pages_with_data(&self) -> u64 {
        let pages = |index| pages_with_data(&self.core.shard(index).counts());
        self.core.layout.shards().map(pages).sum()
    }

    /// Usage of the pools by size class, all shards together.
    pub fn class_stats(&self) -> Vec<ClassStats> {
        let mut total: Vec<ClassStats> = Vec::new();
        for index in self.core.layout.shards() {
            let classes = self.core.shard(index).pool().class_stats();
            if total.is_empty() {
                total = classes;
                continue;
            }
            for (sum, class) in total.iter_mut().zip(classes) {
                sum.objects += class.objects;
                sum.objects_used += class.objects_used;
                sum.frames += class.frames;
                sum.frames_freeable += class.frames_freeable;
            }
        }
        total
    }

    /// The memory limit in bytes, if there is one.
    pub fn mem_limit(&self) -> Option<u64> {
        let frames = self.core.budget.limit();
        (frames != FrameBudget::UNLIMITED).then(|| frames * PAGE_SIZE as u64)
    }

    /// Sets or, with `None`, removes the memory limit, in bytes, rounded down to whole pages. What
    /// is above a lowered limit is evicted in the background.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] below one zspage.
    pub fn set_mem_limit(&self, bytes: Option<u64>) -> Result<()> {
        bytes.map_or(Ok(()), check_mem_limit)?;
        let frames = bytes.map_or(FrameBudget::UNLIMITED, |bytes| bytes / PAGE_SIZE as u64);
        self.core.budget.set_limit(frames);
        self.core.waker.wake();
        Ok(())
    }

    /// Starts `mem_used_max` again from what is used now.
    pub fn reset_mem_used_max(&self) {
        self.core.budget.reset_max_used();
    }

    /// Empties sparse zspages into fuller ones of their class until none can be freed that way;
    /// returns the page frames freed.
    pub fn compact(&self) -> u64 {
        self.core.compact()
    }

    /// Evicts the least recently allocated zspages to the backing, of at least `bytes` of memory
    /// or all there are; returns the bytes freed. Pages that were read since they were stored are
    /// moved rather than evicted, once.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if there is no backing, or it is full or failing.
    pub fn evict(&self, bytes: u64) -> Result<u64> {
        let (done, answer) = channel::bounded(1);
        self.command(Command::Evict {
            frames: bytes.div_ceil(PAGE_SIZE as u64),
            done,
        });
        let frames = answer.recv().unwrap_or(Err("the device is stopping"));
        frames
            .map(|frames| frames * PAGE_SIZE as u64)
            .map_err(Error::NoSpace)
    }

    /// Reads spilled pages from page `from` on and proves that they can be read back; returns what
    /// it found and where to go on. A step takes a bounded time, unless the backing hangs, and
    /// holds up nothing else.
    pub fn scrub(&self, from: u64) -> Scrubbed {
        self.core.scrub(from)
    }

    /// Whether a client of a frontend uses the device.
    pub fn is_in_use(&self) -> bool {
        self.users.any()
    }

    /// Whether a client of a frontend uses the device or has done so.
    pub fn was_used(&self) -> bool {
        self.users.ever_any()
    }

    /// Who uses it, but for those who are just leaving.
    pub fn users(&self) -> Vec<Who> {
        self.users.who()
    }

    /// Forgets all data, like a discard of the whole device, and starts the counters again; a
    /// snapshot is again what its image is. Who comes to use the device meanwhile waits.
    ///
    /// # Errors
    /// [`Error::Refused`]: EBUSY while the device is in use, as in zram; EPERM for one whose pages
    /// go home to an image; EROFS for one that is read-only, and after [`Device::refuse_changes`].
    pub fn reset(&self) -> Result<()> {
        if self.core.origin.home().is_some() {
            return Err(Error::Refused {
                what: "reset",
                reason: "the data is the image's".to_owned(),
                errno: Errno::PERM,
            });
        }
        let forget = || {
            self.check_changeable()?;
            self.forget();
            Ok(())
        };
        self.users.while_none(forget).unwrap_or_else(|| {
            Err(Error::Refused {
                what: "reset",
                reason: "the device is in use; unmount, detach or disconnect it first".to_owned(),
                errno: Errno::BUSY,
            })
        })
    }

    fn forget(&self) {
        self.core.clear(0..self.core.layout.pages());
        for index in self.core.layout.shards() {
            self.core.shard(index).reset_counts();
        }
        self.core.requests.reset();
        self.core.damage.reset();
        self.core.latencies.reset();
        self.core.budget.reset_max_used();
        self.set_sector_size(None);
    }

    /// What whoever made a block device of it last had for sectors; `None` if nobody did, or its data
    /// was forgotten since. A saved image has it too.
    pub fn sector_size(&self) -> Option<SectorSize> {
        SectorSize::of_bytes(self.sector_bytes.load(Relaxed))
    }

    /// Remembers what a block device that is made of it has for sectors.
    pub fn set_sector_size(&self, size: Option<SectorSize>) {
        let bytes = size.map_or(0, SectorSize::bytes);
        self.sector_bytes.store(bytes, Relaxed);
    }

    /// Has all that was written to the device before this in its image, durably. Nothing to do for
    /// one that has none, or is a snapshot.
    ///
    /// # Errors
    /// [`Error::Io`] if the image cannot be written to: what it does not have is in memory, and the
    /// next call tries again. Once the kernel could not make durable what was written, this fails
    /// for ever: what that loses is not known.
    pub fn sync(&self) -> Result<()> {
        self.core
            .origin
            .home()
            .map_or(Ok(()), |home| home.sync(&self.core))
    }

    /// Pages in memory that are not in the image as they are.
    pub fn dirty_pages(&self) -> u64 {
        let dirty = |index| self.core.shard(index).dirty_pages();
        self.core.layout.shards().map(dirty).sum()
    }

    /// The image's path, if there is one.
    pub fn origin_path(&self) -> Option<PathBuf> {
        let image = self.core.origin.image();
        image.map(|image| image.path().to_owned())
    }

    /// Writes nothing more to the backing: the device is about to be dropped. Writers that wait for
    /// room are sent away. Returns whether what was under way ended within `patience`.
    pub fn stop_spilling(&self, patience: Duration) -> bool {
        self.core.room.close();
        let (done, answer) = channel::bounded(1);
        self.command(Command::Land { done });
        answer.recv_timeout(patience).is_ok()
    }

    /// Asserts that the accounting of every part adds up: slots, pools, recency, segments. Slow,
    /// and for tests: no request may be under way.
    pub fn check(&self) {
        let _none_is_marked = self.core.recompressing.lock();
        let (done, answer) = channel::bounded(1);
        self.command(Command::Check { done });
        answer
            .recv()
            .expect("the writeback thread found the accounting wrong");
    }

    fn command(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread outlives its sender; it is gone only if it panicked, and then the answer
            // never comes, which the caller sees.
            let _ = commands.send(command);
            self.core.waker.wake();
        }
    }
}

/// Resident, same-filled or written back.
fn pages_with_data(counts: &Counts) -> u64 {
    counts.same_pages + counts.resident_pages + counts.written_back_pages
}

/// Opens an image for a device of `size` bytes.
fn open_origin(config: &OriginConfig, size: u64) -> Result<Origin> {
    let image = FileImage::open(config)?;
    if image.size() != size {
        return Err(Error::Unusable {
            path: config.path.clone(),
            reason: format!("has {} bytes, not {size}", image.size()),
        });
    }
    let image = Arc::new(image);
    Ok(match config.usage {
        OriginUse::WriteBack(policy) => Origin::Home(Home::new(image, policy)),
        OriginUse::Snapshot => Origin::Snapshot(image),
    })
}

impl Drop for Device {
    fn drop(&mut self) {
        self.periodic = None;
        if let Err(error) = self.sync() {
            let pages = self.dirty_pages();
            tracing::error!("{pages} pages are lost that could not be written home: {error}");
        }
        self.core.room.close();
        self.core.stop();
        self.recompression = None;
        self.commands = None;
        self.core.waker.wake();
        if let Some(thread) = self.writeback.take()
            && thread.join().is_err()
        {
            tracing::error!("the writeback thread panicked");
        }
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.core.layout.pages() << PAGE_SHIFT
    }

    fn enter(&self, who: Who) -> User {
        self.users.enter(who)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let timed = self.timed(Operation::Read, offset, buf.len() as u64, || {
            self.core.read(offset, buf)
        });
        timed.inspect_err(|error| {
            self.core.requests.failed_reads.fetch_add(1, Relaxed);
            // A damaged record was logged when it was found.
            if !matches!(error, Error::Damaged { .. })
                && let Some(end) = self.core.log_limit.admit()
            {
                tracing::error!("read of {} bytes at {offset}: {error}{end}", buf.len());
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let timed = self.timed(Operation::Write, offset, data.len() as u64, || {
            self.check_changeable()?;
            self.core.write(offset, data)
        });
        timed.inspect_err(|error| {
            tracing::debug!("write of {} bytes at {offset}: {error}", data.len());
            self.core.requests.failed_writes.fetch_add(1, Relaxed);
            self.core.warn_of_no_space(error);
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let timed = self.timed(Operation::Discard, offset, len, || {
            let pages = self.zero_ends(offset, len)?;
            let freed = self.core.discard(pages)?;
            self.core.requests.notify_free.fetch_add(freed, Relaxed);
            Ok(())
        });
        timed.inspect_err(|error| self.core.warn_of_no_space(error))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let timed = self.timed(Operation::Write, offset, len, || {
            let pages = self.zero_ends(offset, len)?;
            self.core.fill_zero(pages)
        });
        timed.inspect_err(|error| self.core.warn_of_no_space(error))
    }

    fn flush(&self) -> Result<()> {
        self.timed(Operation::Flush, 0, 0, || {
            if self.has_flush() {
                self.sync()
            } else {
                Ok(())
            }
        })
    }

    fn outlives_the_device(&self) -> bool {
        self.core.origin.home().is_some()
    }

    fn has_flush(&self) -> bool {
        self.core
            .origin
            .home()
            .is_some_and(|home| home.policy() == SyncPolicy::Flush)
    }

    fn offers_flush(&self) -> bool {
        self.core.origin.home().is_none() || self.has_flush()
    }

    fn prefetch(&self, range: Range<u64>) -> Result<()> {
        self.core.prefetch(range.clone()).inspect_err(|error| {
            let Range { start, end } = range;
            tracing::error!("prefetch of {} bytes at {start}: {error}", end - start);
            self.core.requests.failed_reads.fetch_add(1, Relaxed);
        })
    }

    fn read_would_wait(&self, range: Range<u64>) -> bool {
        self.core.read_would_wait(range)
    }

    fn write_would_wait(&self, range: Range<u64>) -> bool {
        self.core.write_would_wait(range)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        self.core.extents(range, visit);
    }
}

impl Device {
    /// Does a request's work, and notes how long it takes.
    fn timed<T>(
        &self,
        operation: Operation,
        offset: u64,
        bytes: u64,
        work: impl FnOnce() -> T,
    ) -> T {
        let latencies = &self.core.latencies;
        latencies.of_request(operation, offset, bytes, work)
    }

    /// Zeroes the part pages at the ends of a range; returns the whole pages between them.
    fn zero_ends(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        self.check_changeable()?;
        let page = PAGE_SIZE as u64;
        let end = offset + len;
        let whole = offset.next_multiple_of(page)..end / page * page;
        let zero = |from: u64, to: u64| {
            let (first, within) = (PageIndex((from / page) as u32), (from % page) as usize);
            self.core.zero_part(first, within, (to - from) as usize)
        };
        let zeroed = if whole.start > whole.end {
            // All of it is inside one page.
            zero(offset, end)
        } else {
            let head = if offset < whole.start {
                zero(offset, whole.start)
            } else {
                Ok(())
            };
            head.and_then(|()| {
                if whole.end < end {
                    zero(whole.end, end)
                } else {
                    Ok(())
                }
            })
        };
        zeroed.inspect_err(|_| {
            self.core.requests.failed_writes.fetch_add(1, Relaxed);
        })?;
        Ok(whole.start / page..(whole.end / page).max(whole.start / page))
    }
}
