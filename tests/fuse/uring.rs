//! Everything here once more, over io_uring.

use std::env;
use std::process::Command;

use crate::rig::can_mount;
use support::offered::{OVER_IO_URING, Offered};

#[test]
fn all_the_same_over_io_uring() {
    const TEST: &str = "all_the_same_over_io_uring";
    if !can_mount(TEST) {
        return;
    }
    let Some(offered) = Offered::to(TEST) else {
        return;
    };
    let output = Command::new(env::current_exe().expect("this test"))
        .args(["attributes::", "disk::", "mounts::"])
        .env(OVER_IO_URING, "1")
        .output()
        .expect("runs");
    drop(offered);
    assert!(output.status.success(), "{output:#?}");
}
