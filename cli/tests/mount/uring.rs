//! Some of the tests once more, over io_uring.

use std::env;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::alone;
use support::offered::{OVER_IO_URING, Offered};
use support::{can_mount, ended};

/// Bound on the tests that are run once more.
const HANG: Duration = Duration::from_secs(300);

#[test]
fn all_the_same_over_io_uring() {
    const TEST: &str = "all_the_same_over_io_uring";
    if !can_mount(TEST) {
        return;
    }
    let Some(offered) = Offered::to(TEST) else {
        return;
    };
    // For those that are run below.
    let _alone = alone();
    let mut tests = Command::new(env::current_exe().unwrap())
        .args([
            "a_busy_file_system_stays_whole",
            "a_limit_spills_to_a_file_that_goes_in_the_end",
            "deleted_files_give_their_memory_back",
            "ext4_round_trip",
            "sigterm_to_the_server_of_a_busy_file_system",
            "stopping_a_frozen_server_by_force_leaves_nothing",
            "umount_after_kill_9",
        ])
        .env(OVER_IO_URING, "1")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let status = ended(&mut tests, HANG);
    drop(offered);
    let status = status.unwrap_or_else(|| {
        tests.kill().unwrap();
        panic!("they hang");
    });
    assert!(status.success());
}

/// Whether the server `pid` has rings.
pub(crate) fn is_served(pid: u32) -> bool {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .any(|name| name.starts_with("uzram-ring-"))
}
