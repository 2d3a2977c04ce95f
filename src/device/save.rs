//! Saving: the device as it is at one time, in an image, while it is in use.
//!
//! The time is when all shards are locked at once, for as long as it takes to hand each a table.
//! Then two sides save run after run of pages, each once: a thread that walks over the device, and
//! whoever is about to change a run that is not saved yet (`Core::change_run`). So the image holds
//! every write that had ended before that time and none that began after it; of one that was
//! under way, some of its pages.
//!
//! What is saved waits for the file in a bounded queue. A writer who comes first to a run waits
//! for a place in it, but not for ever: a file that takes nothing ends the save, not the device.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Device;
use super::core::Core;
use super::layout::{RUN_PAGES, Run, ShardIndex};
use super::read_back::{Buffers, SpilledPage};
use crate::codec::{Codec, Dictionaries};
use crate::error::{Error, Result};
use crate::image::{ImageFile, ImageWriter, PageData};
use crate::pool::NoRoom;
use crate::shard::{SaveId, Shard, SlotIndex, SlotState, Unsaved};
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::channel::{self, Receiver, RecvTimeoutError, Sender};
use crate::sync::{Mutex, Protection, thread, without};
use crate::units::{PAGE_SHIFT, PageIndex};

/// Runs that wait for the file: at most 8 MiB.
const QUEUED: usize = 64;

/// How long the file may take nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked at whether the device is stopping.
const LOOK: Duration = Duration::from_millis(100);

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Pages that held data.
    pub pages: u64,
    /// Bytes of the image.
    pub bytes: u64,
}

/// How far a save is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveProgress {
    /// Pages in the image so far.
    pub pages: u64,
    /// Pages that there were when it began, about.
    pub of: u64,
}

/// The saves of a device, of which there is one at a time.
#[derive(Default)]
pub(super) struct Saves {
    running: Mutex<u64>,
    /// A leaf.
    current: Mutex<Option<Arc<Save>>>,
    /// Whether there is a current one.
    any: AtomicBool,
}

impl Saves {
    fn current(&self) -> Option<Arc<Save>> {
        self.current.lock().clone()
    }

    fn begin(&self, save: Arc<Save>) {
        let mut current = self.current.lock();
        self.any.store(true, Relaxed);
        *current = Some(save);
    }

    fn end(&self, id: SaveId) {
        let mut current = self.current.lock();
        if current.take_if(|save| save.id == id).is_some() {
            self.any.store(false, Relaxed);
        }
    }

    /// Whether a writer may come to wait for a save.
    pub(super) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }
}

/// A save that goes on.
pub(super) struct Save {
    id: SaveId,
    queue: Sender<SavedRun>,
    /// Runs with data that are saved: those in the queue, and on their way there.
    runs: AtomicU64,
    /// Pages in the image.
    pages: AtomicU64,
    pages_at_start: u64,
    /// Why it cannot go on. A leaf.
    failure: Mutex<Option<Error>>,
}

/// The data of a run of pages.
#[derive(Default)]
struct SavedRun {
    pages: Vec<(PageIndex, Place)>,
    bytes: Vec<u8>,
}

/// Where a page's data is in a [`SavedRun`].
enum Place {
    SameFilled(u32),
    Object { codec: Codec, end: usize },
}

impl SavedRun {
    fn push(&mut self, page: PageIndex, codec: Codec, object: &[u8]) {
        self.bytes.extend_from_slice(object);
        let end = self.bytes.len();
        self.pages.push((page, Place::Object { codec, end }));
    }

    fn write_to(
        &self,
        image: &mut ImageWriter<impl Write>,
        dictionaries: &Dictionaries,
    ) -> std::io::Result<()> {
        let mut start = 0;
        for (page, place) in &self.pages {
            let data = match *place {
                Place::SameFilled(pattern) => PageData::SameFilled(pattern),
                Place::Object { codec, end } => {
                    PageData::Object(codec, &self.bytes[std::mem::replace(&mut start, end)..end])
                }
            };
            if let PageData::Object(codec, object) = data
                && let Some(id) = codec.dictionary(object)
                && let Some(dictionary) = dictionaries.get(id)
            {
                image.push_dictionary(id, dictionary.bytes())?;
            }
            image.push(*page, data)?;
        }
        Ok(())
    }
}

