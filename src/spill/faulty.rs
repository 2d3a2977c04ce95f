//! A backing in memory that can be told to misbehave, for tests, and an image that can be.

#[cfg(shuttle)]
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
#[cfg(shuttle)]
use std::sync::Arc;

use super::address::{SEGMENT_BYTES, StoreSegment};
use super::backing::{Backing, Store};
use super::blocks::{BLOCK, is_aligned};
use super::config::BackingKeep;
use super::handover::{Handover, Kind, StoreNote};
use super::memory::MemoryBacking;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::{Mutex, RwLock};

type Hook = Box<dyn Fn() + Send + Sync>;

/// The backing.
pub(crate) struct FaultyBacking {
    memory: MemoryBacking,
    pub(crate) fail_writes: AtomicBool,
    /// Whether writes do nothing, and seem to have worked.
    pub(crate) lose_writes: AtomicBool,
    pub(crate) fail_reads: AtomicBool,
    /// The segment whose reads fail.
    unreadable: Mutex<Option<u32>>,
    /// What goes wrong by itself.
    faults: Mutex<Option<Faults>>,
    /// What stands for an open file.
    file: File,
    before_capacity: RwLock<Option<Hook>>,
    before_write: RwLock<Option<Hook>>,
    before_read: RwLock<Option<Hook>>,
    after_read: RwLock<Option<Hook>>,
    before_discard: RwLock<Option<Hook>>,
}

impl FaultyBacking {
    /// An empty backing of so many segments that works.
    pub(crate) fn new(segments: u32) -> Self {
        Self {
            memory: MemoryBacking::new(segments),
            fail_writes: AtomicBool::new(false),
            lose_writes: AtomicBool::new(false),
            fail_reads: AtomicBool::new(false),
            unreadable: Mutex::new(None),
            faults: Mutex::new(None),
            file: File::open("/dev/null").expect("it is there"),
            before_capacity: RwLock::new(None),
            before_write: RwLock::new(None),
            before_read: RwLock::new(None),
            after_read: RwLock::new(None),
            before_discard: RwLock::new(None),
        }
    }

    /// Has reads of a segment fail from here on, or of none.
    pub(crate) fn fail_reads_of(&self, segment: Option<u32>) {
        *self.unreadable.lock() = segment;
    }

    /// Has things go wrong by chance from here on, or no longer.
    #[cfg(shuttle)]
    pub(crate) fn suffer(&self, faults: Option<Faults>) {
        *self.faults.lock() = faults;
    }

    /// What goes wrong with the next use, if anything does by itself.
    fn fault(&self, chance: fn(&Chances) -> u64) -> Option<Fault> {
        self.faults.lock().as_mut()?.next(chance)
    }

    /// Has `hook` called before it says how much it holds, in the thread that asks.
    pub(crate) fn before_capacity(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_capacity.write() = Some(Box::new(hook));
    }

    /// Has `hook` called before each write, in the writing thread.
    pub(crate) fn before_write(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_write.write() = Some(Box::new(hook));
    }

    /// Has `hook` called before each read, in the reading thread.
    pub(crate) fn before_read(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_read.write() = Some(Box::new(hook));
    }

    /// Has `hook` called after each read, in the reading thread.
    pub(crate) fn after_read(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.after_read.write() = Some(Box::new(hook));
    }

    /// Has `hook` called before each discard, in the discarding thread.
    pub(crate) fn before_discard(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_discard.write() = Some(Box::new(hook));
    }

    /// Lets `damage` change the contents of each segment.
    pub(crate) fn damage(&self, mut damage: impl FnMut(&mut [u8])) {
        for segment in self.memory.contents.lock().values_mut() {
            damage(segment);
        }
    }

    /// Lets `damage` change the contents of one segment, which has some.
    pub(crate) fn damage_segment(&self, segment: u32, damage: impl FnOnce(&mut [u8])) {
        let mut contents = self.memory.contents.lock();
        damage(
            contents
                .get_mut(&StoreSegment(segment))
                .expect("it was written to"),
        );
    }

    /// Puts what another backing holds in the place of what this one does.
    pub(crate) fn take_contents_of(&self, other: &Self) {
        let contents = other.memory.contents.lock().clone();
        *self.memory.contents.lock() = contents;
    }

    /// Segments that hold data.
    pub(crate) fn in_use(&self) -> usize {
        self.memory.segments_in_use()
    }
}

