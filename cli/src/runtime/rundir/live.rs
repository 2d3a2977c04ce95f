//! The record of a server that runs: what changes is written before it counts. One lock, held while it
//! is written.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};

use super::record::Record;
use super::{NEW_RECORD, RECORD};

/// A server's own record, shared by its threads.
#[derive(Clone, Debug)]
pub(crate) struct LiveRecord(Arc<Mutex<Written>>);

#[derive(Debug)]
struct Written {
    record: Record,
    dir: OwnedFd,
}

impl LiveRecord {
    /// Writes the first record to a device's directory.
    pub(super) fn begin(dir: OwnedFd, record: Record) -> io::Result<Self> {
        write(&dir, &record)?;
        Ok(Self(Arc::new(Mutex::new(Written { record, dir }))))
    }

    pub(crate) fn now(&self) -> Record {
        self.lock().record.clone()
    }

    /// Writes what `change` makes of it.
    ///
    /// # Errors
    /// If it cannot be written: then it is as before.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        let mut written = self.lock();
        let mut record = written.record.clone();
        change(&mut record);
        if record == written.record {
            return Ok(());
        }
        write(&written.dir, &record)?;
        written.record = record;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the record in the place of the one before, for others to see all of it or nothing.
fn write(dir: &OwnedFd, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let new = rustix::fs::openat(dir, NEW_RECORD, flags, Mode::RUSR | Mode::WUSR)?;
    File::from(new).write_all(&text)?;
    Ok(rustix::fs::renameat(dir, NEW_RECORD, dir, RECORD)?)
}
