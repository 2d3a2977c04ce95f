//! Operations on a device, beside an array of bytes that says what they should do. The first byte
//! chooses the allocator and whether there is a limit and a backing; then four bytes are a step.
#![no_main]

mod scratch;

use libfuzzer_sys::fuzz_target;
use uzram::{
    Algorithm, BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, PoolKind, Recompression,
    Selection,
};

const PAGES: usize = 96;
const BYTES: usize = PAGES * PAGE_SIZE;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, steps)) = input.split_first() else {
        return;
    };
    let dir = scratch::directory();
    let mut config = DeviceConfig::new(BYTES as u64);
    config.pool = PoolKind::ALL[usize::from(mode) % 3];
    config.shards = Some(1 + u32::from(mode / 4) % 2);
    if mode & 128 != 0 {
        config.mem_limit = Some(24 * PAGE_SIZE as u64);
        config.backing = Some(BackingConfig::new(dir.path().join("spill")).encrypt(mode & 64 != 0));
    }
    let device = Device::new(&config).expect("a device");
    let mut bytes = vec![0; BYTES];
    let (steps, _) = steps.as_chunks::<4>();
    for &[operation, at, len, seed] in steps {
        step(&device, &mut bytes, operation, at, len, seed);
    }
    device.check();
    verify(&device, &bytes, 0, BYTES);
    device.discard(0, BYTES as u64).expect("no room needed");
    // What was on its way to the backing has landed after this.
    device.check();
    assert_eq!(device.stats().mem_used_total, 0);
});

fn step(device: &Device, bytes: &mut [u8], operation: u8, at: u8, len: u8, seed: u8) {
    // Sometimes whole pages, sometimes not.
    let unit = if operation & 64 != 0 { PAGE_SIZE } else { 1021 };
    let start = usize::from(at) * unit % BYTES;
    let end = BYTES.min(start + usize::from(len % 24) * unit);
    let (offset, length) = (start as u64, (end - start) as u64);
    match operation % 12 {
        0..4 => {
            fill(seed, &mut bytes[start..end]);
            device.write(offset, &bytes[start..end]).expect("there is room");
        }
        4 => verify(device, bytes, start, end),
        5 => {
            bytes[start..end].fill(0);
            device.discard(offset, length).expect("there is room");
        }
        6 => {
            bytes[start..end].fill(0);
            device.write_zeroes(offset, length).expect("there is room");
        }
        7 => {
            device.compact();
        }
        8 => {
            // Without a backing it is refused.
            let _ = device.evict(length);
        }
        9 => {
            device.mark_idle(None);
            let what = ["idle", "huge", "page_indexes=3-77"][usize::from(seed) % 3];
            let selection = Selection::parse(what, PAGES as u64).expect("a selection");
            let _ = device.write_back(selection);
        }
        10 => {
            let what = ["algo=zstd", "type=idle algo=zstd:7", "algo=lz4"][usize::from(seed) % 3];
            let request = Recompression::parse(what).expect("parameters");
            device.recompress(&request).expect("an algorithm");
        }
        _ => {
            let algorithm = match seed % 2 {
                0 => Algorithm::Lz4,
                _ => Algorithm::Zstd { level: 1 },
            };
            device.set_algorithm(algorithm).expect("it is in this build");
        }
    }
}

/// Data of different compressibility.
fn fill(seed: u8, out: &mut [u8]) {
    let mut state = u32::from(seed) | 1;
    for (i, byte) in out.iter_mut().enumerate() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = match seed % 4 {
            0 => seed,
            1 => (state >> 24) as u8,
            _ if i % 7 == 0 => (state >> 24) as u8,
            _ => b"zspage"[i % 6],
        };
    }
}

fn verify(device: &Device, bytes: &[u8], start: usize, end: usize) {
    let mut found = vec![0; end - start];
    device.read(start as u64, &mut found).expect("readable");
    assert!(found == bytes[start..end]);
}
