//! Where spilled pages are, and what may be spilled.

use std::sync::Arc;

use super::damage::Damage;
use super::quota::{Left, Quota};
use crate::log_limit::LogLimit;
use crate::memory::DeviceMemory;
use crate::spill::{
    LogCounts, RecordAddress, RecordFormat, RecordFormats, SegmentIndex, SegmentTable, Stores,
};
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::time::Timepiece;
use crate::units::PageIndex;
use crate::waker::Waker;

/// What any thread may know of the spill.
pub(crate) struct Spilled {
    pub(crate) segments: Arc<SegmentTable>,
    pub(crate) formats: RecordFormats,
    pub(crate) stores: Arc<Stores>,
    pub(crate) log_counts: Arc<LogCounts>,
    pub(crate) damage: Damage,
    pub(crate) quota: Quota,
    /// Most bytes of the backing that may be used; 0 for all it has.
    pub(crate) backing_size: AtomicU64,
    /// Whether what an image has may go to the backing, as far as the writeback thread knows.
    pub(crate) image_spills: AtomicBool,
}

impl Spilled {
    /// Nothing is spilled yet; what will be is in `format`. `waker` wakes the writeback thread, and
    /// `daily_limit` is the most bytes to write in a day.
    ///
    /// The stores outlive the process if `memory` does.
    pub(super) fn new(
        format: RecordFormat,
        daily_limit: Option<u64>,
        waker: Arc<Waker>,
        memory: Option<DeviceMemory>,
    ) -> Self {
        let formats = RecordFormats { spilled: format };
        let quota = Quota::default();
        quota.limit_daily(daily_limit);
        Self {
            segments: Arc::new(SegmentTable::new(formats.clone(), waker)),
            formats,
            stores: Arc::new(Stores::new(memory)),
            log_counts: Arc::default(),
            damage: Damage::default(),
            quota,
            backing_size: AtomicU64::new(0),
            image_spills: AtomicBool::new(false),
        }
    }

    /// The number that a record was written under. Stands still only under the lock of a shard with
    /// a slot that refers to the record.
    pub(crate) fn sequence(&self, record: RecordAddress) -> u64 {
        self.segments.sequence_at(record)
    }

    /// What the next append to the backing may take.
    ///
    /// # Errors
    /// What is spent, as a writer without room is told.
    pub(crate) fn may_write(&self, time: &Timepiece) -> Result<Left, &'static str> {
        self.quota.left(time.now())
    }

    /// Counts and logs that a page's record is damaged, if that was not known yet.
    pub(crate) fn note_damage(
        &self,
        page: PageIndex,
        record: RecordAddress,
        sequence: u64,
        log_limit: &LogLimit,
    ) {
        if self.damage.note(record, sequence)
            && let Some(end) = log_limit.admit()
        {
            let path = self.stores.path_of(SegmentIndex::of(record));
            tracing::error!(
                "page {} is lost: its record at byte {} of {} is damaged{end}",
                page.0,
                record.within_store().byte(),
                path.display()
            );
        }
    }
}
