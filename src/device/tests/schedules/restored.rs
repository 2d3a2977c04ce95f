//! An image that is emptied beside what changes its pages.

use super::*;
use crate::codec::Codec;
use crate::image::{ImageWriter, PageData};
use crate::units::PageIndex;

/// A device that has pages with the tags 1 to 4 in an image, and room for them in memory.
fn restored() -> Device {
    let mut image = ImageWriter::new(Vec::new(), 64 * PAGE).expect("memory");
    for page in 0..4 {
        let data = tagged(u64::from(page) + 1);
        let object = PageData::Object(Codec::Raw, &data);
        image.push(PageIndex(page), object).expect("memory");
    }
    let (image, ..) = image.finish().expect("memory");
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), image).expect("written");
    let device = device_with(run::pool(), 64, 1000, 1, &backing());
    device.restore(file.path()).expect("an image");
    device
}

model!(
    /// A page that is written or discarded while it comes to memory is what was written.
    a_restore_beside_changes,
    without BroughtBackIfUnchanged,
    || {
        let device = restored();
        scope(|scope| {
            scope.spawn(|| write(&device, 0, 10).expect("room"));
            scope.spawn(|| device.discard(PAGE, PAGE).expect("no room needed"));
            device.write(2 * PAGE + 8, &tagged(30)[8..16]).expect("room");
            expect(&device, 3, 4);
        });
        expect(&device, 0, 10);
        assert!(read(&device, 1) == [0; PAGE_SIZE]);
        let mut part = tagged(3);
        part[8..16].copy_from_slice(&tagged(30)[8..16]);
        assert!(read(&device, 2) == part);
        expect(&device, 3, 4);
        device.check();
    }
);
