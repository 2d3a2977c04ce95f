//! The backings that segments are in. There are places for two, so that one can take the other's
//! place while the device is in use: what is live moves from the one that leaves to the one that
//! came, or to memory. A third place is for the image that a device is restored from, for as long as
//! some of it has not come to memory or to a backing.

use std::path::PathBuf;
use std::sync::Arc;

use super::address::{BACKINGS, SegmentIndex, StoreIndex};
use super::backing::{Backing, Store};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

/// The backings. The writeback thread changes them, any thread reads; the lock is held for a moment
/// and no other is taken under it.
#[derive(Default)]
pub(crate) struct Stores {
    places: RwLock<Places>,
    /// Whether there is a current one, for the many who only want to know that.
    spills: AtomicBool,
}

impl Stores {
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

    /// Adds a backing, which is written to from here on; gives it back if there is no place for it.
    pub(super) fn add(&self, backing: Arc<dyn Backing>) -> Result<StoreIndex, Arc<dyn Backing>> {
        let mut places = self.places.write();
        let free = places.backings.iter().position(Option::is_none);
        let Some(at) = free else {
            return Err(backing);
        };
        places.backings[at] = Some(backing);
        let store = StoreIndex(at as u8);
        places.current = Some(store);
        self.spills.store(true, Relaxed);
        Ok(store)
    }

    /// Puts an image in its place; returns false if one is there.
    pub(crate) fn add_image(&self, image: Arc<dyn Store>) -> bool {
        let place = &mut self.places.write().image;
        let is_free = place.is_none();
        place.get_or_insert(image);
        is_free
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
    }
}
