//! What a server does for a device that serves swap: it must go on when there is no memory to be had,
//! since that is when it is needed, and waiting for a page of its own to be swapped in, from itself,
//! would never end.

use std::fs;

use anyhow::{Context, Result};
use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit};

use crate::base::capabilities;

/// What [`lock_memory`] takes.
const NEEDS: &str = "--swap needs root, or a unit with LimitMEMLOCK=infinity";

/// Keeps this process's memory from being swapped, as it is touched, and, where that is allowed, the
/// process, and those that it starts, from being killed for want of memory.
///
/// # Errors
/// Without the right to lock memory.
pub(crate) fn prepare() -> Result<()> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    // Without the right to lock all it may have been given the limit that it needs.
    let _ = rustix::process::setrlimit(Resource::Memlock, unlimited);
    lock_memory()?;
    spare();
    Ok(())
}

/// Whether a process may lock all of its memory within its limit.
pub(crate) fn has_limit_to_lock() -> bool {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    limit.current.is_none()
}

/// Keeps this process's memory from being swapped, as it is touched.
///
/// # Errors
/// Without the right to lock memory.
pub(crate) fn lock_memory() -> Result<()> {
    if !has_limit_to_lock() && !capabilities::may_lock_memory() {
        anyhow::bail!("{NEEDS}");
    }
    // Addresses are reserved by the terabyte: only what is touched is to be locked.
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .context(NEEDS)
        .context("cannot lock memory")
}

/// Has the kernel take any other process first when memory runs out. Containers may not do that even
/// as root; then it is up to whoever started them.
fn spare() {
    const SCORE: &str = "/proc/self/oom_score_adj";
    if let Err(error) = fs::write(SCORE, "-1000") {
        let score = fs::read_to_string(SCORE).unwrap_or_default();
        tracing::warn!(
            "--swap: the OOM score stays {}: {error}; when memory runs out this server may be \
             killed, and what was swapped to it is lost",
            score.trim()
        );
    }
}
