//! What is copied before it is changed, while the device is saved.
//!
//! A save is of one time: that at which all shards are locked at once, for as long as it takes to hand
//! each a table. Then two sides copy run after run of pages, each once: a thread that walks over the
//! device, and whoever is about to change a run that is not copied yet (`io`). So the image holds every write
//! that had ended before that time and none that began after it; of one that was under way, some of
//! its pages.
//!
//! Copies wait for the file in a bounded queue. A writer who comes first to a run waits for a place
//! in it, but not for ever: a file that takes nothing ends the save, not the device.

use std::io::Write;
use std::sync::Arc;

use super::shards::Shards;
use crate::codec::{Codec, Dictionaries};
use crate::error::{Error, Result};
use crate::image::{ImageWriter, PageData};
use crate::shard::{SaveId, ToCopy};
use crate::sync::atomic::AtomicBool;
use crate::sync::atomic::AtomicU64;
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel::Sender;
use crate::sync::{Mutex, Protection, without};
use crate::units::PageIndex;

/// The saves of a device, of which there is one at a time.
#[derive(Default)]
pub(crate) struct CopyBeforeWrite {
    /// Held by whoever saves; counts saves.
    pub(crate) running: Mutex<u64>,
    /// A leaf.
    current: Mutex<Option<Arc<Save>>>,
    /// Whether there is a current one.
    any: AtomicBool,
}

impl CopyBeforeWrite {
    pub(crate) fn current(&self) -> Option<Arc<Save>> {
        self.current.lock().clone()
    }

    /// Has the device be saved as it is now.
    ///
    /// # Errors
    /// [`Error::Io`] if there is not enough address space.
    pub(crate) fn begin(&self, save: &Arc<Save>, shards: &Shards) -> Result<()> {
        let layout = &shards.layout;
        let table = |index| ToCopy::all(save.id, layout.slots(index));
        let tables: std::io::Result<Vec<_>> = layout.shards().map(table).collect();
        let tables = tables.map_err(|error| Error::io("reserve address space", error))?;
        let mut current = self.current.lock();
        self.any.store(true, Relaxed);
        *current = Some(Arc::clone(save));
        drop(current);
        // Nobody else holds two, so the order matters to nobody.
        let mut held = Vec::with_capacity(tables.len());
        for (index, table) in layout.shards().zip(tables) {
            let mut shard = shards.lock(index);
            shard.begin_saving(table);
            if !without(Protection::SavedAsOfOneTime) {
                held.push(shard);
            }
        }
        Ok(())
    }

    /// Ends a save, if it has not ended: nothing is copied for it any more.
    pub(crate) fn end(&self, id: SaveId, shards: &Shards) {
        for index in shards.layout.shards() {
            shards.lock(index).end_saving(id);
        }
        let mut current = self.current.lock();
        if current.take_if(|save| save.id == id).is_some() {
            self.any.store(false, Relaxed);
        }
    }

    /// Whether a writer may come to wait for a save.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }
}

/// A save that goes on.
pub(crate) struct Save {
    pub(crate) id: SaveId,
    pub(crate) queue: Sender<CopiedRun>,
    /// Runs with data that are copied: those in the queue, and on their way there.
    pub(crate) runs: AtomicU64,
    /// Pages in the image.
    pub(crate) pages: AtomicU64,
    pub(crate) pages_at_start: u64,
    /// Why it cannot go on. A leaf.
    pub(crate) failure: Mutex<Option<Error>>,
}

/// The data of a run of pages.
#[derive(Default)]
pub(crate) struct CopiedRun {
    pub(crate) pages: Vec<(PageIndex, Contents)>,
    bytes: Vec<u8>,
}

/// Where a page's data is in a [`CopiedRun`].
pub(crate) enum Contents {
    SameFilled(u32),
    Object { codec: Codec, end: usize },
}

impl CopiedRun {
    /// Adds a page by its object.
    pub(crate) fn push(&mut self, page: PageIndex, codec: Codec, object: &[u8]) {
        self.bytes.extend_from_slice(object);
        let end = self.bytes.len();
        self.pages.push((page, Contents::Object { codec, end }));
    }

    /// Writes the pages, and the dictionaries that they take, to an image.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn write_to(
        &self,
        image: &mut ImageWriter<impl Write>,
        dictionaries: &Dictionaries,
    ) -> std::io::Result<()> {
        let mut start = 0;
        for (page, place) in &self.pages {
            let data = match *place {
                Contents::SameFilled(pattern) => PageData::SameFilled(pattern),
                Contents::Object { codec, end } => {
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

/// The save has failed: why is noted in it.
pub(crate) struct Failed;

impl Save {
    /// Notes why the save cannot go on, if that is news.
    pub(crate) fn fail(&self, error: Error) -> Failed {
        self.failure.lock().get_or_insert(error);
        Failed
    }

    /// Fails if it has failed.
    pub(crate) fn check(&self) -> Result<(), Failed> {
        match &*self.failure.lock() {
            Some(_) => Err(Failed),
            None => Ok(()),
        }
    }
}
