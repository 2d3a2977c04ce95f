//! A small device in memory whose page states and failures the tests decide.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use support::HANG;
use uzram::{BlockDevice, Error, Extent, PAGE_SIZE, PageState, Result};

/// Bytes in a test device: many requests' worth.
pub(crate) const SIZE: u64 = 72 << 20;

/// What a flush touches, for [`MemoryDevice::shut`] and [`MemoryDevice::break_range`].
pub(crate) const FLUSH_RANGE: Range<u64> = SIZE..SIZE + 1;

pub(crate) struct MemoryDevice {
    inner: Mutex<Inner>,
    gate: Mutex<Gate>,
    changed: Condvar,
    pub(crate) flushes: AtomicU64,
}

/// Where reads and writes wait, and how many do.
struct Gate {
    shut: Range<u64>,
    waiting: usize,
}

struct Inner {
    bytes: Vec<u8>,
    states: Vec<PageState>,
    /// Reads and writes that touch this fail.
    broken: Range<u64>,
}

impl MemoryDevice {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                bytes: vec![0; SIZE as usize],
                states: vec![PageState::Empty; SIZE as usize / PAGE_SIZE],
                broken: 0..0,
            }),
            gate: Mutex::new(Gate {
                shut: 0..0,
                waiting: 0,
            }),
            changed: Condvar::new(),
            flushes: AtomicU64::new(0),
        }
    }

    /// Makes reads and writes wait where they touch `range`, until another is named.
    pub(crate) fn shut(&self, range: Range<u64>) {
        self.gate.lock().shut = range;
        self.changed.notify_all();
    }

    /// Waits until `count` requests wait.
    pub(crate) fn await_waiting(&self, count: usize) {
        let mut gate = self.gate.lock();
        while gate.waiting < count {
            let timeout = self.changed.wait_for(&mut gate, HANG);
            assert!(!timeout.timed_out(), "only {} wait", gate.waiting);
        }
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.gate.lock().waiting
    }

    /// Whether a request for `range` would not pass the gate now.
    fn is_shut(&self, range: &Range<u64>) -> bool {
        self.gate.lock().bars(range)
    }

    fn pass(&self, offset: u64, len: usize) {
        let mut gate = self.gate.lock();
        let range = offset..offset + len as u64;
        if !gate.bars(&range) {
            return;
        }
        gate.waiting += 1;
        self.changed.notify_all();
        while gate.bars(&range) {
            self.changed.wait(&mut gate);
        }
        gate.waiting -= 1;
    }

    /// Makes reads fail with EIO and writes with ENOSPC where they touch `range`.
    pub(crate) fn break_range(&self, range: Range<u64>) {
        self.inner.lock().broken = range;
    }

    pub(crate) fn state(&self, page: usize) -> PageState {
        self.inner.lock().states[page]
    }

    pub(crate) fn set_state(&self, page: usize, state: PageState) {
        self.inner.lock().states[page] = state;
    }

    /// Fills a range, past the gate.
    pub(crate) fn write_pattern(&self, offset: usize, length: usize) {
        let mut inner = self.inner.lock();
        let bytes = support::noise(offset as u64 + 1, length);
        inner.bytes[offset..offset + length].copy_from_slice(&bytes);
        let pages = offset / PAGE_SIZE..(offset + length).div_ceil(PAGE_SIZE);
        inner.states[pages].fill(PageState::Resident);
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        self.inner.lock().bytes[range].to_vec()
    }
}

impl Gate {
    fn bars(&self, range: &Range<u64>) -> bool {
        range.start < self.shut.end && range.end > self.shut.start
    }
}

impl Inner {
    fn touches_broken(&self, offset: u64, len: usize) -> bool {
        offset < self.broken.end && offset + len as u64 > self.broken.start
    }

    fn fill(&mut self, offset: u64, len: u64, state: PageState) {
        let (start, end) = (offset as usize, (offset + len) as usize);
        self.bytes[start..end].fill(0);
        let whole = start.div_ceil(PAGE_SIZE)..end / PAGE_SIZE;
        if whole.start < whole.end {
            self.states[whole].fill(state);
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.pass(offset, buf.len());
        let inner = self.inner.lock();
        if inner.touches_broken(offset, buf.len()) {
            return Err(Error::Unreadable {
                page: (inner.broken.start / 4096) as u32,
                source: std::io::Error::other("a test broke it"),
            });
        }
        buf.copy_from_slice(&inner.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.pass(offset, data.len());
        let mut inner = self.inner.lock();
        if inner.touches_broken(offset, data.len()) {
            return Err(Error::NoSpace("a test took it"));
        }
        inner.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        if !data.is_empty() {
            let last = (offset as usize + data.len() - 1) / PAGE_SIZE;
            inner.states[offset as usize / PAGE_SIZE..=last].fill(PageState::Resident);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass(offset, len as usize);
        self.inner.lock().fill(offset, len, PageState::Empty);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.lock().fill(offset, len, PageState::Zero);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.pass(FLUSH_RANGE.start, 1);
        if self.inner.lock().touches_broken(FLUSH_RANGE.start, 1) {
            return Err(Error::Io {
                action: "flush".to_owned(),
                source: std::io::Error::other("a test broke it"),
            });
        }
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) -> Result<()> {
        let pages = range.start as usize / PAGE_SIZE..(range.end as usize).div_ceil(PAGE_SIZE);
        self.pass(range.start, (range.end - range.start) as usize);
        let mut inner = self.inner.lock();
        if inner.touches_broken(range.start, (range.end - range.start) as usize) {
            return Err(Error::Unreadable {
                page: (inner.broken.start / 4096) as u32,
                source: std::io::Error::other("a test broke it"),
            });
        }
        for state in &mut inner.states[pages] {
            if *state == PageState::WrittenBack {
                *state = PageState::Resident;
            }
        }
        Ok(())
    }

    fn read_would_wait(&self, range: Range<u64>) -> bool {
        self.is_shut(&range)
    }

    fn write_would_wait(&self, range: Range<u64>) -> bool {
        self.is_shut(&range)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        let inner = self.inner.lock();
        let mut at = range.start;
        while at < range.end {
            let state = inner.states[at as usize / PAGE_SIZE];
            let mut page = at as usize / PAGE_SIZE + 1;
            while (page * PAGE_SIZE) < range.end as usize && inner.states[page] == state {
                page += 1;
            }
            let end = range.end.min((page * PAGE_SIZE) as u64);
            let extent = Extent {
                offset: at,
                len: end - at,
                state,
            };
            if visit(extent).is_break() {
                return;
            }
            at = end;
        }
    }
}
