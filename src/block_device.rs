//! The trait between frontends and what they serve.

use std::ops::{ControlFlow, Range};

use crate::error::{Error, Result};
use crate::units::Extent;
use crate::users::{User, Who};

/// A block device that any number of threads may use at once.
///
/// What the caller owes: it checks a request once, with [`check_range`], before it calls; an
/// implementation may panic on a range past [`BlockDevice::size`].
///
/// What the implementation owes: a request may have any alignment; requests on different pages
/// are independent; two that overlap on a page take effect on that page one after the other, so a
/// page is never a mix of two writes of the whole page. A failed write may have taken effect on
/// some of its pages. No call panics or waits without bound.
pub trait BlockDevice: Send + Sync {
    /// Bytes in the device, a multiple of [`crate::PAGE_SIZE`].
    fn size(&self) -> u64;

    /// Admits a user: a frontend calls this for each connection or open file that requests come
    /// through, and keeps the answer as long as they may come. A device that counts its users does
    /// not let their data be taken away; this may wait for that to be over.
    fn enter(&self, who: Who) -> User {
        let _ = who;
        User::uncounted()
    }

    /// Whether everything that would change what is on it is refused (EROFS). Frontends say so to
    /// their clients, and refuse it first.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`Error::Unreadable`] or [`Error::Corrupt`] (EIO) if a page is lost.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Stores `data` at `offset`.
    ///
    /// # Errors
    /// [`Error::NoSpace`] (ENOSPC) if the memory limit is met and nothing can be spilled;
    /// those of [`BlockDevice::read`] if part of a page is written and the rest cannot be read.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes and gives back what the whole pages in the
    /// range cost.
    ///
    /// # Errors
    /// Those of [`BlockDevice::write`], for the part pages at the ends.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes `len` bytes at `offset` read as zeroes, and keeps the pages as data.
    ///
    /// # Errors
    /// Those of [`BlockDevice::write`], for the part pages at the ends.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes what was acknowledged as durable as this device promises; for memory, nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if the promise cannot be kept.
    fn flush(&self) -> Result<()>;

    /// Whether [`BlockDevice::flush`] does anything. Where it does not, nobody need ask for it.
    fn has_flush(&self) -> bool {
        true
    }

    /// Whether clients are to be told that they can flush: not where what is on the device outlives
    /// it, and a flush does nothing for that.
    fn offers_flush(&self) -> bool {
        true
    }

    /// Whether the data is there when the device is not any more.
    fn outlives_the_device(&self) -> bool {
        false
    }

    /// Makes `range` quick to read, as far as there is room for that; a device that is always
    /// quick has nothing to do.
    ///
    /// # Errors
    /// Those of [`BlockDevice::read`].
    fn prefetch(&self, range: Range<u64>) -> Result<()> {
        let _ = range;
        Ok(())
    }

    /// Whether reading `range` would wait for something slower than memory, as it looks. This is
    /// asked before every small request, to have another thread make those that wait: it must cost
    /// little of what the request does.
    fn read_would_wait(&self, range: Range<u64>) -> bool {
        let _ = range;
        false
    }

    /// The same of writing to `range`, discarding it or filling it with zeroes.
    fn write_would_wait(&self, range: Range<u64>) -> bool {
        let _ = range;
        false
    }

    /// Visits the extents of `range` in order, coalesced and clipped to it, until `visit` breaks.
    /// The answer is a snapshot of each page, not of the range.
    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>);
}

/// Checks once, at the edge, that `len` bytes at `offset` lie inside a device of `size` bytes.
///
/// # Errors
/// [`Error::OutOfRange`] (EINVAL).
pub fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        end => Err(Error::OutOfRange {
            offset,
            end: end.unwrap_or(u64::MAX),
            size,
        }),
    }
}
