//! A block device as backing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::config::{BackingConfig, BackingKeep};

/// A loop device over a file; both go with this, or with the process.
struct Disk {
    path: PathBuf,
    _open: File,
}

impl Disk {
    /// `None`, said loudly, where there can be none.
    fn of(bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("SKIPPED: needs root and /dev/loop-control");
            return None;
        }
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        file.as_file().set_len(bytes).expect("room");
        let losetup = |args: &[&str], path: &Path| {
            let output = Command::new("losetup").args(args).arg(path).output();
            let output = output.expect("losetup");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("a path")
        };
        let said = losetup(&["--find", "--show"], file.path());
        let path = PathBuf::from(said.trim_end());
        let open = File::open(&path).expect("there");
        // It is gone once nobody has it open.
        losetup(&["--detach"], &path);
        Some(Self { path, _open: open })
    }

    fn holds_data(&self) -> bool {
        let bytes = fs::read(&self.path).expect("readable");
        bytes.iter().any(|&byte| byte != 0)
    }

    /// A device that spills there, and wipes it in the end.
    fn spilled_to(&self) -> crate::Result<Device> {
        let mut config = DeviceConfig::new(1000 * PAGE);
        config.mem_limit = Some(64 * PAGE);
        config.backing = Some(BackingConfig {
            keep: BackingKeep::Wipe,
            ..BackingConfig::new(&self.path)
        });
        Device::new(&config)
    }
}

#[test]
fn the_smallest_block_device_is_spilled_to_and_wiped() {
    let Some(disk) = Disk::of(4 << 20) else {
        return;
    };
    let device = disk.spilled_to().expect("a device");
    for page in 0..1000 {
        write(&device, page, page).expect("room");
    }
    for page in 0..1000 {
        expect(&device, page, page);
    }
    device.check();
    assert!(disk.holds_data());
    drop(device);
    assert!(!disk.holds_data());
}

#[test]
fn a_block_device_that_is_too_small_is_refused() {
    let Some(disk) = Disk::of((4 << 20) - 4096) else {
        return;
    };
    let refused = disk.spilled_to().map(drop).expect_err("too small");
    assert!(refused.to_string().contains("at least 4 MiB"), "{refused}");
}
