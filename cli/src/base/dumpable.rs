//! Whether what is in a server's memory can be got out of it: by a core dump, or by a debugger of the same
//! user. It cannot, because there are pages in plain text and keys; but who works on uzram needs it.

use std::env;

use rustix::process::DumpableBehavior;

/// Has servers be as dumpable as any program when it is `1`.
const OVERRIDE: &str = "UZRAM_DUMPABLE";

/// Makes this process one that leaves no core dump, and whose memory only root may look at. To be called
/// before there is anything to hide, but after all that is written to `/proc/self`, which is root's then.
pub(crate) fn forbid() {
    if env::var_os(OVERRIDE).is_some_and(|value| value == "1") {
        tracing::warn!("{OVERRIDE}=1: core dumps and debuggers may read pages and the TLS key");
        return;
    }
    // It only fails for a behavior that the kernel does not know.
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!("core dumps may hold pages and keys: {error}");
    }
}
