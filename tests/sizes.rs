//! Devices from the smallest to the largest cost what is written to them, not what they could hold.

use std::ops::ControlFlow;

use uzram::{
    BackingConfig, BlockDevice, Device, DeviceConfig, Extent, MAX_DEVICE_BYTES, PAGE_SIZE,
    PageState,
};

const PAGE: u64 = PAGE_SIZE as u64;

fn page(tag: u64) -> Vec<u8> {
    (0..PAGE).map(|i| (i * tag / 7 + tag) as u8).collect()
}

/// Writes to the first and the last page, and sees nothing else.
fn ends_hold_data(device: &Device) {
    let last = device.size() - PAGE;
    device.write(0, &page(3)).expect("room");
    device.write(last, &page(5)).expect("room");
    let mut found = vec![0; PAGE_SIZE];
    device.read(last, &mut found).expect("readable");
    assert!(found == page(5));
    let mut data = 0;
    device.extents(0..device.size(), &mut |extent: Extent| {
        if extent.state != PageState::Empty {
            assert!(extent.offset == 0 || extent.offset == last);
            data += extent.len;
        }
        ControlFlow::Continue(())
    });
    assert_eq!(data, if last == 0 { PAGE } else { 2 * PAGE });
    device.check();
    device.discard(0, device.size()).expect("no room needed");
    device.check();
    let stats = device.stats();
    assert_eq!((stats.orig_data_size, stats.mem_used_total), (0, 0));
}

#[test]
fn the_smallest_device() {
    let mut config = DeviceConfig::new(PAGE);
    config.shards = Some(256);
    ends_hold_data(&Device::new(&config).expect("a device"));
}

#[test]
fn the_largest_device_costs_what_is_in_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = DeviceConfig::new(MAX_DEVICE_BYTES);
    config.backing = Some(BackingConfig::new(dir.path().join("spill")));
    config.mem_limit = Some(64 << 20);
    let before = uzram_rss();
    let device = Device::new(&config).expect("a device");
    ends_hold_data(&device);
    // Reading what was never written is not writing: no table is filled in.
    let mut buf = vec![1; 1 << 20];
    for at in (0..device.size()).step_by((device.size() / 64) as usize) {
        device.read(at, &mut buf).expect("readable");
        assert!(buf.iter().all(|&byte| byte == 0));
    }
    let grown = uzram_rss().saturating_sub(before);
    assert!(grown < 64 << 20, "grew by {grown} bytes");
}

#[test]
fn the_smallest_limit_still_takes_everything() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = DeviceConfig::new(1000 * PAGE);
    config.mem_limit = Some(DeviceConfig::MIN_MEM_LIMIT);
    config.backing = Some(BackingConfig::new(dir.path().join("spill")));
    for shards in [1, 7] {
        config.shards = Some(shards);
        let device = Device::new(&config).expect("a device");
        for at in 0..1000 {
            device.write(at * PAGE, &page(at + 1)).expect("it spills");
            assert!(device.stats().mem_used_total <= DeviceConfig::MIN_MEM_LIMIT);
        }
        for at in 0..1000 {
            let mut found = vec![0; PAGE_SIZE];
            device.read(at * PAGE, &mut found).expect("readable");
            assert!(found == page(at + 1));
        }
        device.check();
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    for size in [0, 1, PAGE - 1, PAGE + 1, MAX_DEVICE_BYTES + PAGE] {
        let error = Device::new(&DeviceConfig::new(size))
            .err()
            .expect("refused");
        assert!(
            error.is_usage() && error.to_string().contains("size: "),
            "{size}: {error}"
        );
    }
    let mut config = DeviceConfig::new(1 << 20);
    config.mem_limit = Some(DeviceConfig::MIN_MEM_LIMIT - 1);
    assert!(
        Device::new(&config)
            .err()
            .expect("refused")
            .to_string()
            .contains("mem_limit: ")
    );
    for (size, shards) in [(1 << 20, 0), (1 << 20, 257), (MAX_DEVICE_BYTES, 1)] {
        let mut config = DeviceConfig::new(size);
        config.shards = Some(shards);
        let error = Device::new(&config).err().expect("refused");
        assert!(
            error.is_usage() && error.to_string().contains("shards: "),
            "{error}"
        );
    }
}

/// Resident bytes of this process.
fn uzram_rss() -> u64 {
    Device::new(&DeviceConfig::new(PAGE))
        .expect("a device")
        .stats()
        .rss_bytes
}
