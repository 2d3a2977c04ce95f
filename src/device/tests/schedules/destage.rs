//! Pages that are destaged to an image, or read from it, while others change or read them.

use support::noise_page;

use super::*;
use crate::device::tests::origin::over;
use crate::origin::{FaultyImage, SyncPolicy};

fn over_image() -> (Arc<Device>, Arc<FaultyImage>) {
    over(64, 64, 1, SyncPolicy::Flush, run::pool())
}

model!(
    /// What changes while it is destaged is not taken for what was written.
    a_write_beside_a_flush,
    without CleanIfUnchanged,
    || {
        let (device, image) = over_image();
        write(&device, 0, 1).expect("room");
        scope(|scope| {
            scope.spawn(|| device.flush().expect("the image works"));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
        });
        expect(&device, 0, 9);
        device.flush().expect("the image works");
        assert!(image.durable_page(0) == tagged(9));
        device.check();
    }
);

model!(
    /// A page is not destaged twice at once: it changes after it was taken with its zspage, and
    /// is the neighbour of a page of the next.
    a_write_beside_eviction_of_its_neighbour,
    without OnceInABatch,
    || {
        let (device, image) = over_image();
        write(&device, 0, 1).expect("room");
        // Of another size class.
        device.write(PAGE, &noise_page(5)).expect("room");
        scope(|scope| {
            scope.spawn(|| evict_all(&device));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
        });
        expect(&device, 0, 9);
        device.flush().expect("the image works");
        assert!(image.durable_page(0) == tagged(9));
        assert!(read(&device, 1) == noise_page(5));
        device.check();
    }
);

model!(
    /// What was read of the image before the page was changed, destaged and left memory is not kept
    /// as the page.
    a_read_of_the_image_beside_a_write_that_is_destaged,
    without GenerationsCounted,
    || {
        let (device, _image) = over_image();
        scope(|scope| {
            scope.spawn(|| {
                write(&device, 0, 1).expect("room");
                evict_all(&device);
            });
            scope.spawn(|| {
                let found = read(&device, 0);
                assert!(found == [7; PAGE_SIZE] || found == tagged(1));
            });
        });
        expect(&device, 0, 1);
        device.check();
    }
);

model!(
    /// Two who read pages that only the image has, each in memory of its own: what one has kept meanwhile the
    /// other keeps no second time.
    two_reads_of_absent_pages,
    without KeptOnce,
    || {
        let (device, _image) = over_image();
        scope(|scope| {
            for first in 0..2 {
                let device = &device;
                scope.spawn(move || {
                    for page in first..first + 3 {
                        assert!(read(device, page) == [7; PAGE_SIZE], "page {page}");
                    }
                });
            }
        });
        device.check();
        for page in 0..5 {
            assert!(read(&device, page) == [7; PAGE_SIZE], "page {page}");
        }
    }
);
