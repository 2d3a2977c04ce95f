//! A device that gets larger and smaller.

use rustix::io::Errno;

use super::*;
use crate::device::tests::idle::no_limit;

fn errno(device: &Device, pages: u64) -> Option<Errno> {
    device
        .resize(pages * PAGE)
        .err()
        .map(|error| error.errno().into())
}

#[test]
fn grows_in_use_and_keeps_what_there_is() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(500, 100, 3, &backing);
    for page in 0..500 {
        write(&device, page, page).expect("room");
    }
    let _user = device.enter(crate::Who::default());
    assert_eq!(device.max_size(), 2000 * PAGE);
    assert_eq!(errno(&device, 2000), None);
    assert_eq!(
        (device.size(), device.stats().disksize),
        (2000 * PAGE, 2000 * PAGE)
    );
    for page in 500..2000 {
        write(&device, page, page).expect("room");
    }
    for page in 0..2000 {
        expect(&device, page, page);
    }
    device.compact();
    device.evict(1 << 20).expect("room");
    device.check();
    assert_eq!(errno(&device, 2001), Some(Errno::FBIG));
    assert_eq!(errno(&device, 100), Some(Errno::BUSY));
    assert_eq!(device.size(), 2000 * PAGE);
}

#[test]
fn shrinks_to_what_is_in_it() {
    let device = no_limit(1000, 2);
    for page in [3, 700] {
        write(&device, page, page).expect("room");
    }
    assert_eq!(errno(&device, 700), Some(Errno::BUSY));
    assert_eq!(errno(&device, 701), None);
    expect(&device, 700, 700);
    device.discard(700 * PAGE, PAGE).expect("no room needed");
    assert_eq!(errno(&device, 4), None);
    assert_eq!(device.size(), 4 * PAGE);
    expect(&device, 3, 3);
    device.check();
    // What comes back is empty.
    assert_eq!(errno(&device, 1000), None);
    let mut found = [1; PAGE_SIZE];
    device.read(700 * PAGE, &mut found).expect("readable");
    assert_eq!(found, [0; PAGE_SIZE]);
}

#[test]
fn there_is_as_much_room_to_grow_as_was_asked_for() {
    let mut config = DeviceConfig::new(16 * PAGE);
    config.max_size = Some(1 << 40);
    let device = Device::new(&config).expect("addresses");
    assert_eq!(device.max_size(), 1 << 40);
    device.resize(1 << 40).expect("it can grow");
    let last = (1 << 40) / PAGE - 1;
    write(&device, last, 7).expect("room");
    expect(&device, last, 7);
    device.check();
}
