//! What each open attribute file read last, so that a text read in pieces is of one moment.
//!
//! As in sysfs, a read at offset 0 takes a new text; later offsets continue it. A text that is too
//! long for that is taken in parts, one after the other. Locks one map, never while an attribute is
//! shown.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::FileHandle;
use parking_lot::Mutex;

use crate::sync::time::since_boot;

#[derive(Debug, Default)]
pub(super) struct Snapshots {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    last_handle: u64,
    texts: HashMap<u64, Part>,
}

/// A text, or part of one.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Bytes of the text before it.
    pub(super) start: u64,
    pub(super) text: Arc<str>,
    /// The page that the next part starts with, if there is one.
    pub(super) next: Option<u64>,
}

impl Part {
    /// A text as a whole.
    pub(super) fn whole(text: String) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Where the next part starts.
    pub(super) fn end(&self) -> u64 {
        self.start + self.text.len() as u64
    }
}

impl Snapshots {
    /// A handle that nothing has been read from.
    pub(super) fn open(&self) -> FileHandle {
        let mut open = self.open.lock();
        // As those of `disk`: a server before this one gave out others.
        let now = since_boot().as_nanos() as u64;
        open.last_handle = now.max(open.last_handle + 1);
        let handle = open.last_handle;
        open.texts.insert(handle, Part::default());
        FileHandle(handle)
    }

    /// Keeps `text` for the reads that follow, while the handle is open.
    pub(super) fn take(&self, handle: FileHandle, text: Part) {
        if let Some(kept) = self.open.lock().texts.get_mut(&handle.0) {
            *kept = text;
        }
    }

    /// The text that was taken last.
    pub(super) fn get(&self, handle: FileHandle) -> Option<Part> {
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
        let text = |handle| snapshots.get(handle).map(|part| part.text.to_string());
        snapshots.take(a, Part::whole("one".to_owned()));
        assert_eq!(text(a).as_deref(), Some("one"));
        assert_eq!(text(b).as_deref(), Some(""));
        snapshots.close(a);
        snapshots.take(a, Part::whole("late".to_owned()));
        assert_eq!(text(a), None);
    }
}
