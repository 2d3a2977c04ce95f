//! A spill file that is changed behind the device's back: each page reads as it was, or not at all.
//! Five bytes are a change: where, and what is flipped there.
#![no_main]

mod scratch;

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page};

const PAGES: u64 = 200;
const PAGE: u64 = PAGE_SIZE as u64;

fuzz_target!(|input: &[u8]| {
    let Some((&mode, changes)) = input.split_first() else {
        return;
    };
    let dir = scratch::directory();
    let path = dir.path().join("spill");
    let mut config = DeviceConfig::new(PAGES * PAGE);
    config.shards = Some(1);
    config.mem_limit = Some(64 * PAGE);
    config.backing = Some(BackingConfig::new(&path).encrypt(mode % 2 == 1));
    let device = Device::new(&config).expect("a device");
    for at in 0..PAGES {
        device.write(at * PAGE, &page(at)).expect("there is room");
    }
    device.evict(PAGES * PAGE).expect("there is room");
    let spill = File::options().read(true).write(true).open(&path).expect("it is there");
    let length = spill.metadata().expect("it has one").len();
    let (changes, _) = changes.as_chunks::<5>();
    for &[a, b, c, d, flip] in changes {
        let at = u64::from(u32::from_le_bytes([a, b, c, d])) % length.max(1);
        let mut byte = [0];
        if spill.read_exact_at(&mut byte, at).is_ok() {
            byte[0] ^= flip;
            spill.write_all_at(&byte, at).expect("writable");
        }
    }
    let mut lost = 0;
    for at in 0..PAGES {
        let mut found = [0; PAGE_SIZE];
        match device.read(at * PAGE, &mut found) {
            Ok(()) => assert!(found == page(at), "page {at} is wrong"),
            Err(_) => lost += 1,
        }
    }
    assert!(lost == 0 || changes.iter().any(|change| change[4] != 0));
    let mut next = Some(0);
    while let Some(from) = next {
        next = device.scrub(from).next;
    }
    for at in 0..PAGES {
        device.write(at * PAGE, &page(at + 1)).expect("there is room");
    }
    for at in 0..PAGES {
        let mut found = [0; PAGE_SIZE];
        device.read(at * PAGE, &mut found).expect("it was written anew");
        assert!(found == page(at + 1));
    }
});

fn page(tag: u64) -> Page {
    let mut state = tag;
    std::array::from_fn(|i| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if i % 5 == 0 { (state >> 56) as u8 } else { tag as u8 }
    })
}
