//! The backings that segments are in. There are places for two, so that one can take the other's
//! place while the device is in use: what is live moves from the one that leaves to the one that
//! came, or to memory. A third place is for the image that a device is restored from, for as long as
//! some of it has not come to memory or to a backing.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::address::{BACKINGS, SegmentIndex, StoreIndex};
use super::backing::{Backing, Store};
use super::handover::{KeptStore, StoreNote};
use crate::memory::DeviceMemory;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::{Mutex, RwLock};

#[derive(Default)]
struct Places {
    backings: [Option<Arc<dyn Backing>>; BACKINGS],
    /// The one that is written to.
    current: Option<StoreIndex>,
    image: Option<Arc<dyn Store>>,
}

impl Places {
    fn at(&self, store: StoreIndex) -> Option<Arc<dyn Store>> {
        if store == StoreIndex::IMAGE {
            return self.image.clone();
        }
        let backing = self.backings[usize::from(store.0)].clone()?;
        Some(backing)
    }
}

/// What a device remembers of its stores.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct StoresRecord {
    /// By place.
    stores: Vec<Option<StoreNote>>,
    current: Option<usize>,
}

/// The stores of a device that were found kept, by place.
#[derive(Default)]
pub(crate) struct KeptStores {
    pub(crate) backings: [Option<KeptStore>; BACKINGS],
    /// The place of the one that was written to.
    pub(crate) current: Option<usize>,
    pub(crate) image: Option<KeptStore>,
}

/// The backings. The writeback thread changes them, any thread reads; the lock is held for a moment
/// and no other is taken under it.
#[derive(Default)]
pub(crate) struct Stores {
    places: RwLock<Places>,
    /// Whether there is a current one, for the many who only want to know that.
    spills: AtomicBool,
    /// If it outlives the process, the open files of the stores do as well.
    memory: Option<DeviceMemory>,
    /// Backings that were found, until all of them are in their places.
    held: Mutex<Vec<Arc<dyn Backing>>>,
}

impl Stores {
    /// No stores, of a device in a memory, if that outlives the process.
    pub(crate) fn new(memory: Option<DeviceMemory>) -> Self {
        Self {
            memory,
            ..Self::default()
        }
    }

    /// Sees to it that the open file of a store outlives the process, if the device does.
    ///
    /// # Errors
    /// Why it cannot.
    fn keep<S: Store + ?Sized>(&self, place: StoreIndex, store: &S) -> Result<(), String> {
        let Some(memory) = &self.memory else {
            return Ok(());
        };
        let path = store.path().display();
        let Some(handover) = store.handover() else {
            return Err(format!(
                "{path} would not outlive the process, and the device does"
            ));
        };
        let kept = memory.keep_file(&place.kept_as(), handover.file);
        kept.map_err(|error| {
            format!("{path} cannot be kept open for a process after this one: {error}")
        })
    }

    /// What is to be remembered of them.
    pub(crate) fn record(&self) -> StoresRecord {
        let places = self.places.read();
        let note = |place| Some(places.at(place)?.handover()?.note);
        StoresRecord {
            stores: StoreIndex::all().map(note).collect(),
            current: places.current.map(StoreIndex::number),
        }
    }

    /// The stores of a record, as far as their open files were kept.
    pub(crate) fn take_kept(&self, record: StoresRecord) -> KeptStores {
        let take = |place: StoreIndex, note: Option<StoreNote>| {
            let file = self.memory.as_ref()?.take_file(&place.kept_as())?;
            Some(KeptStore { file, note: note? })
        };
        let mut kept = KeptStores {
            current: record.current,
            ..KeptStores::default()
        };
        for (place, note) in StoreIndex::all().zip(record.stores) {
            let store = take(place, note);
            match place {
                StoreIndex::IMAGE => kept.image = store,
                StoreIndex(at) => kept.backings[usize::from(at)] = store,
            }
        }
        kept
    }

    /// Holds a backing that was found until [`Stores::let_go`].
    pub(crate) fn hold(&self, backing: Arc<dyn Backing>) {
        self.held.lock().push(backing);
    }

    /// All that were found are in their places.
    pub(crate) fn let_go(&self) {
        self.held.lock().clear();
    }

    /// Puts a backing, whose open file is kept, in a place again.
    pub(super) fn put_back(&self, StoreIndex(place): StoreIndex, backing: Arc<dyn Backing>) {
        self.places.write().backings[usize::from(place)] = Some(backing);
    }

    /// Whether there is a backing to write to.
    pub(crate) fn spills(&self) -> bool {
        self.spills.load(Relaxed)
    }

    /// The backing that is written to.
    pub(crate) fn current(&self) -> Option<Arc<dyn Backing>> {
        let places = self.places.read();
        places
            .current
            .and_then(|StoreIndex(at)| places.backings[usize::from(at)].clone())
    }

    /// What a segment is in.
    pub(crate) fn of(&self, segment: SegmentIndex) -> Option<Arc<dyn Store>> {
        self.places.read().at(segment.store())
    }

    /// The path of what a segment is in, for messages.
    pub(crate) fn path_of(&self, segment: SegmentIndex) -> PathBuf {
        let store = self.of(segment);
        store.map_or_else(|| "the backing".into(), |store| store.path().to_owned())
    }

    /// Adds a backing, which is written to from here on.
    ///
    /// # Errors
    /// Why it cannot be.
    pub(super) fn add(&self, backing: Arc<dyn Backing>) -> Result<StoreIndex, String> {
        let mut places = self.places.write();
        let free = places.backings.iter().position(Option::is_none);
        let at = free.ok_or("another backing is still leaving")?;
        let store = StoreIndex(at as u8);
        self.keep(store, &*backing)?;
        places.backings[at] = Some(backing);
        places.current = Some(store);
        self.spills.store(true, Relaxed);
        Ok(store)
    }

    /// Puts an image in its place.
    ///
    /// # Errors
    /// Why it cannot be there.
    pub(crate) fn add_image(&self, image: Arc<dyn Store>) -> Result<(), String> {
        let place = &mut self.places.write().image;
        if place.is_some() {
            return Err("an image is being restored already".to_owned());
        }
        self.keep(StoreIndex::IMAGE, &*image)?;
        *place = Some(image);
        Ok(())
    }

    /// Takes the image away.
    pub(crate) fn remove_image(&self) {
        self.remove(StoreIndex::IMAGE);
    }

    /// The image, if there is one.
    pub(crate) fn image(&self) -> Option<Arc<dyn Store>> {
        self.places.read().image.clone()
    }

    /// Makes another backing, or none, the one that is written to.
    pub(super) fn set_current(&self, store: Option<StoreIndex>) {
        self.places.write().current = store;
        self.spills.store(store.is_some(), Relaxed);
    }

    /// Takes a backing, or the image, away.
    pub(super) fn remove(&self, store: StoreIndex) {
        let mut places = self.places.write();
        match store {
            StoreIndex::IMAGE => places.image = None,
            StoreIndex(at) => places.backings[usize::from(at)] = None,
        }
        if let Some(memory) = &self.memory {
            memory.forget_file(&store.kept_as());
        }
    }
}
