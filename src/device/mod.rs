//! The device: what frontends serve.

mod adopt;
mod algorithms;
mod background;
mod backing;
mod block_state;
mod builder;
mod checked;
mod inspect;
mod map;
mod need;
mod policies;
mod recompress;
mod requests;
mod resize;
mod restore;
mod save;
#[cfg(test)]
mod tests;
mod train;

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use self::background::Background;
use self::backing::Backings;
pub use self::backing::PlaceCheck;
pub use self::block_state::BlockStates;
pub use self::builder::DeviceBuilder;
pub use self::map::{MAX_MAP_CELLS, MapCell, PageMap};
pub use self::restore::saved_size;
pub use self::save::{SaveProgress, Saved};
use crate::config::{DeviceConfig, check_mem_limit};
use crate::engine::Engine;
use crate::error::{Error, Result};
pub use crate::io::Scrubbed;
use crate::io::{Reader, Writer};
use crate::maintain::{Command, Destager, Recompressor};
use crate::memory::{DeviceMemory, FrameBudget};
use crate::origin::{FileImage, Origin, OriginConfig, OriginUse};
use crate::sector_size::SectorSize;
use crate::spill::{Backing, BackingNotes, Opener, random_sequence};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::channel;
use crate::units::PAGE_SIZE;
use crate::users::{Users, Who};

/// A compressed RAM block device. Dropping it destages what is dirty, ends its writeback thread,
/// frees its memory and removes the backing file that it made. A process that ends otherwise leaves the device
/// to another, if it is in a [`DeviceMemory`].
pub struct Device {
    engine: Arc<Engine>,
    reader: Arc<Reader>,
    writer: Writer,
    recompressor: Arc<Recompressor>,
    /// What destages pages, if there is an image to destage to.
    destager: Option<Arc<Destager>>,
    users: Arc<Users>,
    /// Held while the device changes its size.
    resizing: Mutex<()>,
    backings: Backings,
    /// Whether it stays as it is, since it was saved to be stopped.
    is_final: AtomicBool,
    /// Whether it stays as it began, or was restored.
    read_only: bool,
    background: Background,
}

impl Device {
    /// Begins a device of `size` bytes, with every other setting at its default.
    pub fn builder(size: u64) -> DeviceBuilder {
        DeviceConfig::new(size).into()
    }

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
    #[doc(hidden)]
    pub fn noting(config: &DeviceConfig, notes: Arc<dyn BackingNotes>) -> Result<Self> {
        Self::opening_with(Opener::noting(notes), config)
    }

    fn opening_with(opener: Opener, config: &DeviceConfig) -> Result<Self> {
        Self::opening_in(None, opener, config)
    }

    /// The same, in memory that may outlive the process.
    fn opening_in(
        memory: Option<DeviceMemory>,
        opener: Opener,
        config: &DeviceConfig,
    ) -> Result<Self> {
        config.validate()?;
        let origin = match &config.origin {
            Some(origin) => open_origin(origin, config.size)?,
            None => Origin::Blank,
        };
        let holds_device = memory.as_ref().is_some_and(DeviceMemory::holds_device);
        let backing = match &config.backing {
            // What it spills to is what was kept.
            Some(backing) if !holds_device => Some(opener.open(backing)?),
            _ => None,
        };
        Self::of_parts(config, origin, backing, opener, memory)
    }

    /// Makes a device that begins as `origin` and spills to `backing`.
    #[cfg(test)]
    pub(crate) fn with_stores(
        config: &DeviceConfig,
        origin: Origin,
        backing: Option<Arc<dyn Backing>>,
    ) -> Result<Self> {
        Self::of_parts(config, origin, backing, Opener::default(), None)
    }

