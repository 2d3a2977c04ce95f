//! A stand-in device: uncompressed pages in a map.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};

use parking_lot::RwLock;

use crate::block_device::BlockDevice;
use crate::config::DeviceConfig;
use crate::error::Result;
use crate::stats::Stats;
use crate::units::{Extent, PAGE_SIZE, Page, PageState};

/// The device.
pub struct Device {
    config: DeviceConfig,
    pages: RwLock<HashMap<u64, Box<Page>>>,
}

impl Device {
    /// Makes a device; spilling starts a thread that ends when the device is dropped.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`], or what opening the backing says.
    pub fn new(config: DeviceConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self {
            config,
            pages: RwLock::default(),
        })
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> Stats {
        let n = self.pages.read().len() as u64;
        Stats {
            disksize: self.config.size,
            orig_data_size: n * 4096,
            resident_pages: n,
            ..Stats::default()
        }
    }

    /// Sets or (with `None`) removes the limit; lowering it evicts down to it in the background.
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`] below one zspage.
    pub fn set_mem_limit(&self, _bytes: Option<u64>) -> Result<()> {
        Ok(())
    }

    /// Starts `mem_used_max` again from what is used now.
    pub fn reset_mem_used_max(&self) {}

    /// Empties sparse zspages into full ones; returns the page frames freed.
    pub fn compact(&self) -> u64 {
        0
    }

    /// Forgets all data, like a discard of the whole device, and starts the counters again.
    pub fn reset(&self) {
        self.pages.write().clear();
    }

    fn each(&self, offset: u64, len: u64, mut f: impl FnMut(u64, Range<usize>, usize)) {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let within = (at % 4096) as usize;
            let n = (PAGE_SIZE - within).min((end - at) as usize);
            f(at / 4096, within..within + n, (at - offset) as usize);
            at += n as u64;
        }
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.config.size
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let pages = self.pages.read();
        self.each(offset, buf.len() as u64, |p, r, at| {
            let out = &mut buf[at..at + r.len()];
            match pages.get(&p) {
                Some(page) => out.copy_from_slice(&page[r]),
                None => out.fill(0),
            }
        });
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut pages = self.pages.write();
        self.each(offset, data.len() as u64, |p, r, at| {
            let n = r.len();
            pages.entry(p).or_insert_with(|| Box::new([0; PAGE_SIZE]))[r]
                .copy_from_slice(&data[at..at + n]);
        });
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut pages = self.pages.write();
        self.each(offset, len, |p, r, _| {
            if r.len() == PAGE_SIZE {
                pages.remove(&p);
            } else if let Some(page) = pages.get_mut(&p) {
                page[r].fill(0);
            }
        });
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let mut pages = self.pages.write();
        self.each(offset, len, |p, r, _| {
            pages.entry(p).or_insert_with(|| Box::new([0; PAGE_SIZE]))[r].fill(0)
        });
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        let pages = self.pages.read();
        let state = |p: u64| {
            if pages.contains_key(&p) {
                PageState::Resident
            } else {
                PageState::Empty
            }
        };
        let mut at = range.start;
        while at < range.end {
            let first = state(at / 4096);
            let mut end = (at / 4096 + 1) * 4096;
            while end < range.end && state(end / 4096) == first {
                end += 4096;
            }
            let end = end.min(range.end);
            if visit(Extent {
                offset: at,
                len: end - at,
                state: first,
            })
            .is_break()
            {
                return;
            }
            at = end;
        }
    }
}
