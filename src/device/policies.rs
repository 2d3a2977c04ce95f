//! What zram leaves to whoever runs it: which pages are idle, what is written back when, and how
//! much.

use std::time::Duration;

use rustix::io::Errno;

use super::Device;
use crate::config::check_daily_limit;
use crate::error::{Error, Result};
use crate::maintain::Command;
use crate::selection::Selection;
use crate::sync::channel;
use crate::units::PAGE_SHIFT;

impl Device {
    /// Marks the pages in memory as idle that were neither written nor read for `age`, or all;
    /// returns how many. A mark is gone when its page is written or read. Ages are known to a
    /// second at first; after a day of use a page may be three times as old as is known, but it is
    /// never taken for older than it is. Pages that are same-filled or spilled are not marked.
    pub fn mark_idle(&self, age: Option<Duration>) -> u64 {
        let engine = &*self.engine;
        engine.ages.mark_idle(&engine.shards, &engine.time, age)
    }

    /// Writes chosen pages back, those of them that are in memory; returns how many have left it.
    /// A page that is read, written or discarded meanwhile stays as it is.
    ///
    /// # Errors
    /// [`Error::Refused`]: ENODEV without a backing, EIO if that cannot be written to or what may
    /// be written is spent, EINTR once the device is stopping; [`Error::NoSpace`] if the backing is
    /// full. Some of the pages may have been written.
    pub fn write_back(&self, selection: Selection) -> Result<u64> {
        let (done, answer) = channel::bounded(1);
        self.command(Command::WriteBack { selection, done });
        answer.recv().unwrap_or_else(|_| {
            Err(Error::Refused {
                what: "writeback",
                reason: "the device is stopping".to_owned(),
                errno: Errno::INTR.into(),
            })
        })
    }

    /// Pages of the device, which a [`Selection`] may be of.
    pub fn pages(&self) -> u64 {
        self.size() >> PAGE_SHIFT
    }

    /// Has [`Device::write_back`] end early from here on, so that nobody waits for it.
    pub fn stop(&self) {
        self.engine.stop();
    }

    /// Pages that may still be written back, if [`Device::has_writeback_limit`].
    pub fn writeback_limit(&self) -> u64 {
        self.engine.spilled.quota.pages()
    }

    /// Sets how many pages may be written back from here on.
    pub fn set_writeback_limit(&self, pages: u64) {
        self.engine.spilled.quota.set_pages(pages);
        self.engine.note_changes();
        self.engine.waker.wake();
    }

    /// Whether the pages that are written back are limited. Then, once the limit is spent, writers
    /// at the memory limit find no space.
    pub fn has_writeback_limit(&self) -> bool {
        self.engine.spilled.quota.limits_pages()
    }

    /// Most bytes to write to the backing in any twenty-four hours, if that is limited.
    pub fn writeback_daily_limit(&self) -> Option<u64> {
        self.engine.spilled.quota.daily_limit()
    }

    /// Limits the bytes that are written to the backing in any twenty-four hours, or not. What was
    /// written in the last day counts. Once they are spent, writers at the memory limit find no
    /// space until some of them are a day old.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] below [`crate::DeviceConfig::MIN_DAILY_LIMIT`].
    pub fn set_writeback_daily_limit(&self, bytes: Option<u64>) -> Result<()> {
        bytes.map_or(Ok(()), check_daily_limit)?;
        self.engine.spilled.quota.limit_daily(bytes);
        self.engine.waker.wake();
        self.engine.remember()
    }

    /// Limits the pages that are written back, or not.
    pub fn enable_writeback_limit(&self, enable: bool) {
        self.engine.spilled.quota.limit_pages(enable);
        self.engine.note_changes();
        self.engine.waker.wake();
    }
}
