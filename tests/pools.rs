//! Each allocator under a device that spills most of what it holds.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use uzram::{
    BackingConfig, BlockDevice, Device, DeviceConfig, OriginConfig, OriginUse, PAGE_SIZE, PoolKind,
    SyncPolicy,
};

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

/// As much as a user would: eight times the limit, to a backing and to an image.
#[test]
fn every_pool_reads_back_half_a_gibibyte() {
    const LIMIT: u64 = 64 * MIB;
    let data = data(512 << 20);
    for pool in PoolKind::ALL {
        for over_an_image in [false, true] {
            // Not in memory, as /tmp may be.
            let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
            let mut config = DeviceConfig::new(data.len() as u64);
            config.pool = pool;
            config.mem_limit = Some(LIMIT);
            let image = dir.path().join("image");
            if over_an_image {
                let file = fs::File::create(&image).expect("made");
                file.set_len(data.len() as u64).expect("it has room");
                let usage = OriginUse::WriteBack(SyncPolicy::Flush);
                config.origin = Some(OriginConfig::new(&image, usage));
            } else {
                config.backing = Some(BackingConfig::new(dir.path().join("spill")));
            }
            let device = Device::new(&config).expect("a device");
            for (chunk, offset) in data.chunks(MIB as usize).zip((0..).step_by(MIB as usize)) {
                device.write(offset, chunk).expect("it evicts");
            }
            let mut found = vec![0; MIB as usize];
            for (chunk, offset) in data.chunks(MIB as usize).zip((0..).step_by(MIB as usize)) {
                device.read(offset, &mut found).expect("readable");
                assert!(found == chunk, "{pool}: the MiB at {offset}");
            }
            assert!(device.stats().mem_used_max <= LIMIT, "{pool}");
            device.check();
            if over_an_image {
                device.flush().expect("the image works");
                let file = fs::File::open(&image).expect("readable");
                for (chunk, offset) in data.chunks(MIB as usize).zip((0..).step_by(MIB as usize)) {
                    file.read_exact_at(&mut found, offset).expect("readable");
                    assert!(found == chunk, "{pool}: the image at {offset}");
                }
            }
        }
    }
}
