//! What says where pages are costs memory while there are pages, and within a limit. Alone in its
//! process, whose resident set it looks at.

use support::eventually;
use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE};

/// Bytes of a device that 4 KiB of slots are for.
const BLOCK: u64 = 2 << 20;

#[test]
fn the_memory_of_tables_goes_back_once_all_is_discarded() {
    const BLOCKS: u64 = 32 << 10;
    const TABLES: u64 = BLOCKS * PAGE_SIZE as u64;
    let mut config = DeviceConfig::new(BLOCKS * BLOCK);
    config.mem_limit = Some(64 << 20);
    config.table_limit = Some(TABLES + (1 << 20));
    config.shards = Some(1);
    let device = Device::new(&config).expect("a device");
    let before = device.stats().rss_bytes;
    for block in 0..BLOCKS {
        device
            .write(block * BLOCK, &[block as u8; PAGE_SIZE])
            .expect("room");
    }
    let full = device.stats();
    assert_eq!((full.slot_table_bytes, full.same_pages), (TABLES, BLOCKS));
    // A machine that is short of memory may have swapped some of it.
    assert!(full.rss_bytes >= before + TABLES / 2, "{before}: {full:?}");

    device.discard(0, device.size()).expect("no room needed");
    eventually("given back", || {
        let stats = device.stats();
        stats.rss_bytes <= before + TABLES / 4 && stats.slot_table_bytes == 0
    });
    device.check();
}
