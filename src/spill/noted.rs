//! A backing whose coming and going is noted, so that what a killed process leaves of it can be found.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backing::{Backing, Store};
use super::config::BackingConfig;
use super::file::FileBacking;
use super::handover::{Handover, KeptStore};
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::sync::Mutex;

/// Whoever keeps a note of the backings that a device uses.
///
/// The device owes: nothing is made, opened or written to before it is noted, and what is noted as
/// closed is closed, with its file removed or emptied where that is due. It notes one opening after
/// the other.
pub trait BackingNotes: Send + Sync {
    /// The backing at `path` is about to be opened, and made if nothing is there; or it was `handed` over, open.
    ///
    /// # Errors
    /// If that cannot be noted: then it is not opened.
    fn opening(&self, path: &Path, handed: Option<&HandedFile>) -> io::Result<()>;

    /// It is open, empty, and about to be written to.
    ///
    /// # Errors
    /// If that cannot be noted: then it is closed again.
    fn opened(&self, path: &Path) -> io::Result<()>;

    /// It could not be opened, and what was made of it is gone.
    fn not_opened(&self, path: &Path);

    /// One that was opened is closed.
    fn closed(&self, path: &Path);
}

/// Opens backings, each of them noted if anybody keeps notes.
#[derive(Default)]
pub(crate) struct Opener {
    notes: Option<Arc<dyn BackingNotes>>,
    /// Held for an opening and its notes.
    turn: Mutex<()>,
}

impl Opener {
    pub(crate) fn noting(notes: Arc<dyn BackingNotes>) -> Self {
        Self {
            notes: Some(notes),
            turn: Mutex::default(),
        }
    }

    /// [`FileBacking::open`], noted.
    ///
    /// # Errors
    /// Those of [`FileBacking::open`]; [`Error::Io`] if it cannot be noted.
    pub(crate) fn open(&self, config: &BackingConfig) -> Result<Arc<dyn Backing>> {
        let Some(notes) = &self.notes else {
            return Ok(Arc::new(FileBacking::open(config)?));
        };
        let path = config.path.as_path();
        let failed = |error| Error::io(format!("note the backing {}", path.display()), error);
        let _turn = self.turn.lock();
        let handed = config.handed.as_ref();
        notes.opening(path, handed).map_err(failed)?;
        let backing = FileBacking::open(config).inspect_err(|_| notes.not_opened(path))?;
        let noted = NotedBacking {
            backing,
            note: Note {
                path: path.to_owned(),
                notes: Arc::clone(notes),
            },
        };
        notes.opened(path).map_err(failed)?;
        Ok(Arc::new(noted))
    }
}

impl Opener {
    /// Goes on with a backing that another process had open, and noted.
    ///
    /// # Errors
    /// Those of [`FileBacking::adopt`].
    pub(crate) fn adopt(&self, kept: KeptStore) -> Result<Arc<dyn Backing>> {
        let path = kept.note.path();
        let backing = FileBacking::adopt(kept)?;
        Ok(match &self.notes {
            None => Arc::new(backing),
            Some(notes) => Arc::new(NotedBacking {
                backing,
                note: Note {
                    path,
                    notes: Arc::clone(notes),
                },
            }),
        })
    }
}

/// Its fields are dropped in this order.
struct NotedBacking {
    backing: FileBacking,
    note: Note,
}

struct Note {
    path: PathBuf,
    notes: Arc<dyn BackingNotes>,
}

impl Drop for Note {
    fn drop(&mut self) {
        self.notes.closed(&self.path);
    }
}

impl Backing for NotedBacking {
    fn capacity(&self) -> io::Result<u64> {
        self.backing.capacity()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backing.write_at(offset, data)
    }
}

impl Store for NotedBacking {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.backing.read_at(offset, buf)
    }

    fn discard(&self, segment: Range<u64>) {
        self.backing.discard(segment);
    }

    fn path(&self) -> &Path {
        &self.note.path
    }

    fn handover(&self) -> Option<Handover<'_>> {
        self.backing.handover()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What was noted, and whether the file was there then; some notes cannot be taken.
    #[derive(Default)]
    struct Notes {
        taken: Mutex<Vec<(&'static str, bool)>>,
        fails: Option<&'static str>,
    }

    impl Notes {
        fn take(&self, note: &'static str, path: &Path) -> io::Result<()> {
            self.taken.lock().push((note, path.exists()));
            match self.fails {
                Some(fails) if fails == note => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        }
    }

    impl BackingNotes for Notes {
        fn opening(&self, path: &Path, _handed: Option<&HandedFile>) -> io::Result<()> {
            self.take("opening", path)
        }

        fn opened(&self, path: &Path) -> io::Result<()> {
            self.take("opened", path)
        }

        fn not_opened(&self, path: &Path) {
            let _ = self.take("not opened", path);
        }

        fn closed(&self, path: &Path) {
            let _ = self.take("closed", path);
        }
    }

    fn noting(fails: Option<&'static str>) -> (Arc<Notes>, Opener) {
        let notes = Arc::new(Notes {
            fails,
            ..Notes::default()
        });
        let opener = Opener::noting(Arc::<Notes>::clone(&notes));
        (notes, opener)
    }

    #[test]
    fn each_step_is_noted_before_it_is_taken_and_the_end_after_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("b");
        let (notes, opener) = noting(None);
        let backing = opener.open(&BackingConfig::new(&path)).expect("made");
        assert_eq!(*notes.taken.lock(), [("opening", false), ("opened", true)]);
        drop(backing);
        assert_eq!(notes.taken.lock()[2..], [("closed", false)]);

        fs::write(&path, "precious").expect("written");
        notes.taken.lock().clear();
        opener
            .open(&BackingConfig::new(&path))
            .map(drop)
            .expect_err("not a spill");
        assert_eq!(
            *notes.taken.lock(),
            [("opening", true), ("not opened", true)]
        );
        assert_eq!(fs::read(&path).expect("there"), b"precious");
    }

    #[test]
    fn what_cannot_be_noted_is_not_used() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("b");
        for (fails, expected) in [("opening", 1), ("opened", 3)] {
            let (notes, opener) = noting(Some(fails));
            let refused = opener.open(&BackingConfig::new(&path)).map(drop);
            let refused = refused.expect_err("not noted").to_string();
            assert!(refused.contains("note the backing"), "{refused}");
            assert_eq!(notes.taken.lock().len(), expected);
            assert!(!path.exists(), "{fails}");
        }
    }
}
