//! A block device as backing.

use super::*;
use crate::spill::LoopDisk;
use crate::spill::{BackingConfig, BackingKeep};

/// A device that spills to a disk, and wipes it in the end.
fn spilled_to(disk: &LoopDisk) -> crate::Result<Device> {
    let mut config = DeviceConfig::new(1000 * PAGE);
    config.mem_limit = Some(64 * PAGE);
    config.backing = Some(BackingConfig {
        keep: BackingKeep::Wipe,
        ..BackingConfig::new(&disk.path)
    });
    Device::new(&config)
}

#[test]
fn the_smallest_block_device_is_spilled_to_and_wiped() {
    let Some(disk) = LoopDisk::of(4 << 20) else {
        return;
    };
    let device = spilled_to(&disk).expect("a device");
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
    let Some(disk) = LoopDisk::of((4 << 20) - 4096) else {
        return;
    };
    let refused = spilled_to(&disk).map(drop).expect_err("too small");
    assert!(refused.to_string().contains("at least 4 MiB"), "{refused}");
}
