//! What requests count outside of shards.

use crossbeam::utils::CachePadded;

use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;

/// What requests count outside of shards.
#[derive(Debug, Default)]
pub(crate) struct RequestCounts {
    pub(crate) failed_reads: AtomicU64,
    pub(crate) failed_writes: AtomicU64,
    pub(crate) notify_free: AtomicU64,
    /// Writes that waited for memory.
    pub(crate) write_stalls: AtomicU64,
    /// Pages read back from the backing.
    pub(crate) bd_reads: CachePadded<AtomicU64>,
    /// Pages written to the backing.
    pub(crate) bd_writes: AtomicU64,
    /// Pages that recompression has made smaller.
    pub(crate) recompressed: AtomicU64,
    /// Pages read from the image.
    pub(crate) origin_reads: AtomicU64,
}

impl RequestCounts {
    /// Starts all counts again.
    pub(crate) fn reset(&self) {
        let Self {
            failed_reads,
            failed_writes,
            notify_free,
            write_stalls,
            bd_reads,
            bd_writes,
            recompressed,
            origin_reads,
        } = self;
        for count in [
            failed_reads,
            failed_writes,
            notify_free,
            write_stalls,
            bd_reads,
            bd_writes,
            recompressed,
            origin_reads,
        ] {
            count.store(0, Relaxed);
        }
    }
}
