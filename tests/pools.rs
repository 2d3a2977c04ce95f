//! Each allocator under a device that spills most of what it holds.

use std::fs;
use std::path::Path;

use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, PoolKind};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 8 * MIB;

/// Real data: this test's own program and others that lie beside it.
fn data(bytes: usize) -> Vec<u8> {
    let program = std::env::current_exe().expect("there is one");
    let beside = program.parent().unwrap_or(Path::new("/"));
    let mut data = fs::read(&program).expect("readable");
    for entry in fs::read_dir(beside).expect("readable").flatten() {
        if data.len() >= bytes {
            break;
        }
        data.extend(fs::read(entry.path()).unwrap_or_default());
    }
    data.resize(bytes, 0);
    data
}

#[test]
fn every_pool_spills_and_brings_back_what_it_was_given() {
    let data = data(64 << 20);
    for pool in PoolKind::ALL {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = DeviceConfig::new(data.len() as u64);
        config.pool = pool;
        config.shards = Some(2);
        config.mem_limit = Some(LIMIT);
        config.backing = Some(BackingConfig::new(dir.path().join("spill")));
        let device = Device::new(&config).expect("a device");
        for (chunk, offset) in data.chunks(MIB as usize).zip((0..).step_by(MIB as usize)) {
            device.write(offset, chunk).expect("it spills");
            let used = device.stats().mem_used_total;
            assert!(used <= LIMIT, "{pool}: {used}");
        }
        let stats = device.stats();
        assert!(stats.written_back_pages > 0, "{pool}: {stats:?}");
        let mut found = vec![0; MIB as usize];
        for (chunk, offset) in data.chunks(MIB as usize).zip((0..).step_by(MIB as usize)) {
            device.read(offset, &mut found).expect("readable");
            assert!(found == chunk, "{pool}: the MiB at {offset}");
        }
        device.check();

        // Of what is left every other page goes: more than half of the memory is free by that.
        let page = PAGE_SIZE as u64;
        for offset in (0..data.len() as u64).step_by(2 * PAGE_SIZE) {
            device.discard(offset, page).expect("no room needed");
        }
        device.compact();
        device.check();
        for (chunk, offset) in data.chunks(2 * PAGE_SIZE).zip((0..).step_by(2 * PAGE_SIZE)) {
            device
                .read(offset + page, &mut found[..PAGE_SIZE])
                .expect("readable");
            assert!(
                found[..PAGE_SIZE] == chunk[PAGE_SIZE..],
                "{pool}: at {offset}"
            );
        }
        device
            .discard(0, data.len() as u64)
            .expect("no room needed");
        assert_eq!(device.stats().mem_used_total, 0, "{pool}");
        device.check();
    }
}
