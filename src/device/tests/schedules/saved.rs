//! Saves beside what changes the device.

use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::image::Contents;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::thread::{scope, yield_now};
use crate::sync::time;

/// Pages that are saved together.
const RUN: u64 = 32;

model!(
    /// An image holds no write without those that had ended before it began.
    a_save_beside_writes_to_two_shards,
    without SavedAsOfOneTime,
    writes_in_turn
);

model!(
    /// What is there when a save begins is in the image, though it changes before its turn comes.
    a_save_beside_writes,
    without SavedBeforeChanged,
    writes_in_turn
);

/// Writes to a page of one shard, then to one of another, while the device is saved.
fn writes_in_turn() {
    let device = device_with(run::pool(), 2 * RUN, 2 * RUN, 2, &backing());
    write(&device, 0, 1).expect("room");
    write(&device, RUN, 2).expect("room");
    let image = scope(|scope| {
        scope.spawn(|| {
            write(&device, 0, 3).expect("room");
            write(&device, RUN, 4).expect("room");
        });
        save(&device)
    });
    if let Some(image) = image {
        let tags = tags(&device, &image);
        let (first, second) = (tags[0], tags[RUN as usize]);
        assert!(
            [(1, 2), (3, 2), (3, 4)].contains(&(first, second)),
            "{first} {second}"
        );
    }
    expect(&device, 0, 3);
    expect(&device, RUN, 4);
    device.check();
}

model!(
    /// A run that was read from the backing to be saved is not saved if a writer has done so
    /// meanwhile.
    a_save_of_spilled_pages_beside_a_write,
    without SavedOnce,
    || {
        let device = roomy(&backing());
        write(&device, 0, 1).expect("room");
        write(&device, 1, 2).expect("room");
        evict_all(&device);
        let image = scope(|scope| {
            scope.spawn(|| write(&device, 0, 3).expect("room"));
            save(&device)
        });
        if let Some(image) = image {
            let tags = tags(&device, &image);
            assert!([1, 3].contains(&tags[0]) && tags[1] == 2, "{tags:?}");
        }
        expect(&device, 0, 3);
        expect(&device, 1, 2);
        device.check();
    }
);

/// Saves a device; `None` if so much time has passed before a thread went on that it was given up.
fn save(device: &Device) -> Option<Vec<u8>> {
    let saved = while_time_passes(|| device.save_to(Vec::new(), Path::new("image"), &|| true));
    match saved {
        Ok((image, _)) => Some(image),
        Err(error) if error.errno() == Errno::TIMEDOUT => None,
        Err(error) => panic!("nothing fails: {error}"),
    }
}

/// Has time pass while `save` does: who saves looks now and then whether it is over.
pub(super) fn while_time_passes<T>(save: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                time::advance(Duration::from_millis(100));
                yield_now();
            }
        });
        let saved = save();
        is_over.store(true, Relaxed);
        saved
    })
}

/// The tag of each page of an image; each page is in it once.
fn tags(device: &Device, image: &[u8]) -> [u64; 2 * RUN as usize] {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), image).expect("written");
    let contents = Contents::of(file.path()).expect("an image");
    assert!(contents.patterns.is_empty() && contents.damaged.is_empty());
    let mut tags = [None; 2 * RUN as usize];
    for (page, (codec, object)) in contents.objects {
        let mut found = [0; PAGE_SIZE];
        let algorithms = &device.engine.codecs;
        algorithms
            .decompress(codec, &object, &mut found)
            .expect("whole");
        let tag = u64::from_le_bytes(*found[8..].first_chunk().expect("long enough"));
        assert!(found == tagged(tag));
        let other = tags[page as usize].replace(tag);
        assert!(other.is_none(), "page {page} is in it twice");
    }
    tags.map(Option::unwrap_or_default)
}
