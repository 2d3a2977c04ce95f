//! The capabilities of root: those that a server keeps, and the threads that keep none.

use rustix::io::{Errno, Result};
use rustix::thread::{self, CapabilitiesSecureBits, CapabilitySet, CapabilitySets};

/// What the server, and the tools that it runs at its end, use of root's capabilities.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN // unmounts its directory, and what is attached to it
    .union(CapabilitySet::DAC_OVERRIDE) // files that are named to it, whoever owns them
    .union(CapabilitySet::FOWNER) // what it replaces, like an image, in a directory like /tmp
    .union(CapabilitySet::IPC_LOCK) // swap, keys
    .union(CapabilitySet::SYS_RESOURCE) // the blocks that a file system reserves for root
    .union(CapabilitySet::NET_BIND_SERVICE); // ports below 1024

/// To end processes of other users.
pub(crate) const KILL: CapabilitySet = CapabilitySet::KILL;

/// Takes all others from this thread, those that it starts, and the programs that they run.
///
/// # Errors
/// The kernel's.
pub(crate) fn drop_unused() -> Result<()> {
    drop_unused_but(CapabilitySet::empty())
}

/// The same, but for `some` more.
///
/// # Errors
/// The kernel's.
pub(crate) fn drop_unused_but(some: CapabilitySet) -> Result<()> {
    let kept = KEPT | some;
    let had = thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: had.effective & kept,
        permitted: had.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    if had.effective.contains(CapabilitySet::SETPCAP) {
        shrink_bounding_set()?;
    }
    // Who has none to give up may not be allowed to ask.
    if sets == had {
        return Ok(());
    }
    thread::set_capabilities(None, sets)
}

/// Whether this thread may lock memory, whatever its limit is.
pub(crate) fn may_lock_memory() -> bool {
    thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Has a program that `start` starts from this thread, as whoever, lock memory whatever its limit is; that is the
/// only capability that it then has.
///
/// # Errors
/// The kernel's: then nothing is started.
pub(crate) fn with_memory_locking<T>(start: impl FnOnce() -> T) -> Result<T> {
    let (had, bits) = (
        thread::capabilities(None)?,
        thread::capabilities_secure_bits()?,
    );
    let handing_on = CapabilitySets {
        inheritable: CapabilitySet::IPC_LOCK,
        ..had
    };
    thread::set_capabilities(None, handing_on)?;
    // Otherwise it goes with the last of root's IDs.
    thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    thread::configure_capability_in_ambient_set(CapabilitySet::IPC_LOCK, true)?;
    let started = start();
    thread::configure_capability_in_ambient_set(CapabilitySet::IPC_LOCK, false)?;
    thread::set_capabilities_secure_bits(bits)?;
    thread::set_capabilities(None, had)?;
    Ok(started)
}

/// Gives up all that this thread may do beyond others, for one that needs nothing but what it holds, and that
/// is there before the server gives up its rights.
pub(crate) fn renounce() {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    // It has none, or a filter that is about capabilities already.
    let _ = thread::set_capabilities(None, sets);
}

/// No program that is run from here on has others, not even one that its file gives them to.
fn shrink_bounding_set() -> Result<()> {
    let all = (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit));
    for capability in all.filter(|capability| !KEPT.contains(*capability)) {
        match thread::remove_capability_from_bounding_set(capability) {
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            done => done?,
        }
    }
    Ok(())
}
