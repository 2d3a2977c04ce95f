//! What fuzzers reach that nobody else does: parts that take their input from behind the device.

use crate::block_device::BlockDevice;
use crate::codec::{Codec, Dictionaries, MAX_COMPRESSED_LEN, decompress};
use crate::config::DeviceConfig;
use crate::device::Device;
use crate::image::forge;
use crate::pool::PoolKind;
use crate::pool::harness::{Harness, Step};
use crate::units::PAGE_SIZE;

/// Page frames that a pool may hold.
const FRAMES: u64 = 64;

/// Steps on a pool, beside a model. The first byte chooses the allocator; then three are a step.
pub fn pool(input: &[u8]) {
    let Some((&kind, steps)) = input.split_first() else {
        return;
    };
    let mut harness = Harness::new(PoolKind::ALL[usize::from(kind) % 3], FRAMES);
    let (steps, _) = steps.as_chunks::<3>();
    for (i, &[operation, low, high]) in steps.iter().enumerate() {
        let number = usize::from(u16::from_le_bytes([low, high]));
        harness.take(match operation % 16 {
            0..7 => Step::Store(1 + number % 3600),
            7 => Step::Store(PAGE_SIZE),
            8..12 => Step::Free(number),
            12 => Step::IsolateOf(number),
            13 => Step::PutBack,
            14 => Step::Compact,
            _ => Step::ReleaseIdle(number % 20),
        });
        if i % 16 == 0 {
            harness.check();
        }
    }
    harness.check();
    harness.drain();
}

/// Bytes that are to be a compressed page: what comes of them, a page or none, depends on them alone.
/// The first byte chooses how it was compressed.
pub fn decompressor(input: &[u8]) {
    let Some((&codec, data)) = input.split_first() else {
        return;
    };
    let data = &data[..data.len().min(MAX_COMPRESSED_LEN)];
    let Some(codec) = Codec::from_bits(codec) else {
        return;
    };
    let into = |before: u8| {
        let mut page = [before; PAGE_SIZE];
        let done = decompress(codec, data, &Dictionaries::default(), &mut page);
        done.map(|()| page)
    };
    assert!(into(0x55) == into(0xaa));
}

/// The pages that cannot be read back.
fn scrub(device: &Device) -> Vec<u64> {
    let (mut lost, mut next) = (Vec::new(), Some(0));
    while let Some(from) = next {
        let step = device.scrub(from);
        lost.extend(step.damaged);
        lost.extend(step.unreadable);
        next = step.next;
    }
    lost
}

/// An image that somebody made: as it is, or, if its first byte is even, with checksums that are
/// right. One that is believed is a device like any other, and can be saved again.
pub fn image(input: &[u8]) {
    const PAGES: u64 = 64;
    const SIZE: u64 = PAGES * PAGE_SIZE as u64;
    let Some((&mode, input)) = input.split_first() else {
        return;
    };
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let (path, again) = (dir.path().join("image"), dir.path().join("again"));
    let image = match mode % 2 {
        0 => forge(SIZE, input),
        _ => input.to_vec(),
    };
    std::fs::write(&path, image).expect("memory");
    let device = Device::new(&DeviceConfig::new(SIZE)).expect("a device");
    if device.restore(&path).is_err() {
        device.check();
        assert_eq!(device.stats().orig_data_size, 0);
        return;
    }
    device.check();
    if device.save(&again).is_err() {
        // A record that is damaged, or an object that is none.
        assert!(!scrub(&device).is_empty());
        return;
    }
    let other = Device::new(&DeviceConfig::new(SIZE)).expect("a device");
    other.restore(&again).expect("an image");
    assert_eq!(scrub(&other), [0; 0]);
    let (mut page, mut same) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    for at in (0..SIZE).step_by(PAGE_SIZE) {
        let read = device.read(at, &mut page).is_ok();
        assert_eq!(read, other.read(at, &mut same).is_ok());
        assert!(!read || page == same);
    }
    other.check();
}