    fn of_parts(
        config: &DeviceConfig,
        origin: Origin,
        backing: Option<Arc<dyn Backing>>,
        opener: Opener,
        memory: Option<DeviceMemory>,
    ) -> Result<Self> {
        let (engine, found) = Engine::new(config, origin, memory)?;
        let engine = Arc::new(engine);
        let reader = Arc::new(Reader::new(Arc::clone(&engine)));
        let destager = Destager::of(&engine);
        let writer = Writer::new(Arc::clone(&engine), Arc::clone(&reader));
        let sequence = match found.as_ref().map(|found| found.used.last_sequence) {
            Some(last) if last > 0 => last,
            _ => random_sequence()?,
        };
        let is_found = found.is_some();
        let background = Background::start(&engine, destager.as_ref(), sequence, |writeback| {
            found.map_or(Ok(()), |found| {
                adopt::adopt(found, writeback, &engine, &writer, &opener)
            })
        });
        let background = background.inspect_err(|_| {
            if is_found {
                // What it spills to is to stay as it is, for who tries again.
                std::mem::forget(Arc::clone(&engine));
            }
        })?;
        let mut device = Self {
            writer,
            reader,
            recompressor: Arc::new(Recompressor::new(Arc::clone(&engine))),
            destager,
            engine,
            users: Arc::default(),
            resizing: Mutex::default(),
            backings: Backings::new(config.backing.as_ref(), opener),
            is_final: AtomicBool::new(false),
            read_only: config.read_only,
            background,
        };
        if let Some(backing) = backing {
            let size = config.backing.as_ref().and_then(|backing| backing.size);
            device.replace_backing(Some(backing), size)?;
        }
        device.background.start_periodic(
            config,
            &device.recompressor,
            device.destager.as_ref(),
            device.engine.origin.policy(),
        )?;
        Ok(device)
    }

    /// The memory limit in bytes, if there is one.
    pub fn mem_limit(&self) -> Option<u64> {
        let frames = self.engine.limit.budget.limit();
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
        self.engine.limit.budget.set_limit(frames);
        self.engine.waker.wake();
        self.engine.remember()
    }

    /// Starts `mem_used_max` again from what is used now.
    pub fn reset_mem_used_max(&self) {
        self.engine.limit.budget.reset_max_used();
    }

    /// Empties sparse zspages into fuller ones of their class until none can be freed that way;
    /// returns the page frames freed.
    pub fn compact(&self) -> u64 {
        self.engine.compact()
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
        self.reader.scrub(from)
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
    /// are destaged to an image; EROFS for one that is read-only, and after [`Device::refuse_changes`].
    pub fn reset(&self) -> Result<()> {
        if self.engine.origin.destages() {
            return Err(Error::Refused {
                what: "reset",
                reason: "the data is the image's".to_owned(),
                errno: Errno::PERM.into(),
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
                errno: Errno::BUSY.into(),
            })
        })
    }

    fn forget(&self) {
        self.writer.clear(0..self.engine.shards.layout.pages());
        for index in self.engine.shards.layout.shards() {
            self.engine.shards.lock(index).reset_counts();
        }
        self.engine.counts.reset();
        self.engine.spilled.damage.reset();
        self.engine.latencies.reset();
        self.engine.limit.budget.reset_max_used();
        self.set_sector_size(None);
    }

    /// What whoever made a block device of it last had for sectors; `None` if nobody did, or its data
    /// was forgotten since. A saved image has it too.
    pub fn sector_size(&self) -> Option<SectorSize> {
        SectorSize::of_bytes(self.engine.sector_bytes.load(Relaxed))
    }

    /// Remembers what a block device that is made of it has for sectors.
    pub fn set_sector_size(&self, size: Option<SectorSize>) {
        let bytes = size.map_or(0, SectorSize::bytes);
        self.engine.sector_bytes.store(bytes, Relaxed);
        self.engine.note_changes();
    }

    /// Has all that was written to the device before this in its image, durably. Nothing to do for
    /// one that has none, or is a snapshot.
    ///
    /// # Errors
    /// [`Error::Io`] if the image cannot be written to: what it does not have is in memory, and the
    /// next call tries again. Once the kernel could not make durable what was written, this fails
    /// for ever: what that loses is not known.
    pub fn sync(&self) -> Result<()> {
        self.destager
            .as_ref()
            .map_or(Ok(()), |destager| destager.sync())
    }

    /// Writes nothing more to the backing: the device is about to be dropped. Writers that wait for
    /// room are sent away. Returns whether what was under way ended within `timeout`.
    pub fn stop_spilling(&self, timeout: Duration) -> bool {
        self.engine.limit.throttle.close();
        let (done, answer) = channel::bounded(1);
        self.command(Command::Complete { done });
        answer.recv_timeout(timeout).is_ok()
    }
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
        OriginUse::WriteBack(policy) => Origin::WriteBack(image, policy),
        OriginUse::Snapshot => Origin::Snapshot(image),
    })
}

impl Drop for Device {
    fn drop(&mut self) {
        self.background.end_syncing();
        if let Err(error) = self.sync() {
            let pages = self.dirty_pages();
            tracing::error!(
                "{pages} pages are lost that could not be written to the image: {error}"
            );
        }
        self.engine.limit.throttle.close();
        self.engine.stop();
        self.background.end(&self.engine);
    }
}
