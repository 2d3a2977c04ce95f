//! File systems on a device that spills: filled, checked by their own fsck, compared.

use std::process::Command;

use crate::rig::{MIB, MountPoint, RealFiles, Scratch, run, skip_without_mounts, stat, tool};

const LIMIT: u64 = 48 * MIB;

#[test]
fn ext4_is_whole_after_spilling() {
    fill_check_and_compare("ext4", "e2fsck", &["-f", "-n"]);
}

#[test]
fn btrfs_is_whole_after_spilling() {
    fill_check_and_compare("btrfs", "btrfs", &["check", "--readonly"]);
}

#[test]
fn xfs_is_whole_after_spilling() {
    fill_check_and_compare("xfs", "xfs_repair", &["-n"]);
}

fn fill_check_and_compare(fs: &str, checker: &str, check_args: &[&str]) {
    if skip_without_mounts(fs) {
        return;
    }
    let scratch = Scratch::new();
    let files = RealFiles::choose(&scratch, 400 * MIB);
    let spill = scratch.arg("spill");
    let mount = MountPoint::new(
        &scratch,
        fs,
        &[
            "--size",
            "1G",
            "--mem-limit",
            "48M",
            "--backing",
            &spill,
            "--fs",
            fs,
        ],
    );
    let device = mount.device();

    files.copy_to(mount.dir());
    // `uzram umount` would take the data away: this is the file system alone.
    run(tool("umount").arg(mount.dir()));
    run(tool(checker).args(check_args).arg(&device));
    run(Command::new("mount").arg(&device).arg(mount.dir()));
    files.compare(mount.dir());

    stat(&scratch, mount.name()).check_spilling(LIMIT);
    mount.umount();
}
