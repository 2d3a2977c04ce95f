//! What a device tells of itself.

use std::path::PathBuf;

use super::Device;
use crate::engine::Spilled;
use crate::latency::OperationLatencies;
use crate::maintain::Command;
use crate::pool::ClassStats;
use crate::shard::Counts;
use crate::stats::{Stats, rss_bytes};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel;
use crate::units::{PAGE_SHIFT, PAGE_SIZE};

impl Device {
    /// A snapshot of the counters. Each shard's are taken at one time, but not all shards'.
    pub fn stats(&self) -> Stats {
        let engine = &*self.engine;
        let (budget, requests) = (&engine.limit.budget, &engine.counts);
        let Spilled {
            segments,
            damage,
            log_counts,
            quota,
            ..
        } = &engine.spilled;
        let page = PAGE_SIZE as u64;
        // Both change while they are read: what is live is never shown to be more than is used.
        let (live, used) = (segments.live_bytes(), log_counts.used_bytes());
        let mut stats = Stats {
            disksize: self.size(),
            mem_used_total: budget.used() * page,
            mem_limit: self.mem_limit().unwrap_or(0),
            mem_used_max: budget.max_used() * page,
            dictionary_bytes: engine.codecs.dictionaries.frames() * page,
            table_limit: engine.tables.budget.limit() * page,
            backing_bytes_used: used,
            backing_bytes_live: live.min(used),
            backing_bytes_written: log_counts.written_bytes(),
            backing_bytes_day: quota.bytes_in_day(engine.time.now()),
            bd_reads: requests.bd_reads.load(Relaxed),
            bd_writes: requests.bd_writes.load(Relaxed),
            recompressed_pages: requests.recompressed.load(Relaxed),
            damaged_records: damage.count(),
            failed_reads: requests.failed_reads.load(Relaxed),
            failed_writes: requests.failed_writes.load(Relaxed),
            notify_free: requests.notify_free.load(Relaxed),
            origin_reads: requests.origin_reads.load(Relaxed),
            write_stalls: requests.write_stalls.load(Relaxed),
            restore_bytes_left: segments.image_bytes(),
            rss_bytes: rss_bytes(),
            ..Stats::default()
        };
        if let Some(destager) = &self.destager {
            stats.origin_writes = destager.counts.writes.load(Relaxed);
            stats.origin_discards = destager.counts.holes.load(Relaxed);
            stats.origin_syncs = destager.counts.syncs.load(Relaxed);
        }
        for index in self.engine.shards.layout.shards() {
            let (counts, dirty, tables) = {
                let shard = self.engine.shards.lock(index);
                (shard.counts(), shard.dirty_pages(), shard.table_pages())
            };
            stats.dirty_pages += dirty;
            stats.slot_table_bytes += tables * page;
            stats.orig_data_size += pages_with_data(&counts) * page;
            stats.compr_data_size += counts.compr_bytes;
            stats.same_pages += counts.same_pages;
            stats.resident_pages += counts.resident_pages;
            stats.written_back_pages += counts.written_back_pages;
            stats.huge_pages += counts.huge_pages;
            stats.huge_pages_since += counts.huge_pages_since;
            stats.pages_compacted += counts.pages_compacted;
        }
        stats
    }

    /// How long operations took.
    pub fn latencies(&self) -> OperationLatencies {
        self.engine.latencies.snapshot()
    }

    /// Bytes in pages that hold data: [`Stats::orig_data_size`] at a fraction of the cost.
    pub fn orig_data_size(&self) -> u64 {
        self.pages_with_data() << PAGE_SHIFT
    }

    pub(super) fn pages_with_data(&self) -> u64 {
        let pages = |index| pages_with_data(&self.engine.shards.lock(index).counts());
        self.engine.shards.layout.shards().map(pages).sum()
    }

    /// Usage of the pools by size class, all shards together.
    pub fn class_stats(&self) -> Vec<ClassStats> {
        let mut total: Vec<ClassStats> = Vec::new();
        for index in self.engine.shards.layout.shards() {
            let classes = self.engine.shards.lock(index).pool().class_stats();
            if total.is_empty() {
                total = classes;
                continue;
            }
            for (sum, class) in total.iter_mut().zip(classes) {
                sum.objects += class.objects;
                sum.objects_used += class.objects_used;
                sum.frames += class.frames;
                sum.frames_freeable += class.frames_freeable;
            }
        }
        total
    }

    /// Whether a client of a frontend uses the device.
    pub fn is_in_use(&self) -> bool {
        self.users.any()
    }

    /// Whether a client of a frontend uses the device or has done so.
    pub fn was_used(&self) -> bool {
        self.users.ever_any()
    }

    /// Pages in memory that are not in the image as they are.
    pub fn dirty_pages(&self) -> u64 {
        let dirty = |index| self.engine.shards.lock(index).dirty_pages();
        self.engine.shards.layout.shards().map(dirty).sum()
    }

    /// The image's path, if there is one.
    pub fn origin_path(&self) -> Option<PathBuf> {
        let image = self.engine.origin.image();
        image.map(|image| image.path().to_owned())
    }

    /// Asserts that the accounting of every part adds up: slots, pools, recency, segments. Slow,
    /// and for tests: no request may be under way.
    pub fn check(&self) {
        let _none_is_marked = self.recompressor.pause();
        let (done, answer) = channel::bounded(1);
        self.command(Command::Check { done });
        answer
            .recv()
            .expect("the writeback thread found the accounting wrong");
    }
}

/// Resident, same-filled or written back.
fn pages_with_data(counts: &Counts) -> u64 {
    counts.same_pages + counts.resident_pages + counts.written_back_pages
}
