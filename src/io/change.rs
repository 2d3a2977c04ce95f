//! The gate of every change: whoever changes a run of pages locks its shard here, once what is there
//! is copied if the device is being saved and the run is not copied yet.

use std::time::Duration;

use rustix::io::Errno;

use super::Writer;
use super::found::SpilledPage;
use super::read_back::Buffers;
use crate::engine::{Contents, CopiedRun, Failed, RUN_PAGES, Run, Save, ShardIndex};
use crate::error::{Error, Result};
use crate::pool::NoRoom;
use crate::shard::{Shard, SlotIndex, SlotState};
use crate::sync::atomic::Ordering::{Relaxed, Release};
use crate::sync::{MutexGuard, Protection, thread, without};

/// How long the file may take nothing.
const COPY_TIMEOUT: Duration = Duration::from_secs(5);

/// Refusals of the kernel to give memory after each of which a writer waits for eviction.
const MAX_REFUSALS: u32 = 8;

/// The refusals that one write has met.
#[derive(Default)]
pub(super) struct Refusals(u32);

impl Writer {
    /// Locks the shard of a run of pages that is to be changed.
    pub(super) fn lock_to_change(&self, run: Run) -> MutexGuard<'_, Shard> {
        loop {
            let shard = self.engine.shards.lock(run.shard);
            if !shard.needs_copy(run.slot) || without(Protection::SavedBeforeChanged) {
                return shard;
            }
            drop(shard);
            self.copy_first(run.shard, run.slot);
        }
    }

    /// Changes a run by `change`, as often as it takes to find room.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; those of writing to the image, where tables get room by that.
    pub(crate) fn change_one<T>(
        &self,
        run: Run,
        mut change: impl FnMut(&mut Shard) -> Result<T, NoRoom>,
    ) -> Result<T> {
        let mut refusals = Refusals::default();
        loop {
            let mut shard = self.lock_to_change(run);
            let changed = change(&mut shard);
            self.engine.unlock(shard);
            match changed {
                Ok(changed) => return Ok(changed),
                Err(no_room) => self.wait_for_room(no_room, &mut refusals)?,
            }
        }
    }

    /// Waits for memory, after a shard had none for a page.
    ///
    /// # Errors
    /// [`Error::NoSpace`]: there will be none, or the kernel gives none.
    pub(super) fn wait_for_room(&self, no_room: NoRoom, refusals: &mut Refusals) -> Result<()> {
        let tables = &self.engine.tables;
        match no_room {
            NoRoom::TableBusy => {
                tables.await_release();
                return Ok(());
            }
            NoRoom::TableLimit => return tables.make_room(&self.engine.shards),
            NoRoom::NoMemory if refusals.0 == MAX_REFUSALS => {
                return Err(Error::NoSpace("the kernel has no memory to give"));
            }
            NoRoom::NoMemory => refusals.0 += 1,
            NoRoom::OverLimit => {}
        }
        self.engine.counts.write_stalls.fetch_add(1, Relaxed);
        self.engine.limit.wait()
    }

    /// Copies the run of a slot, for whoever is going to change it.
    pub(super) fn copy_first(&self, shard: ShardIndex, slot: SlotIndex) {
        let engine = &*self.engine;
        match engine.copy_before_write.current() {
            Some(save) => {
                if self.copy_run(&save, shard, slot).is_err() {
                    engine.copy_before_write.end(save.id, &engine.shards);
                }
            }
            // It has just ended, and is about to say so.
            None => thread::yield_now(),
        }
    }

    /// Copies the run of a slot, unless it is copied.
    ///
    /// # Errors
    /// The save has failed.
    fn copy_run(&self, save: &Save, shard: ShardIndex, slot: SlotIndex) -> Result<(), Failed> {
        match self.collect_run(save, shard, slot) {
            Ok(None) => Ok(()),
            Ok(Some(run)) => match save.queue.send_timeout(run, COPY_TIMEOUT) {
                Ok(()) => Ok(()),
                Err(_) => {
                    let stuck =
                        format!("nothing could be written for {} s", COPY_TIMEOUT.as_secs());
                    Err(save.fail(Error::refused("save", Errno::TIMEDOUT, stuck)))
                }
            },
            Err(error) => Err(save.fail(error)),
        }
    }

    /// Copies the data of the run of a slot and notes that it is saved; `None` if there is none, or
    /// it is already.
    ///
    /// # Errors
    /// Those of reading a spilled page.
    fn collect_run(
        &self,
        save: &Save,
        index: ShardIndex,
        slot: SlotIndex,
    ) -> Result<Option<CopiedRun>> {
        let first = slot.0 / RUN_PAGES * RUN_PAGES;
        let end = (first + RUN_PAGES).min(self.engine.shards.layout.slots(index));
        loop {
            let (mut run, mut spilled) = (CopiedRun::default(), Vec::new());
            let mut shard = self.engine.shards.lock(index);
            if !shard.needs_copy_for(save.id, slot) {
                return Ok(None);
            }
            for slot in (first..end).map(SlotIndex) {
                let page = self.engine.shards.layout.page(index, slot);
                match shard.slot(slot).state() {
                    SlotState::Empty => {}
                    SlotState::SameFilled { pattern } => {
                        run.pages.push((page, Contents::SameFilled(pattern)));
                    }
                    SlotState::Resident { object, len, codec } => {
                        run.push(page, codec, shard.pool().bytes(object, len));
                    }
                    SlotState::WrittenBack { .. } => {
                        spilled
                            .extend(self.reader.spilled(&shard, slot).map(|there| (page, there)));
                    }
                }
            }
            if !spilled.is_empty() {
                drop(shard);
                if !self.collect_spilled(&mut spilled, &mut run)? {
                    continue;
                }
                // What was read is still true if nobody has saved the run: who changes it does.
                shard = self.engine.shards.lock(index);
                let is_news = shard.needs_copy_for(save.id, slot);
                if !is_news && !without(Protection::SavedOnce) {
                    return Ok(None);
                }
            }
            shard.note_saved(slot);
            if run.pages.is_empty() {
                return Ok(None);
            }
            save.runs.fetch_add(1, Release);
            return Ok(Some(run));
        }
    }

    /// Reads spilled pages; returns false if one is in memory by now.
    fn collect_spilled(&self, spilled: &mut [SpilledPage], run: &mut CopiedRun) -> Result<bool> {
        spilled.sort_unstable_by_key(|(_, spilled)| spilled.record.0);
        let mut buffers = Buffers::new();
        let mut rest = &*spilled;
        while let Some((place, group, others)) = self.reader.first_group(rest) {
            if group.len() > 1
                && let Some(backing) = self.engine.spilled.stores.of(place.segment)
            {
                self.reader.read_ahead.prepare(&*backing, place);
            }
            for &(page, _) in group {
                let one = self.engine.shards.layout.run_of(page);
                let Some((spilled, object)) = self.reader.fetch_object(one, &mut buffers)? else {
                    return Ok(false);
                };
                run.push(page, spilled.codec, object);
            }
            rest = others;
        }
        Ok(true)
    }

    /// Copies all that nobody else does.
    ///
    /// # Errors
    /// The save has failed.
    pub(crate) fn copy_all(&self, save: &Save) -> Result<(), Failed> {
        const SEARCHED_AT_ONCE: u32 = 1 << 19;
        for index in self.engine.shards.layout.shards() {
            let slots = self.engine.shards.layout.slots(index);
            let mut at = 0;
            while at < slots {
                if self.engine.is_stopping() {
                    let reason = "the device is stopping".to_owned();
                    return Err(save.fail(Error::refused("save", Errno::INTR, reason)));
                }
                let end = slots.min(at.saturating_add(SEARCHED_AT_ONCE));
                let used = self.engine.shards.lock(index).next_used(at..end);
                at = match used {
                    Some(used) => {
                        self.copy_run(save, index, used)?;
                        (used.0 / RUN_PAGES + 1) * RUN_PAGES
                    }
                    None => end,
                };
            }
        }
        Ok(())
    }
}
