//! Saving: the device as it is at one time, in an image, while it is in use.
//!
//! What is saved when is said in [`crate::engine::CopyBeforeWrite`]. Here is who writes the image, and
//! the thread that walks over the device.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Device;
use crate::codec::Dictionaries;
use crate::engine::{CopiedRun, Failed, Save};
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::image::{ImageFile, ImageWriter};
use crate::shard::SaveId;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sync::channel::{self, Receiver, RecvTimeoutError};
use crate::sync::{Mutex, thread};
use crate::units::PAGE_SHIFT;

/// Runs that wait for the file: at most 8 MiB.
const QUEUED: usize = 64;

/// How often it is looked at whether the device is stopping.
const LOOK: Duration = Duration::from_millis(100);

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Saved {
    /// Pages that held data.
    pub pages: u64,
    /// Bytes of the image.
    pub bytes: u64,
}

/// How far a save is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SaveProgress {
    /// Pages in the image so far.
    pub pages: u64,
    /// Pages that there were when it began, about.
    pub of: u64,
}

/// Whether somebody still waits for a save.
pub(super) type Wanted<'a> = &'a dyn Fn() -> bool;

fn check_wanted(wanted: Wanted<'_>) -> Result<()> {
    if wanted() {
        return Ok(());
    }
    let reason = "nobody waits for it any more".to_owned();
    Err(Error::refused("save", Errno::CANCELED, reason))
}

/// Writes what is in the queue of a save, until all of it has been and `walked` is disconnected.
fn write_queue(
    save: &Save,
    queue: &Receiver<CopiedRun>,
    walked: &Receiver<()>,
    image: &mut ImageWriter<impl Write>,
    dictionaries: &Dictionaries,
    (path, wanted): (&Path, Wanted<'_>),
) -> Result<(), Failed> {
    let mut written = 0;
    loop {
        save.check()?;
        check_wanted(wanted).map_err(|error| save.fail(error))?;
        // In this order: what is copied after the walk is over held no data.
        let is_over = walked.try_recv().is_err_and(|e| e.is_disconnected());
        if is_over && written == save.runs.load(Acquire) {
            return Ok(());
        }
        let run = match queue.recv_timeout(LOOK) {
            Ok(run) => run,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => continue,
        };
        run.write_to(image, dictionaries)
            .map_err(|error| save.fail(Error::io(format!("write {}", path.display()), error)))?;
        written += 1;
        save.pages.fetch_add(run.pages.len() as u64, Relaxed);
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
        let (file, saved) = self.write_image(ImageFile::create(path)?, path, wanted)?;
        file.sync()?;
        // That may have taken a while.
        check_wanted(wanted)?;
        file.commit()?;
        Ok(saved)
    }

    /// As [`Device::save_while`], to an empty file that somebody else has opened, and puts at `path` once this
    /// has succeeded and it is on disk.
    ///
    /// # Errors
    /// Those of [`Device::save_while`].
    pub(crate) fn save_handed(
        &self,
        file: &HandedFile,
        path: &Path,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Saved> {
        self.check_savable(path)?;
        let failed = |error| Error::io(format!("write {}", path.display()), error);
        let (file, saved) = self.write_image(file.open().map_err(failed)?, path, wanted)?;
        file.sync_all().map_err(failed)?;
        check_wanted(wanted)?;
        Ok(saved)
    }

    fn write_image<W: Write>(
        &self,
        file: W,
        path: &Path,
        wanted: &dyn Fn() -> bool,
    ) -> Result<(W, Saved)> {
        let out = BufWriter::with_capacity(1 << 20, file);
        let (out, saved) = self.save_to(out, path, wanted)?;
        let file = out
            .into_inner()
            .map_err(|error| Error::io(format!("write {}", path.display()), error.into_error()))?;
        Ok((file, saved))
    }

    /// As [`Device::save_while`], of a device that nobody uses; from then on it can only be read. Who
    /// comes to use it meanwhile waits.
    ///
    /// # Errors
    /// Those of [`Device::save_while`], and [`Error::Refused`] (EBUSY) while it is in use.
    pub fn save_last(&self, path: &Path, wanted: &dyn Fn() -> bool) -> Result<Saved> {
        self.save_unused(path, || self.save_while(path, wanted))
    }

    /// As [`Device::save_last`], to a file as [`Device::save_handed`] takes it.
    ///
    /// # Errors
    /// Those of [`Device::save_last`].
    pub(crate) fn save_last_handed(
        &self,
        file: &HandedFile,
        path: &Path,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Saved> {
        self.save_unused(path, || self.save_handed(file, path, wanted))
    }

    fn save_unused(&self, path: &Path, save: impl FnOnce() -> Result<Saved>) -> Result<Saved> {
        let save = || {
            let saved = save()?;
            self.refuse_changes();
            Ok(saved)
        };
        // Before anybody is asked to let go of it.
        self.check_savable(path)?;
        self.users.while_none(save).unwrap_or_else(|| {
            let reason = "the device is in use; unmount, detach or disconnect it first";
            Err(Error::refused("save", Errno::BUSY, reason))
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
            return Err(Error::refused("save", Errno::BUSY, reason));
        }
        let reason = match (self.engine.origin.image(), self.engine.origin.policy()) {
            (None, _) => return Ok(()),
            (_, Some(_)) => "most of it is in the image of `DeviceConfig::origin`; copy that",
            (_, None) => {
                "a snapshot is its image and what was changed since: copy the device, with nbdcopy or \
                 from its FUSE directory"
            }
        };
        Err(Error::refused("save", Errno::OPNOTSUPP, reason))
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
        let save = self.engine.copy_before_write.current()?;
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
        let engine = &*self.engine;
        let Some(mut count) = engine.copy_before_write.running.try_lock() else {
            return Err(Error::refused(
                "save",
                Errno::BUSY,
                "it is being saved already",
            ));
        };
        *count += 1;
        let failed = |error| Error::io(format!("write {}", path.display()), error);
        // The device may not be resized between its size and its data.
        let resizing = self.resizing.lock();
        let size = engine.shards.layout.pages() << PAGE_SHIFT;
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
        engine.copy_before_write.begin(&save, &engine.shards)?;
        drop(resizing);
        let (walking, walked) = channel::bounded(0);
        thread::scope(|scope| {
            let walk = thread::spawn_scoped(scope, "uzram-save", || {
                // What failed is noted.
                let _ = self.writer.copy_all(&save);
                drop(walking);
            });
            if let Err(error) = walk {
                save.fail(Error::io("start the thread that saves", error));
            }
            // What failed is noted.
            let _ = write_queue(
                &save,
                &queue,
                &walked,
                &mut image,
                &engine.codecs.dictionaries,
                (path, wanted),
            );
            engine.copy_before_write.end(save.id, &engine.shards);
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
    Error::refused("write", Errno::ROFS, reason)
}
