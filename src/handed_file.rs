//! Files that somebody else has opened for this process, which may have no right to their paths.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// An open file that came from another process, with the rights with which that opened it.
#[derive(Clone, Debug)]
pub struct HandedFile {
    file: Arc<File>,
    made: bool,
}

impl HandedFile {
    /// A file that was there, or was `made` to be handed over.
    pub fn new(file: impl Into<OwnedFd>, made: bool) -> Self {
        Self {
            file: Arc::new(File::from(file.into())),
            made,
        }
    }

    /// Whether whoever opened it has made it.
    pub fn is_made(&self) -> bool {
        self.made
    }

    /// The same open file, by a descriptor of its own.
    ///
    /// # Errors
    /// The kernel's, without a descriptor to be had.
    pub(crate) fn open(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl AsFd for HandedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One is equal to its clones.
impl PartialEq for HandedFile {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }
}

impl Eq for HandedFile {}