impl Core {
    /// Changes the data of a run of pages, as [`Core::store_with_room`] does, once what was there is
    /// saved if it has to be.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    pub(super) fn change_run(
        &self,
        run: Run,
        mut change: impl FnMut(&mut Shard) -> Result<(), NoRoom>,
    ) -> Result<()> {
        loop {
            let mut unsaved = false;
            self.store_with_room(run.shard, |shard| {
                unsaved = shard.is_unsaved(run.slot) && !without(Protection::SavedBeforeChanged);
                if unsaved { Ok(()) } else { change(shard) }
            })?;
            if !unsaved {
                return Ok(());
            }
            self.save_first(run.shard, run.slot);
        }
    }

    /// Saves the run of a slot, for whoever is going to change it.
    pub(super) fn save_first(&self, shard: ShardIndex, slot: SlotIndex) {
        match self.saves.current() {
            Some(save) => {
                if self.save_run(&save, shard, slot).is_err() {
                    self.end_saving(save.id);
                }
            }
            // It has just ended, and is about to say so.
            None => thread::yield_now(),
        }
    }

    /// Saves the run of a slot, unless it is saved.
    ///
    /// # Errors
    /// The save has failed.
    fn save_run(&self, save: &Save, shard: ShardIndex, slot: SlotIndex) -> Result<(), Failed> {
        match self.collect_run(save, shard, slot) {
            Ok(None) => Ok(()),
            Ok(Some(run)) => match save.queue.send_timeout(run, PATIENCE) {
                Ok(()) => Ok(()),
                Err(_) => {
                    let stuck = format!("nothing could be written for {} s", PATIENCE.as_secs());
                    Err(save.fail(refused(Errno::TIMEDOUT, stuck)))
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
    ) -> Result<Option<SavedRun>> {
        let first = slot.0 / RUN_PAGES * RUN_PAGES;
        let end = (first + RUN_PAGES).min(self.layout.slots(index));
        loop {
            let (mut run, mut spilled) = (SavedRun::default(), Vec::new());
            let mut shard = self.shard(index);
            if !shard.is_unsaved_by(save.id, slot) {
                return Ok(None);
            }
            for slot in (first..end).map(SlotIndex) {
                let page = self.layout.page(index, slot);
                match shard.slot(slot).state() {
                    SlotState::Empty => {}
                    SlotState::SameFilled { pattern } => {
                        run.pages.push((page, Place::SameFilled(pattern)));
                    }
                    SlotState::Resident { object, len, codec } => {
                        run.push(page, codec, shard.pool().bytes(object, len));
                    }
                    SlotState::WrittenBack { .. } => {
                        spilled.extend(self.spilled(&shard, slot).map(|there| (page, there)));
                    }
                }
            }
            if !spilled.is_empty() {
                drop(shard);
                if !self.collect_spilled(&mut spilled, &mut run)? {
                    continue;
                }
                // What was read is still true if nobody has saved the run: who changes it does.
                shard = self.shard(index);
                let is_news = shard.is_unsaved_by(save.id, slot);
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
    fn collect_spilled(&self, spilled: &mut [SpilledPage], run: &mut SavedRun) -> Result<bool> {
        spilled.sort_unstable_by_key(|(_, spilled)| spilled.record.0);
        let mut buffers = Buffers::new();
        let mut rest = &*spilled;
        while let Some((place, group, others)) = self.first_group(rest) {
            if group.len() > 1
                && let Some(backing) = self.stores.of(place.segment)
            {
                self.read_ahead.prepare(&*backing, place);
            }
            for &(page, _) in group {
                let one = self.layout.run(page, u64::from(page.0) + 1);
                let Some((spilled, object)) = self.fetch_object(one, &mut buffers)? else {
                    return Ok(false);
                };
                run.push(page, spilled.codec, object);
            }
            rest = others;
        }
        Ok(true)
    }

    /// Saves all that nobody else does.
    fn save_all(&self, save: &Save) -> Result<(), Failed> {
        const SEARCHED_AT_ONCE: u32 = 1 << 19;
        for index in self.layout.shards() {
            let slots = self.layout.slots(index);
            let mut at = 0;
            while at < slots {
                if self.is_stopping() {
                    let reason = "the device is stopping".to_owned();
                    return Err(save.fail(refused(Errno::INTR, reason)));
                }
                let end = slots.min(at.saturating_add(SEARCHED_AT_ONCE));
                let used = self.shard(index).next_used(at..end);
                at = match used {
                    Some(used) => {
                        self.save_run(save, index, used)?;
                        (used.0 / RUN_PAGES + 1) * RUN_PAGES
                    }
                    None => end,
                };
            }
        }
        Ok(())
    }

    /// Has the device be saved as it is now.
    fn begin_saving(&self, save: &Arc<Save>) -> Result<()> {
        let table = |index| Unsaved::all(save.id, self.layout.slots(index));
        let tables: std::io::Result<Vec<_>> = self.layout.shards().map(table).collect();
        let tables = tables.map_err(|error| Error::io("reserve address space", error))?;
        self.saves.begin(Arc::clone(save));
        // Nobody else holds two, so the order matters to nobody.
        let mut held = Vec::with_capacity(tables.len());
        for (index, table) in self.layout.shards().zip(tables) {
            let mut shard = self.shard(index);
            shard.begin_saving(table);
            if !without(Protection::SavedAsOfOneTime) {
                held.push(shard);
            }
        }
        Ok(())
    }

    fn end_saving(&self, id: SaveId) {
        for index in self.layout.shards() {
            self.shard(index).end_saving(id);
        }
        self.saves.end(id);
    }
}

/// Whether somebody still waits for a save.
pub(super) type Wanted<'a> = &'a dyn Fn() -> bool;

fn check_wanted(wanted: Wanted<'_>) -> Result<()> {
    if wanted() {
        return Ok(());
    }
    let reason = "nobody waits for it any more".to_owned();
    Err(refused(Errno::CANCELED, reason))
}

/// The save has failed: why is noted in it.
struct Failed;

impl Save {
    /// Notes why the save cannot go on, if that is news.
    fn fail(&self, error: Error) -> Failed {
        self.failure.lock().get_or_insert(error);
        Failed
    }

    /// Fails if it has failed.
    fn check(&self) -> Result<(), Failed> {
        match &*self.failure.lock() {
            Some(_) => Err(Failed),
            None => Ok(()),
        }
    }

    /// Writes what is in the queue, until all of it has been and `walked` is disconnected.
    fn write(
        &self,
        queue: &Receiver<SavedRun>,
        walked: &Receiver<()>,
        image: &mut ImageWriter<impl Write>,
        dictionaries: &Dictionaries,
        (path, wanted): (&Path, Wanted<'_>),
    ) -> Result<(), Failed> {
        let mut written = 0;
        loop {
            self.check()?;
            check_wanted(wanted).map_err(|error| self.fail(error))?;
            // In this order: what is saved after the walk is over held no data.
            let is_over = walked.try_recv().is_err_and(|e| e.is_disconnected());
            if is_over && written == self.runs.load(Acquire) {
                return Ok(());
            }
            let run = match queue.recv_timeout(LOOK) {
                Ok(run) => run,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => continue,
            };
            run.write_to(image, dictionaries).map_err(|error| {
                self.fail(Error::io(format!("write {}", path.display()), error))
            })?;
            written += 1;
            self.pages.fetch_add(run.pages.len() as u64, Relaxed);
        }
    }
}

impl Device {
    /// Writes an image of the device as it is now to a file at `path`, which takes the place of
    /// one that is there once it is complete and on disk. The device is in use meanwhile: who writes
    /// to what is not saved yet waits until that is, for as long as the file takes 8 MiB.
    ///
    /// # Errors
    /// [`Error::Refused`]: EBUSY while it is being saved or if its backing is at `path`, EOPNOTSUPP
    /// if most of it is in another image (`--origin`), EINTR once it is stopping, ETIMEDOUT when a
    /// writer has waited for five seconds; [`Error::Unusable`] or [`Error::Io`] about the file; those
    /// of reading a spilled page. What was at `path` is then still there.
    pub fn save(&self, path: &Path) -> Result<Saved> {
        self.save_while(path, &|| true)
    }

    /// As [`Device::save`], for as long as `wanted` says so, which is asked often.
    ///
    /// # Errors
    /// Those of [`Device::save`], and [`Error::Refused`] (ECANCELED) once it is not wanted.
    pub fn save_while(&self, path: &Path, wanted: &dyn Fn() -> bool) -> Result<Saved> {
        self.check_savable(path)?;
        let file = ImageFile::create(path)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let (out, saved) = self.save_to(out, path, wanted)?;
        let file = out
            .into_inner()
            .map_err(|error| Error::io(format!("write {}", path.display()), error.into_error()))?;
        file.sync()?;
        // That may have taken a while.
        check_wanted(wanted)?;
        file.commit()?;
        Ok(saved)
    }

    /// As [`Device::save_while`], of a device that nobody uses; from then on it can only be read. Who
    /// comes to use it meanwhile waits.
    ///
    /// # Errors
    /// Those of [`Device::save_while`], and [`Error::Refused`] (EBUSY) while it is in use.
    pub fn save_last(&self, path: &Path, wanted: &dyn Fn() -> bool) -> Result<Saved> {
        let save = || {
            let saved = self.save_while(path, wanted)?;
            self.refuse_changes();
            Ok(saved)
        };
        // Before anybody is asked to let go of it.
        self.check_savable(path)?;
        self.users.while_none(save).unwrap_or_else(|| {
            let reason = "the device is in use; unmount, detach or disconnect it first";
            Err(refused(Errno::BUSY, reason.to_owned()))
        })
    }

    /// Fails if the device can never be saved, or not to that file.
    fn check_savable(&self, path: &Path) -> Result<()> {
        self.check_place(path)?;
        if self.is_its_backing(path) {
            let reason = format!(
                "{} is the backing of the device; save to another file",
                path.display()
            );
            return Err(refused(Errno::BUSY, reason));
        }
        let reason = match (self.core.origin.image(), self.core.origin.home()) {
            (None, _) => return Ok(()),
            (_, Some(_)) => "most of it is in the image of --origin; copy that",
            (_, None) => {
                "a snapshot is its image and what was changed since: copy the device, with nbdcopy or \
                 from its FUSE directory"
            }
        };
        Err(refused(Errno::OPNOTSUPP, reason.to_owned()))
    }

    /// Whether the file at `path` is what the device spills to.
    fn is_its_backing(&self, path: &Path) -> bool {
        let id = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
        let backing = self.backing_path().map(|backing| id(&backing));
        matches!((backing, id(path)), (Some(Ok(backing)), Ok(file)) if backing == file)
    }

    /// Refuses all changes from now on (EROFS); those under way may still be made.
    pub fn refuse_changes(&self) {
        self.is_final.store(true, Release);
    }

    /// Fails once changes are refused.
    pub(super) fn check_not_final(&self) -> Result<()> {
        match self.is_final.load(Acquire) {
            true => Err(unchangeable("the device is about to stop")),
            false => Ok(()),
        }
    }

    /// Fails if what is on the device may not be changed, ever or any more.
    pub(super) fn check_changeable(&self) -> Result<()> {
        match self.read_only {
            true => Err(unchangeable("the device is read-only")),
            false => self.check_not_final(),
        }
    }

    /// How far a save is, if one goes on.
    pub fn save_progress(&self) -> Option<SaveProgress> {
        let save = self.core.saves.current()?;
        Some(SaveProgress {
            pages: save.pages.load(Relaxed),
            of: save.pages_at_start,
        })
    }

    /// Writes an image of the device as it is now to `out`; `path` is what errors call it.
    pub(super) fn save_to<W: Write>(
        &self,
        out: W,
        path: &Path,
        wanted: Wanted<'_>,
    ) -> Result<(W, Saved)> {
        let core = &*self.core;
        let Some(mut count) = core.saves.running.try_lock() else {
            return Err(refused(Errno::BUSY, "it is being saved already".to_owned()));
        };
        *count += 1;
        let failed = |error| Error::io(format!("write {}", path.display()), error);
        // The device may not be resized between its size and its data.
        let resizing = self.resizing.lock();
        let size = core.layout.pages() << PAGE_SHIFT;
        let mut image = ImageWriter::of_device(out, size, self.sector_size()).map_err(failed)?;
        let (sender, queue) = channel::bounded(QUEUED);
        let save = Arc::new(Save {
            id: SaveId(*count),
            queue: sender,
            runs: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            pages_at_start: self.pages_with_data(),
            failure: Mutex::default(),
        });
        core.begin_saving(&save)?;
        drop(resizing);
        let (walking, walked) = channel::bounded(0);
        thread::scope(|scope| {
            let walk = thread::spawn_scoped(scope, "uzram-save", || {
                // What failed is noted.
                let _ = core.save_all(&save);
                drop(walking);
            });
            if let Err(error) = walk {
                save.fail(Error::io("start the thread that saves", error));
            }
            // What failed is noted.
            let _ = save.write(
                &queue,
                &walked,
                &mut image,
                &core.algorithms.dictionaries,
                (path, wanted),
            );
            core.end_saving(save.id);
            // Whoever waits for a place in the queue is sent away.
            drop(queue);
        });
        if let Some(error) = save.failure.lock().take() {
            return Err(error);
        }
        let (out, pages, bytes) = image.finish().map_err(failed)?;
        Ok((out, Saved { pages, bytes }))
    }
}

fn unchangeable(reason: &str) -> Error {
    Error::Refused {
        what: "write",
        reason: reason.to_owned(),
        errno: Errno::ROFS,
    }
}

fn refused(errno: Errno, reason: String) -> Error {
    Error::Refused {
        what: "save",
        reason,
        errno,
    }
}
