//! An image in memory that can be told to misbehave, for tests.

use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::io::Errno;

use super::image::Image;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, RwLock};
use crate::units::PAGE_SIZE;

type Hook = Box<dyn Fn() + Send + Sync>;

/// The image. What was written and not synced is told from what was.
pub(crate) struct FaultyImage {
    bytes: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    /// The errno of every write, or `None`.
    pub(crate) fail_writes: Mutex<Option<Errno>>,
    pub(crate) fail_reads: AtomicBool,
    pub(crate) fail_syncs: AtomicBool,
    /// Writes and discards that were made.
    pub(crate) calls: AtomicU64,
    before_write: RwLock<Option<Hook>>,
    after_read: RwLock<Option<Hook>>,
}

impl FaultyImage {
    /// An image of so many pages that works, each page full of `byte`.
    pub(crate) fn new(pages: usize, byte: u8) -> Self {
        let bytes = vec![byte; pages * PAGE_SIZE];
        Self {
            durable: Mutex::new(bytes.clone()),
            bytes: Mutex::new(bytes),
            fail_writes: Mutex::default(),
            fail_reads: AtomicBool::new(false),
            fail_syncs: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            before_write: RwLock::new(None),
            after_read: RwLock::new(None),
        }
    }

    /// An image that works, with what this one holds.
    #[cfg(not(shuttle))]
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(0, 0);
        *copy.bytes.lock() = self.bytes.lock().clone();
        *copy.durable.lock() = self.durable.lock().clone();
        copy
    }

    /// Has `hook` called before each write and discard, in the thread that makes it.
    pub(crate) fn before_write(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.before_write.write() = Some(Box::new(hook));
    }

    /// Has `hook` called after each read, in the thread that makes it.
    pub(crate) fn after_read(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.after_read.write() = Some(Box::new(hook));
    }

    /// What a page is after a power cut.
    pub(crate) fn durable_page(&self, page: usize) -> Vec<u8> {
        self.durable.lock()[page * PAGE_SIZE..][..PAGE_SIZE].to_vec()
    }

    fn change(&self, at: u64, len: usize, change: impl FnOnce(&mut [u8])) -> io::Result<()> {
        assert!(at.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE));
        if let Some(hook) = &*self.before_write.read() {
            hook();
        }
        self.calls.fetch_add(1, Relaxed);
        if let Some(errno) = *self.fail_writes.lock() {
            return Err(errno.into());
        }
        change(&mut self.bytes.lock()[at as usize..at as usize + len]);
        Ok(())
    }
}

impl Image for FaultyImage {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.fail_reads.load(Relaxed) {
            return Err(Errno::IO.into());
        }
        buf.copy_from_slice(&self.bytes.lock()[at as usize..at as usize + buf.len()]);
        if let Some(hook) = &*self.after_read.read() {
            hook();
        }
        Ok(())
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.change(at, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        self.change(at, len as usize, |bytes| bytes.fill(0))
    }

    fn sync(&self) -> io::Result<()> {
        if self.fail_syncs.load(Relaxed) {
            return Err(Errno::IO.into());
        }
        let bytes = self.bytes.lock().clone();
        *self.durable.lock() = bytes;
        Ok(())
    }

    fn next_data(&self, at: u64) -> Range<u64> {
        at..self.bytes.lock().len() as u64
    }

    fn path(&self) -> &Path {
        Path::new("faulty")
    }
}
