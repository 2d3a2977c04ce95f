//! Pages that are read back, and changed in part, while their records move or go.

use super::*;

/// A device whose pages 0 and 1 are `tagged(1)` and `tagged(2)`, and spilled.
fn spilled() -> Device {
    let device = roomy(&backing());
    (0..2).for_each(|page| write(&device, page, page + 1).expect("room"));
    evict_all(&device);
    device
}

fn replace(device: &Device) {
    device
        .replace_backing(Some(backing()), None)
        .expect("room on the new one");
}

/// The page after `part` is written into `tagged(tag)`.
fn with_part(tag: u64) -> Page {
    let mut page = tagged(tag);
    page[100..104].copy_from_slice(b"part");
    page
}

model!(
    /// A page is found wherever its record has gone, in the middle of the read too.
    a_read_back_beside_cleaning,
    without LookedForAgain,
    || {
        let device = spilled();
        scope(|scope| {
            scope.spawn(|| replace(&device));
            scope.spawn(|| (0..2).for_each(|page| expect(&device, page, page + 1)));
        });
        (0..2).for_each(|page| expect(&device, page, page + 1));
        device.check();
    }
);

model!(
    /// What is written while the page's record is being moved stays.
    a_write_beside_cleaning,
    without SettledIfUnchanged,
    || {
        let device = spilled();
        scope(|scope| {
            scope.spawn(|| replace(&device));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
        });
        expect(&device, 0, 9);
        expect(&device, 1, 2);
        device.check();
    }
);

model!(
    /// A page that is read back, and belongs in memory again, does not undo a write.
    a_write_beside_a_read_back,
    without PromotedIfUnchanged,
    || {
        let device = spilled();
        scope(|scope| {
            scope.spawn(|| one_of(&read(&device, 0), &[1, 9]));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
        });
        expect(&device, 0, 9);
        expect(&device, 1, 2);
        device.check();
    }
);

model!(
    /// A part of a page is written over the page as it is then, in memory or spilled anew.
    a_part_write_beside_a_write,
    without ChangedIfUnchanged,
    || {
        let device = spilled();
        scope(|scope| {
            scope.spawn(|| device.write(100, b"part").expect("room"));
            scope.spawn(|| {
                write(&device, 0, 9).expect("room");
                evict_all(&device);
            });
        });
        let found = read(&device, 0);
        assert!(found == tagged(9) || found == with_part(9));
        device.check();
    }
);

model!(
    /// Two parts of a page are both written.
    two_part_writes_of_a_page,
    without ChangedIfUnchanged,
    || {
        let device = spilled();
        scope(|scope| {
            scope.spawn(|| device.write(100, b"part").expect("room"));
            scope.spawn(|| device.write(200, b"tail").expect("room"));
            scope.spawn(|| evict_all(&device));
        });
        let mut both = with_part(1);
        both[200..204].copy_from_slice(b"tail");
        assert!(read(&device, 0) == both);
        device.check();
    }
);

model!(
    /// Nor is a page taken for another that was spilled to the same place in the meantime.
    a_part_write_beside_a_segments_reuse,
    without SegmentUsesNumbered,
    || {
        let (device, like) = (spilled(), like_1());
        scope(|scope| {
            scope.spawn(|| device.write(100, b"part").expect("room"));
            scope.spawn(|| {
                device.discard(0, 2 * PAGE).expect("no room needed");
                // The thread frees emptied segments before it evicts.
                evict_all(&device);
                write(&device, 0, like).expect("room");
                write(&device, 1, 2).expect("room");
                evict_all(&device);
            });
        });
        let found = read(&device, 0);
        assert!(found == tagged(like) || found == with_part(like));
        device.check();
    }
);
