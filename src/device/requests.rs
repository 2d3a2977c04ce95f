//! The requests of a device's users.

use std::ops::{ControlFlow, Range};

use super::Device;
use crate::block_device::BlockDevice;
use crate::error::{Error, Result};
use crate::latency::Operation;
use crate::origin::SyncPolicy;
use crate::sync::atomic::Ordering::Relaxed;
use crate::units::{Extent, PAGE_SHIFT, PAGE_SIZE, PageIndex};
use crate::users::{User, Who};

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        self.engine.shards.layout.pages() << PAGE_SHIFT
    }

    fn enter(&self, who: Who) -> User {
        self.users.enter(who)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let timed = self.timed(Operation::Read, offset, buf.len() as u64, || {
            self.reader.read(offset, buf)
        });
        timed.inspect_err(|error| {
            self.engine.counts.failed_reads.fetch_add(1, Relaxed);
            // A damaged record was logged when it was found.
            if !matches!(error, Error::Damaged { .. })
                && let Some(end) = self.engine.log_limit.admit()
            {
                tracing::error!("read of {} bytes at {offset}: {error}{end}", buf.len());
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let timed = self.timed(Operation::Write, offset, data.len() as u64, || {
            self.check_changeable()?;
            self.writer.write(offset, data)
        });
        timed.inspect_err(|error| {
            tracing::debug!("write of {} bytes at {offset}: {error}", data.len());
            self.note_failed_write(error);
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let timed = self.timed(Operation::Discard, offset, len, || {
            let pages = self.zero_ends(offset, len)?;
            let freed = self.writer.discard(pages)?;
            self.engine.counts.notify_free.fetch_add(freed, Relaxed);
            Ok(())
        });
        timed.inspect_err(|error| self.note_failed_write(error))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let timed = self.timed(Operation::Write, offset, len, || {
            let pages = self.zero_ends(offset, len)?;
            self.writer.fill_zero(pages)
        });
        timed.inspect_err(|error| self.note_failed_write(error))
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
        self.engine.origin.destages()
    }

    fn has_flush(&self) -> bool {
        self.engine.origin.policy() == Some(SyncPolicy::Flush)
    }

    fn offers_flush(&self) -> bool {
        !self.engine.origin.destages() || self.has_flush()
    }

    fn prefetch(&self, range: Range<u64>) -> Result<()> {
        self.reader.prefetch(range.clone()).inspect_err(|error| {
            let Range { start, end } = range;
            tracing::error!("prefetch of {} bytes at {start}: {error}", end - start);
            self.engine.counts.failed_reads.fetch_add(1, Relaxed);
        })
    }

    fn read_would_wait(&self, range: Range<u64>) -> bool {
        self.reader.read_would_block(range)
    }

    fn write_would_wait(&self, range: Range<u64>) -> bool {
        self.reader.write_would_block(range)
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        self.reader.extents(range, visit);
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
        let latencies = &self.engine.latencies;
        latencies.of_request(operation, offset, bytes, work)
    }

    /// Counts a request that changed nothing, or not all that it was to.
    fn note_failed_write(&self, error: &Error) {
        self.engine.counts.failed_writes.fetch_add(1, Relaxed);
        self.engine.warn_of_no_space(error);
    }

    /// Zeroes the part pages at the ends of a range; returns the whole pages between them.
    fn zero_ends(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        self.check_changeable()?;
        let page = PAGE_SIZE as u64;
        let end = offset + len;
        let whole = offset.next_multiple_of(page)..end / page * page;
        let zero = |from: u64, to: u64| {
            let (first, within) = (PageIndex((from / page) as u32), (from % page) as usize);
            self.writer.zero_part(first, within, (to - from) as usize)
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
        zeroed?;
        Ok(whole.start / page..(whole.end / page).max(whole.start / page))
    }
}
