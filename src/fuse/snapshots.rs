//! What each open attribute file read last, so that a text read in pieces is of one moment.
//!
//! As in sysfs, a read at offset 0 takes a new text; later offsets continue it. Locks one map,
//! never while an attribute is shown.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::FileHandle;
use parking_lot::Mutex;

#[derive(Debug, Default)]
pub(super) struct Snapshots {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last_handle: u64,
    texts: HashMap<u64, Arc<str>>,
}

impl Snapshots {
    /// A handle that nothing has been read from.
    pub(super) fn open(&self) -> FileHandle {
        let mut open = self.open.lock();
        open.last_handle += 1;
        let handle = open.last_handle;
        open.texts.insert(handle, Arc::from(""));
        FileHandle(handle)
    }

    /// Keeps `text` for the reads that follow, while the handle is open.
    pub(super) fn take(&self, handle: FileHandle, text: Arc<str>) {
        if let Some(kept) = self.open.lock().texts.get_mut(&handle.0) {
            *kept = text;
        }
    }

    /// The text that was taken last.
    pub(super) fn get(&self, handle: FileHandle) -> Option<Arc<str>> {
        self.open.lock().texts.get(&handle.0).cloned()
    }

    pub(super) fn close(&self, handle: FileHandle) {
        self.open.lock().texts.remove(&handle.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_lives_from_take_to_close() {
        let snapshots = Snapshots::default();
        let (a, b) = (snapshots.open(), snapshots.open());
        assert_ne!(a, b);
        snapshots.take(a, "one".into());
        assert_eq!(snapshots.get(a).as_deref(), Some("one"));
        assert_eq!(snapshots.get(b).as_deref(), Some(""));
        snapshots.close(a);
        snapshots.take(a, "late".into());
        assert_eq!(snapshots.get(a), None);
    }
}
