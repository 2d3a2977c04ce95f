//! The map against what was written where.

use support::noise_page;

use super::*;
use crate::MapCell;

/// A page of each kind in turns, over several shards and at both ends.
#[test]
fn the_map_has_each_page_in_its_cell() {
    const PAGES: u64 = 10_000;
    let mut config = DeviceConfig::new(PAGES * PAGE);
    config.shards = Some(3);
    let device = Device::new(&config).expect("a device");
    let noise = noise_page(1);
    let mut text = [0; PAGE_SIZE];
    text.iter_mut()
        .zip(0..)
        .for_each(|(byte, i)| *byte = (i % 7) as u8);
    let write = |page: u64, data: &[u8]| {
        device.write(page * PAGE, data).expect("written");
    };
    for page in (0..PAGES).step_by(4) {
        write(page, &text);
        write(page + 1, &[7; PAGE_SIZE]);
        write(page + 2, &noise);
    }
    let each = |pages| MapCell {
        same_filled: pages,
        resident: pages,
        huge: pages,
        written_back: 0,
    };
    let map = device.page_map(0..PAGES, 100).expect("a map");
    assert_eq!(map.cells.len(), 100);
    assert!(map.cells.iter().all(|cell| *cell == each(25)));
    let map = device.page_map(8000..u64::MAX, 1).expect("a map");
    assert_eq!((map.first, map.pages), (8000, 2000));
    assert_eq!(map.cells, [each(500)]);
    let map = device.page_map(4..8, 100).expect("a map");
    let resident: Vec<_> = map.cells.iter().map(|cell| cell.resident).collect();
    assert_eq!(resident, [1, 0, 0, 0]);
    assert!(
        device
            .page_map(PAGES..PAGES, 9)
            .expect("a map")
            .cells
            .is_empty()
    );
    for cells in [0, 1025] {
        assert!(device.page_map(0..1, cells).is_err());
    }
}
