//! `fs_mark` as zsmalloc's writeback series ran it, to the end: 32 threads, 500 files each of 100 kB.

use std::path::Path;

use crate::rig::{MountPoint, Scratch, run, skip_without_mounts, stat, tool};

const THREADS: usize = 32;
const FILES_A_THREAD: usize = 500;

#[test]
fn fs_mark_ends_on_ext4() {
    fs_mark("ext4", None);
}

#[test]
fn fs_mark_ends_on_ext4_with_a_limit() {
    fs_mark("ext4", Some("64M"));
}

#[test]
fn fs_mark_ends_on_btrfs() {
    fs_mark("btrfs", None);
}

#[test]
fn fs_mark_ends_on_btrfs_with_a_limit() {
    fs_mark("btrfs", Some("64M"));
}

fn fs_mark(fs: &str, limit: Option<&str>) {
    if skip_without_mounts(&format!("fs_mark on {fs}")) {
        return;
    }
    let scratch = Scratch::new();
    let spill = scratch.arg("spill");
    let mut args = vec!["--size", "2G", "--fs", fs];
    if let Some(limit) = limit {
        args.extend(["--mem-limit", limit, "--backing", &spill]);
    }
    let mount = MountPoint::new(&scratch, "mark", &args);
    // A directory for each thread: two whose names begin in the same microsecond name their files alike.
    let dirs = (0..THREADS).map(|thread| mount.dir().join(thread.to_string()));
    run(tool("fs_mark")
        .args([
            "-s",
            "100000",
            "-n",
            &FILES_A_THREAD.to_string(),
            "-t",
            &THREADS.to_string(),
            "-k",
        ])
        .args(dirs.flat_map(|dir| ["-d".into(), dir.into_os_string()]))
        .current_dir(scratch.path()));
    assert_eq!(files_below(mount.dir()), THREADS * FILES_A_THREAD);
    assert_eq!(stat(&scratch, mount.name()).get("failed_writes"), 0);
    mount.umount();
}

fn files_below(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).expect("a readable directory");
    entries
        .map(|entry| {
            let entry = entry.expect("a readable directory");
            if entry.file_type().expect("its type").is_dir() {
                files_below(&entry.path())
            } else {
                1
            }
        })
        .sum()
}
