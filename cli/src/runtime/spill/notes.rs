//! The files of spills in a server's record, as they come and go.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, absolute};
use std::time::Duration;

use rustix::fs::OFlags;
use uzram::{BackingNotes, HandedFile};

use super::file::SpillFile;
use crate::base::file_id::FileId;
use crate::runtime::rundir::{LiveRecord, Record};

/// Most files of a server that does not keep its record itself: a record is read to a bound.
const MOST: usize = 256;

/// How long removing a file may take that is not used any more.
const CLOSING: Duration = Duration::from_secs(3);

/// Has the record of a server name the files that it spills to.
pub(crate) struct SpillNotes {
    pub(crate) record: LiveRecord,
    /// Whether they are overwritten before they are cleared.
    pub(crate) wipe: bool,
}

impl SpillNotes {
    /// Notes what a server spills to that does not keep its record itself, and runs as the user `uid`: the `file`
    /// that it has claimed at `path`.
    ///
    /// # Errors
    /// If that is not there, or not its own, or it cannot be noted.
    pub(crate) fn claimed(
        &self,
        path: &Path,
        file: impl AsFd,
        made: bool,
        uid: u32,
    ) -> io::Result<()> {
        let Some(id) = claim(path, file.as_fd(), uid)? else {
            return Ok(());
        };
        if self.record.now().spills.len() >= MOST {
            return Err(io::Error::other("too many files are spilled to at once"));
        }
        self.record.change(|record| {
            if !record.spills.iter().any(|spill| spill.id == id) {
                record.spills.push(SpillFile {
                    id,
                    wipe: self.wipe,
                    found: !made,
                });
            }
        })
    }

    /// [`BackingNotes::closed`], within `timeout`.
    pub(crate) fn closed_within(&self, path: &Path, timeout: Duration) {
        let record = self.record.now();
        let mut made = record.spills.iter().filter(|spill| !spill.found);
        if let Some(spill) = made.find(|spill| spill.path() == path)
            && let Err(error) = spill.clear(timeout)
        {
            tracing::warn!("the backing file stays until the next start or detach: {error:#}");
            return;
        }
        self.forget(path, |record, path| {
            let spills = &mut record.spills;
            // By now another one may be at that path.
            let gone = take(spills, |file| file.path() == path && !file.is_left());
            if gone.is_none() {
                take(spills, |file| file.path() == path);
            }
        });
    }
}

impl BackingNotes for SpillNotes {
    fn opening(&self, path: &Path, handed: Option<&HandedFile>) -> io::Result<()> {
        let path = absolute(path)?;
        let is_made = match handed {
            Some(handed) => handed.is_made(),
            None => is_missing(&path),
        };
        match is_made {
            true => self.record.change(|record| record.making.push(path)),
            false => Ok(()),
        }
    }

    fn opened(&self, path: &Path) -> io::Result<()> {
        let path = absolute(path)?;
        let file = FileId::of(&path);
        self.record.change(|record| {
            let made = take(&mut record.making, |making| *making == path).is_some();
            record.spills.extend(file.map(|id| SpillFile {
                id,
                wipe: self.wipe,
                found: !made,
            }));
        })
    }

    fn not_opened(&self, path: &Path) {
        self.forget(path, |record, path| {
            take(&mut record.making, |making| making == path);
        });
    }

    /// The device has emptied what it was handed open, and has left its name.
    fn closed(&self, path: &Path) {
        self.closed_within(path, CLOSING);
    }
}

impl SpillNotes {
    /// What is noted for too long is looked for in vain, or was emptied already.
    fn forget(&self, path: &Path, change: impl FnOnce(&mut Record, &Path)) {
        let changed =
            absolute(path).and_then(|path| self.record.change(|record| change(record, &path)));
        if let Err(error) = changed {
            // As at the end of a server whose record is gone already.
            tracing::debug!("cannot note that {} is closed: {error}", path.display());
        }
    }
}

/// Whether a file would be made at `path`.
pub(crate) fn is_missing(path: &Path) -> bool {
    let there = fs::symlink_metadata(path);
    there.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// What tells the file at `path`; `None` for a block device, or without a time of birth. A process of the user `uid`
/// says that it spills there, and has opened it: it is to be emptied and removed for it, so it has to be able to
/// empty it itself.
///
/// # Errors
/// If it is another file, or one that it could not write to.
fn claim(path: &Path, file: BorrowedFd<'_>, uid: u32) -> io::Result<Option<FileId>> {
    let Some(id) = FileId::of(path) else {
        return Ok(None);
    };
    let is_writable = rustix::fs::fcntl_getfl(file)?.contains(OFlags::RDWR);
    let is_own = is_writable || rustix::fs::fstat(file)?.st_uid == uid;
    match is_own && id.is_open(file) {
        true => Ok(Some(id)),
        false => Err(ErrorKind::PermissionDenied.into()),
    }
}

/// Takes the first one out that is `wanted`.
fn take<T>(from: &mut Vec<T>, wanted: impl Fn(&T) -> bool) -> Option<T> {
    let at = from.iter().position(wanted)?;
    Some(from.remove(at))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_a_server_claims_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("b"), dir.path().join("other"));
        for path in [&path, &other] {
            fs::write(path, "precious").unwrap();
        }
        let ours = rustix::process::geteuid().as_raw();
        let writable = File::options().read(true).write(true).open(&path).unwrap();
        let readable = File::open(&path).unwrap();
        let claimed = |path: &Path, file: &File, uid| claim(path, file.as_fd(), uid);
        assert!(claimed(&path, &writable, ours + 1).unwrap().is_some());
        assert!(claimed(&path, &readable, ours).unwrap().is_some());
        // One that it may only read, and one that it has not opened.
        assert!(claimed(&path, &readable, ours + 1).is_err());
        assert!(claimed(&other, &writable, ours).is_err());
    }
}
