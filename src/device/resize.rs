//! How many pages a device has, while it is in use.

use rustix::io::Errno;

use crate::sync::atomic::Ordering::Relaxed;

use super::Device;
use crate::config::check_size;
use crate::error::{Error, Result};
use crate::size::human_size;
use crate::units::{PAGE_SHIFT, PAGE_SIZE};

impl Device {
    /// Bytes that the device may be grown to.
    pub fn max_size(&self) -> u64 {
        self.engine.shards.layout.capacity() << PAGE_SHIFT
    }

    /// Makes the device larger, at any time, or smaller, while nobody uses it and if nothing is
    /// beyond the new end. Who uses it learns of more when he asks again: what he was told stays
    /// true.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for what is no size of a device; [`Error::Refused`], EFBIG beyond
    /// [`Device::max_size`], EPERM over an image, EBUSY for a smaller size while the device is in use or there is data
    /// beyond it, EROFS after [`Device::refuse_changes`].
    pub fn resize(&self, bytes: u64) -> Result<()> {
        self.resize_to(bytes, false)
    }

    /// As [`Device::resize`], but what is beyond a new end is discarded first.
    ///
    /// # Errors
    /// Those of [`Device::resize`], but for data beyond it.
    pub fn resize_discarding(&self, bytes: u64) -> Result<()> {
        self.resize_to(bytes, true)
    }

    fn resize_to(&self, bytes: u64, discard: bool) -> Result<()> {
        check_size("disksize", bytes)?;
        let refuse = |errno: Errno, reason: String| {
            Err(Error::Refused {
                what: "disksize",
                reason,
                errno: errno.into(),
            })
        };
        if self.engine.origin.image().is_some() && bytes != self.size() {
            return refuse(Errno::PERM, "its image has one size".to_owned());
        }
        let most = self.max_size();
        if bytes > most {
            let reason = format!(
                "it can grow to {}: `DeviceConfig::max_size` says how far",
                human_size(most)
            );
            return refuse(Errno::FBIG, reason);
        }
        let resizing = self.resizing.lock();
        if bytes >= self.size() {
            self.check_changeable()?;
            self.engine.shards.layout.resize(bytes >> PAGE_SHIFT);
            return self.engine.remember();
        }
        // Who saves a device for the last time keeps its users out, and then its size.
        drop(resizing);
        let shrink = || {
            self.check_changeable()?;
            Ok(self.shrink(bytes, discard))
        };
        match self.users.while_none(shrink).transpose()? {
            Some(true) => self.engine.remember(),
            Some(false) => refuse(
                Errno::BUSY,
                "there is data beyond that: `Device::resize_discarding` forgets it".to_owned(),
            ),
            None => refuse(
                Errno::BUSY,
                "the device is in use; unmount, detach or disconnect it first".to_owned(),
            ),
        }
    }

    /// Returns false, and leaves all as it is, if there is data beyond.
    fn shrink(&self, bytes: u64, discard: bool) -> bool {
        let _one_at_a_time = self.resizing.lock();
        let layout = &self.engine.shards.layout;
        let pages = bytes / PAGE_SIZE as u64;
        let beyond = pages..layout.pages();
        if discard {
            let freed = self.writer.clear(beyond.clone());
            self.engine.counts.notify_free.fetch_add(freed, Relaxed);
        }
        let is_empty = layout.shards().all(|index| {
            let slots = layout.slots_of(index, beyond.clone());
            self.engine.shards.lock(index).next_used(slots).is_none()
        });
        if is_empty {
            layout.resize(pages);
        }
        is_empty
    }
}
