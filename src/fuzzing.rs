//! What fuzzers reach that nobody else does: parts that take their input from behind the device.

use crate::codec::{Codec, MAX_COMPRESSED_LEN, decompress};
use crate::config::PoolKind;
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

/// Bytes that are to be a compressed page. The first byte chooses how it was compressed.
pub fn decompressor(input: &[u8]) {
    let Some((&codec, data)) = input.split_first() else {
        return;
    };
    let data = &data[..data.len().min(MAX_COMPRESSED_LEN)];
    for (before, codec) in [(0x55, codec), (0xaa, codec)] {
        let mut page = [before; PAGE_SIZE];
        if let Some(codec) = Codec::from_bits(codec) {
            let _ = decompress(codec, data, &mut page);
        }
    }
}