impl Backing for FaultyBacking {
    fn capacity(&self) -> io::Result<u64> {
        if let Some(hook) = &*self.before_capacity.read() {
            hook();
        }
        self.memory.capacity()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (segment, at) = StoreSegment::at(offset);
        assert!(at + data.len() <= SEGMENT_BYTES as usize);
        assert!(is_aligned(data, offset));
        if let Some(hook) = &*self.before_write.read() {
            hook();
        }
        let fault = self.fault(|chances| chances.writes);
        let fails = self.fail_writes.load(Relaxed) || fault.is_some_and(Fault::is_told);
        // A write that fails may have happened in part, and so may one that does not say so.
        let part = (data.len() / 2).next_multiple_of(BLOCK).min(data.len());
        let segments = self.memory.segments();
        let (segment, written) = match fault {
            None if fails => (segment, data.len() / 2),
            None if self.lose_writes.load(Relaxed) => (segment, 0),
            None => (segment, data.len()),
            Some(Fault::Refused | Fault::Lost) => (segment, 0),
            Some(Fault::Short | Fault::Torn) => (segment, part),
            Some(Fault::Misdirected) => (StoreSegment((segment.0 + 1) % segments), data.len()),
        };
        let stored = self
            .memory
            .write_at(segment.byte() + at as u64, &data[..written]);
        stored.expect("the device writes inside what there is");
        if fails {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }
}

impl Store for FaultyBacking {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if let Some(hook) = &*self.before_read.read() {
            hook();
        }
        let (segment, _) = StoreSegment::at(offset);
        if self.fail_reads.load(Relaxed) || *self.unreadable.lock() == Some(segment.0) {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        let fault = self.fault(|chances| chances.reads);
        if fault.is_some_and(Fault::is_told) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.memory.read_at(offset, buf)?;
        if fault.is_some() {
            misread(buf);
        }
        if let Some(hook) = &*self.after_read.read() {
            hook();
        }
        Ok(())
    }

    fn discard(&self, segment: Range<u64>) {
        if let Some(hook) = &*self.before_discard.read() {
            hook();
        }
        self.memory.discard(segment);
    }

    fn path(&self) -> &Path {
        Path::new("faulty")
    }

    fn handover(&self) -> Option<Handover<'_>> {
        Some(Handover {
            file: self.file.as_fd(),
            note: StoreNote::of_backing(self.path(), Kind::Made, BackingKeep::Keep),
        })
    }
}

/// Half of what was read is of somewhere else.
fn misread(buf: &mut [u8]) {
    let half = buf.len() / 2;
    buf[half..].reverse();
}

/// The store of an image, as it is but for the faults that it suffers. What the engine says it needs no
/// more is gone.
#[cfg(shuttle)]
pub(crate) struct FaultyImage {
    store: Arc<dyn Store>,
    faults: Mutex<Option<Faults>>,
    gone: Mutex<HashSet<StoreSegment>>,
}

#[cfg(shuttle)]
impl FaultyImage {
    pub(crate) fn new(store: Arc<dyn Store>, faults: Option<Faults>) -> Self {
        Self {
            store,
            faults: Mutex::new(faults),
            gone: Mutex::default(),
        }
    }

    /// Has reads go wrong by chance from here on, or no longer.
    pub(crate) fn suffer(&self, faults: Option<Faults>) {
        *self.faults.lock() = faults;
    }
}

#[cfg(shuttle)]
impl Store for FaultyImage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut faults = self.faults.lock();
        let fault = faults.as_mut().and_then(|f| f.next(|c| c.reads));
        drop(faults);
        if fault.is_some_and(Fault::is_told) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let (segment, _) = StoreSegment::at(offset);
        if self.gone.lock().contains(&segment) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.store.read_at(offset, buf)?;
        if fault.is_some() {
            misread(buf);
        }
        Ok(())
    }

    fn discard(&self, segment: Range<u64>) {
        let (segment, _) = StoreSegment::at(segment.start);
        self.gone.lock().insert(segment);
    }

    fn path(&self) -> &Path {
        self.store.path()
    }
}

/// How often things go wrong: of 1024 times.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chances {
    pub(crate) writes: u64,
    pub(crate) reads: u64,
}

/// What goes wrong by itself, by a seed.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    state: u64,
    chances: Chances,
    /// Whether what goes wrong is reported.
    told: bool,
}

/// What goes wrong with a write, or with a read.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing happens, and that is reported.
    Refused,
    /// Some of it happens, and that is reported.
    Short,
    /// Nothing happens, and it seems to have.
    Lost,
    /// Some of it happens, and it seems to have.
    Torn,
    /// It happens elsewhere.
    Misdirected,
}

impl Fault {
    fn is_told(self) -> bool {
        matches!(self, Self::Refused | Self::Short)
    }
}

impl Faults {
    #[cfg(shuttle)]
    pub(crate) fn new(seed: u64, chances: Chances, told: bool) -> Self {
        Self {
            state: seed,
            chances,
            told,
        }
    }

    fn next(&mut self, chance: fn(&Chances) -> u64) -> Option<Fault> {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let random = self.state >> 33;
        let kinds: &[Fault] = if self.told {
            &[Fault::Refused, Fault::Short]
        } else {
            &[Fault::Lost, Fault::Torn, Fault::Misdirected]
        };
        let strikes = random % 1024 < chance(&self.chances);
        strikes.then(|| kinds[(random >> 10) as usize % kinds.len()])
    }
}
