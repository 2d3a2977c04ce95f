//! Commands on a device whose users have just gone: a connection or file that was closed is in use until the
//! server has seen that, which takes a busy machine any time.

use std::process::Output;
use std::time::Instant;

use crate::common::{HANG, World};

impl World {
    /// Runs a verb again while it is refused for users that are there, at most [`HANG`].
    pub(crate) fn once_unused(&self, args: &[&str]) -> Output {
        let begun = Instant::now();
        loop {
            let output = self.run(args);
            let is_used = String::from_utf8_lossy(&output.stderr).contains(" is in use by ");
            if output.status.success() || !is_used || begun.elapsed() > HANG {
                return output;
            }
        }
    }

    /// Such a verb must succeed.
    pub(crate) fn ok_once_unused(&self, args: &[&str]) {
        let output = self.once_unused(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}
