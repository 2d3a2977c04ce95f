//! A device that is not used leaves the processor alone. Alone in its process, since it looks for
//! the writeback thread by name.

use std::fs;
use std::time::Duration;

use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE};

/// How often the writeback thread has gone to sleep.
fn sleeps() -> u64 {
    for task in fs::read_dir("/proc/self/task").expect("lists").flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if !name.starts_with("uzram-writeback") {
            continue;
        }
        let status = fs::read_to_string(task.path().join("status")).expect("reads");
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        return count.and_then(|n| n.trim().parse().ok()).expect("a count");
    }
    panic!("no writeback thread");
}

#[test]
fn the_writeback_thread_sleeps_while_nothing_is_accessed() {
    let device = Device::new(&DeviceConfig::new(64 << 20)).expect("a device");
    let page = vec![1; PAGE_SIZE];
    for at in 0..1000 {
        let mut page = page.clone();
        page[..8].copy_from_slice(&u64::to_le_bytes(at));
        device.write(at * PAGE_SIZE as u64, &page).expect("room");
    }
    std::thread::sleep(Duration::from_secs(3));
    let before = sleeps();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(sleeps(), before);
    // A generation begins with its first access, and ends though nothing follows.
    let mut read = vec![0; PAGE_SIZE];
    device.read(0, &mut read).expect("readable");
    std::thread::sleep(Duration::from_secs(3));
    let after = sleeps();
    assert!((1..=4).contains(&(after - before)), "{before}, {after}");
    // Of both generations nothing has been accessed for long by now, as the clock has it.
    assert_eq!(device.mark_idle(Some(Duration::from_secs(1))), 1000);
    assert_eq!(device.mark_idle(Some(Duration::from_secs(6))), 999);
}
