//! Everything here once more, over io_uring.

use std::env;
use std::io::{self, Write};
use std::process::Command;

use crate::offered::{OVER_IO_URING, Offered};
use crate::rig::can_mount;

#[test]
fn all_the_same_over_io_uring() {
    // Not once more within itself.
    if env::var_os(OVER_IO_URING).is_some() || !can_mount("all_the_same_over_io_uring") {
        return;
    }
    let offered = match Offered::make() {
        Ok(offered) => offered,
        Err(reason) => {
            let _ = writeln!(
                io::stderr(),
                "SKIPPED: all_the_same_over_io_uring: {reason}"
            );
            return;
        }
    };
    let output = Command::new(env::current_exe().expect("this test"))
        .args(["attributes::", "disk::", "mounts::"])
        .env(OVER_IO_URING, "1")
        .output()
        .expect("runs");
    drop(offered);
    assert!(output.status.success(), "{output:#?}");
}
