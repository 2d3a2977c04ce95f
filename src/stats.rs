//! What a device counts.

use serde::{Deserialize, Serialize};

/// A snapshot of a device's counters. Bytes unless a name says pages; the names are zram's where
/// zram has them (`Documentation/admin-guide/blockdev/zram.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes in the device.
    pub disksize: u64,
    /// 4096 times the pages that hold data, resident, same-filled or written back.
    pub orig_data_size: u64,
    /// Compressed bytes of resident pages.
    pub compr_data_size: u64,
    /// Bytes of whole page frames the pool holds.
    pub mem_used_total: u64,
    /// Most that `mem_used_total` may be; 0 for no limit.
    pub mem_limit: u64,
    /// Most that `mem_used_total` has been since it was last reset.
    pub mem_used_max: u64,
    /// Bytes of the tables that say where pages are: 4 KiB for each 2 MiB in which there is data, half as
    /// much again for marks over an image: at worst the size of the device / 512.
    pub slot_table_bytes: u64,
    /// Bytes of dictionaries, and of what compressing with those in use takes.
    pub dictionary_bytes: u64,
    /// Most that both may be together.
    pub table_limit: u64,
    /// Pages that hold one repeated pattern, and cost no memory but for their slots.
    pub same_pages: u64,
    /// Page frames that compaction has freed, ever.
    pub pages_compacted: u64,
    /// Resident pages stored raw because compression did not pay.
    pub huge_pages: u64,
    /// Pages ever written that were stored raw.
    pub huge_pages_since: u64,
    /// Pages that recompression has made smaller, ever.
    pub recompressed_pages: u64,
    /// Pages compressed in the pool.
    pub resident_pages: u64,
    /// Pages in the backing, or still in the saved image that is restored.
    pub written_back_pages: u64,
    /// Bytes the spill occupies in the backing.
    pub backing_bytes_used: u64,
    /// The part of `backing_bytes_used` that is still referred to.
    pub backing_bytes_live: u64,
    /// Bytes ever written to the backing.
    pub backing_bytes_written: u64,
    /// Bytes written to the backing in the last day, to a quarter of an hour.
    pub backing_bytes_day: u64,
    /// Pages ever read back from the backing for a client.
    pub bd_reads: u64,
    /// Pages ever written to the backing.
    pub bd_writes: u64,
    /// Pages in memory that are not in the image as they are.
    pub dirty_pages: u64,
    /// Pages ever read from the image, those read ahead too.
    pub origin_reads: u64,
    /// Pages ever written to the image.
    pub origin_writes: u64,
    /// Pages ever discarded in the image.
    pub origin_discards: u64,
    /// Times that the image was made durable.
    pub origin_syncs: u64,
    /// Bytes that are still only in the saved image that is restored.
    pub restore_bytes_left: u64,
    /// Records found to be damaged, each of which is a page that was lost.
    pub damaged_records: u64,
    /// Requests to read that failed.
    pub failed_reads: u64,
    /// Requests to write that failed.
    pub failed_writes: u64,
    /// Writes that waited for memory.
    pub write_stalls: u64,
    /// Discard requests' pages that held data and were freed.
    pub notify_free: u64,
    /// Resident set of this process.
    pub rss_bytes: u64,
}

/// Resident set of this process; 0 where the kernel does not tell.
pub(crate) fn rss_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split_whitespace()
        .nth(1)
        .and_then(|field| field.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
