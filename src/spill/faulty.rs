//! A backing in memory that can be told to misbehave, for tests.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::backing::Backing;
use super::blocks::is_aligned;
use super::segment::SEGMENT_BYTES;
use super::stores::StoreSegment;
use crate::error::Result;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::{Mutex, RwLock};

type Hook = Box<dyn Fn() + Send + Sync>;

/// The backing.
pub(crate) struct FaultyBacking {
    segments: u32,
    contents: Mutex<HashMap<StoreSegment, Vec<u8>>>,
    pub(crate) fail_writes: AtomicBool,
    pub(crate) fail_reads: AtomicBool,
    /// The segment whose reads fail.
    unreadable: Mutex<Option<u32>>,
    before_write: RwLock<Option<Hook>>,
    before_read: RwLock<Option<Hook>>,
    after_read: RwLock<Option<Hook>>,
}

impl FaultyBacking {
    /// An empty backing of so many segments that works.
    pub(crate) fn new(segments: u32) -> Self {
        Self {
            segments,
            contents: Mutex::default(),
            fail_writes: AtomicBool::new(false),
            fail_reads: AtomicBool::new(false),
            unreadable: Mutex::new(None),
            before_write: RwLock::new(None),
            before_read: RwLock::new(None),
            after_read: RwLock::new(None),
        }
    }

    /// Has reads of a segment fail from here on, or of none.
    pub(crate) fn fail_reads_of(&self, segment: Option<u32>) {
        *self.unreadable.lock() = segment;
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

    /// Lets `damage` change the contents of each segment.
    pub(crate) fn damage(&self, mut damage: impl FnMut(&mut [u8])) {
        for segment in self.contents.lock().values_mut() {
            damage(segment);
        }
    }

    /// Lets `damage` change the contents of one segment, which has some.
    pub(crate) fn damage_segment(&self, segment: StoreSegment, damage: impl FnOnce(&mut [u8])) {
        let mut contents = self.contents.lock();
        damage(contents.get_mut(&segment).expect("it was written to"));
    }

    /// Puts what another backing holds in the place of what this one does.
    pub(crate) fn take_contents_of(&self, other: &Self) {
        let contents = other.contents.lock().clone();
        *self.contents.lock() = contents;
    }

    /// Segments that hold data.
    pub(crate) fn in_use(&self) -> usize {
        self.contents.lock().len()
    }
}

impl Backing for FaultyBacking {
    fn capacity(&self, _size: Option<u64>) -> Result<u32> {
        Ok(self.segments)
    }

    fn write(&self, segment: StoreSegment, offset: u32, data: &[u8]) -> io::Result<()> {
        assert!(
            segment.0 < self.segments && offset as usize + data.len() <= SEGMENT_BYTES as usize
        );
        assert!(is_aligned(data, u64::from(offset)));
        if let Some(hook) = &*self.before_write.read() {
            hook();
        }
        let fails = self.fail_writes.load(Relaxed);
        // A write that fails may have happened in part.
        let written = if fails { data.len() / 2 } else { data.len() };
        let mut contents = self.contents.lock();
        let bytes = contents
            .entry(segment)
            .or_insert_with(|| vec![0; SEGMENT_BYTES as usize]);
        bytes[offset as usize..offset as usize + written].copy_from_slice(&data[..written]);
        if fails {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if let Some(hook) = &*self.before_read.read() {
            hook();
        }
        if self.fail_reads.load(Relaxed) || *self.unreadable.lock() == Some(segment.0) {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        let contents = self.contents.lock();
        let bytes = contents.get(&segment).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(&bytes[offset as usize..offset as usize + buf.len()]);
        drop(contents);
        if let Some(hook) = &*self.after_read.read() {
            hook();
        }
        Ok(())
    }

    fn discard(&self, segment: StoreSegment) {
        self.contents.lock().remove(&segment);
    }

    fn path(&self) -> &Path {
        Path::new("faulty")
    }
}
