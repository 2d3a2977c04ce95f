//! The kernel's offer to serve mounts over io_uring.

use std::env;
use std::fs;
use std::io::{self, Write};

use rustix::fs::{FlockOperation, flock};

/// Set in the environment of those whose mounts must be over io_uring.
pub const OVER_IO_URING: &str = "UZRAM_TEST_OVER_IO_URING";

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// The kernel's offer of rings to those who mount meanwhile; what it was comes back when dropped.
/// Others may mount over rings, too, and are none the worse for it.
pub struct Offered {
    before: String,
    /// Locked, among all who change it.
    _parameter: fs::File,
}

impl Offered {
    /// Makes the offer for `test`, which runs others once more. `None` if it is one of those itself,
    /// or the offer cannot be had, which it says.
    pub fn to(test: &str) -> Option<Self> {
        if env::var_os(OVER_IO_URING).is_some() {
            return None;
        }
        Self::make()
            .inspect_err(|reason| {
                // Straight to the descriptor: the harness keeps what a passing test prints to itself.
                let _ = writeln!(io::stderr(), "SKIPPED: {test}: {reason}");
            })
            .ok()
    }

    fn make() -> Result<Self, String> {
        let missing = |error| format!("{PARAMETER}: {error}");
        let parameter = fs::File::open(PARAMETER).map_err(missing)?;
        flock(&parameter, FlockOperation::LockExclusive).map_err(|error| missing(error.into()))?;
        let before = fs::read_to_string(PARAMETER).map_err(missing)?;
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
        if disabled.is_ok_and(|disabled| disabled.trim() == "2") {
            return Err("io_uring is disabled by sysctl".to_owned());
        }
        fs::write(PARAMETER, "Y").map_err(missing)?;
        Ok(Self {
            before,
            _parameter: parameter,
        })
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let _ = fs::write(PARAMETER, &self.before);
    }
}
