//! The files of spills, as a server's record has them, so that what it leaves when it is killed is
//! found, told from other files, and cleared.
//!
//! Invariants:
//! 1. A file is in the record before anything is written to it, and until it is cleared. One that is
//!    being made is there by its path alone, and only an empty file counts as that.
//! 2. Whatever stands at the path is cleared only if it is the file: its directory is opened once, and the
//!    file is looked at and cleared in that. To be removed it first gets a name of its own there, which
//!    also takes it out of the way of whoever replaces it meanwhile: what has the new name is looked
//!    at, and if it is another file it gets its name back. So nobody loses a file but by putting it
//!    under that name of its own, for which he must be able to write to the directory, and so could
//!    remove it himself. A kill in between leaves that name, which is looked for too.
//! 3. Of a killed server's file the contents are looked at, too: what was written over them since stays.
//! 4. It is done by a process of its own, because nothing ends one that a frozen file system holds up; by
//!    ourselves only where that one cannot be had.
//!
//! Locks nothing; a record has its own lock.

mod file;
mod notes;

use std::sync::Arc;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub(crate) use self::file::SpillFile;
pub(crate) use self::notes::{SpillNotes, is_missing};

/// Has nothing stop us that ends the server that asked for it: when a unit's server is gone, systemd
/// tells all processes of the unit to end as well.
pub(crate) fn outlive_the_server() -> Result<()> {
    // Fails only for a leader of a process group, which then is not the server's child.
    let _ = rustix::process::setsid();
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::default()).context("cannot handle signals")?;
    }
    Ok(())
}
