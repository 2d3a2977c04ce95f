//! What every backing has to pass: its own tests run this, and so do those of a program that brings one.

use std::thread;

use super::address::SEGMENT_BYTES;
use super::backing::Backing;
use super::blocks::{BLOCK, BlockBuf};

/// Segments that are used of a backing; it may hold more.
const SEGMENTS: u64 = 2;

/// Threads that use it at once.
const THREADS: u64 = 4;

/// Tests backings as `make` makes them, each empty and of at least two segments.
///
/// # Panics
/// If one does not do what [`Backing`] says, with what it did instead.
pub fn run<B: Backing>(make: impl Fn() -> B) {
    it_says_what_it_holds(&make());
    what_is_written_reads_back(&make());
    a_write_changes_its_range_only(&make());
    a_segment_is_written_anew_after_a_discard(&make());
    threads_do_not_get_into_each_others_way(&make());
    two_do_not_share_what_they_hold(&make(), &make());
}

fn it_says_what_it_holds(backing: &dyn Backing) {
    let capacity = backing.capacity().expect("it says what it holds");
    assert!(
        capacity >= SEGMENTS * SEGMENT_BYTES,
        "it holds {capacity} bytes, and is to hold two segments at least"
    );
    let again = backing.capacity().expect("it says what it holds");
    assert_eq!(capacity, again, "it says two things of what it holds");
}

/// To its last block, and for any part of a write.
fn what_is_written_reads_back(backing: &dyn Backing) {
    let last = SEGMENTS * SEGMENT_BYTES - BLOCK as u64;
    for (offset, blocks) in [(0, 3), (SEGMENT_BYTES, 64), (last, 1)] {
        write(backing, offset, blocks, 1);
    }
    for (offset, blocks) in [(0, 3), (SEGMENT_BYTES, 64), (last, 1)] {
        expect(backing, offset, blocks * BLOCK, 1);
        for (from, len) in [(0, 1), (16, 100), (BLOCK - 7, 7), (1, blocks * BLOCK - 1)] {
            expect(backing, offset + from as u64, len, 1);
        }
    }
    let whole = SEGMENT_BYTES as usize / BLOCK;
    write(backing, 0, whole, 2);
    expect(backing, 0, SEGMENT_BYTES as usize, 2);
}

fn a_write_changes_its_range_only(backing: &dyn Backing) {
    write(backing, 0, 16, 1);
    write(backing, 4 * BLOCK as u64, 2, 2);
    expect(backing, 0, 4 * BLOCK, 1);
    expect(backing, 4 * BLOCK as u64, 2 * BLOCK, 2);
    expect(backing, 6 * BLOCK as u64, 10 * BLOCK, 1);
}

fn a_segment_is_written_anew_after_a_discard(backing: &dyn Backing) {
    write(backing, 0, 8, 1);
    write(backing, SEGMENT_BYTES, 8, 1);
    backing.discard(0..SEGMENT_BYTES);
    expect(backing, SEGMENT_BYTES, 8 * BLOCK, 1);
    // What is there now is nobody's business, but asking for it is no reason to panic.
    let _ = backing.read_at(0, &mut [0; BLOCK]);
    write(backing, 0, 4, 2);
    expect(backing, 0, 4 * BLOCK, 2);
    // Nor is there anything wrong with one that holds nothing.
    backing.discard(SEGMENT_BYTES..2 * SEGMENT_BYTES);
    backing.discard(SEGMENT_BYTES..2 * SEGMENT_BYTES);
    expect(backing, 0, 4 * BLOCK, 2);
}

fn threads_do_not_get_into_each_others_way(backing: &dyn Backing) {
    const ROUNDS: u8 = 8;
    const BLOCKS: usize = 8;
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                let offset = number * (BLOCKS * BLOCK) as u64;
                for round in 0..ROUNDS {
                    for at in [offset, SEGMENT_BYTES + offset] {
                        write(backing, at, BLOCKS, round);
                        expect(backing, at, BLOCKS * BLOCK, round);
                    }
                }
            });
        }
    });
    for at in [0, SEGMENT_BYTES] {
        expect(backing, at, THREADS as usize * BLOCKS * BLOCK, ROUNDS - 1);
    }
}

fn two_do_not_share_what_they_hold(one: &dyn Backing, other: &dyn Backing) {
    write(one, 0, 4, 1);
    write(other, 0, 4, 2);
    expect(one, 0, 4 * BLOCK, 1);
    other.discard(0..SEGMENT_BYTES);
    expect(one, 0, 4 * BLOCK, 1);
}

/// The byte at `offset` that a write of `tag` puts there: no two blocks have the same.
fn byte(offset: u64, tag: u8) -> u8 {
    (offset as u8 ^ (offset / BLOCK as u64) as u8).wrapping_add(tag.wrapping_mul(113))
}

fn write(backing: &dyn Backing, offset: u64, blocks: usize, tag: u8) {
    let mut data = BlockBuf::with_capacity(blocks * BLOCK);
    data.resize(blocks * BLOCK);
    for (byte_at, at) in data.iter_mut().zip(offset..) {
        *byte_at = byte(at, tag);
    }
    let written = backing.write_at(offset, &data);
    written.unwrap_or_else(|error| panic!("writing {blocks} blocks at {offset}: {error}"));
}

fn expect(backing: &dyn Backing, offset: u64, len: usize, tag: u8) {
    let mut found = vec![0x5a; len];
    let read = backing.read_at(offset, &mut found);
    read.unwrap_or_else(|error| panic!("reading {len} bytes at {offset}: {error}"));
    let wrong = (offset..)
        .zip(&found)
        .find(|&(at, &found)| found != byte(at, tag));
    assert!(
        wrong.is_none(),
        "reading {len} bytes at {offset}: byte {wrong:?} is not what was written last"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::{BackingConfig, FaultyBacking, FileBacking, MemoryBacking};

    #[test]
    fn memory_conforms() {
        run(|| MemoryBacking::new(2));
        run(|| FaultyBacking::new(2));
    }

    /// With direct I/O where there is that, and without.
    #[test]
    fn files_conform() {
        for dir in ["/var/tmp", "/dev/shm"] {
            let dir = tempfile::tempdir_in(dir).expect("a directory");
            let made = std::cell::Cell::new(0);
            run(|| {
                made.set(made.get() + 1);
                let path = dir.path().join(made.get().to_string());
                FileBacking::open(&BackingConfig::new(path)).expect("made")
            });
        }
    }

    /// A backing with a fault is found out.
    #[test]
    #[should_panic(expected = "is not what was written last")]
    fn what_loses_writes_does_not() {
        use std::sync::atomic::Ordering::Relaxed;
        let made = std::cell::Cell::new(0);
        run(|| {
            let backing = FaultyBacking::new(2);
            made.set(made.get() + 1);
            // After the first that is written to.
            backing.lose_writes.store(made.get() > 2, Relaxed);
            backing
        });
    }
}
