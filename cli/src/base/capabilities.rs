//! The capabilities of root: those that a server keeps, and the threads that keep none.

use rustix::io::{Errno, Result};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// What the server, and the tools that it runs at its end, use of root's capabilities.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN // unmounts its directory, and what is attached to it
    .union(CapabilitySet::DAC_OVERRIDE) // files that are named to it, whoever owns them
    .union(CapabilitySet::FOWNER) // what it replaces, like an image, in a directory like /tmp
    .union(CapabilitySet::IPC_LOCK) // swap, keys
    .union(CapabilitySet::SYS_RESOURCE) // the blocks that a file system reserves for root
    .union(CapabilitySet::NET_BIND_SERVICE); // ports below 1024

/// Takes all others from this thread, those that it starts, and the programs that they run.
///
/// # Errors
/// The kernel's.
pub(crate) fn drop_unused() -> Result<()> {
    let had = thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: had.effective & KEPT,
        permitted: had.permitted & KEPT,
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
