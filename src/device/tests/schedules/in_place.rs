//! Pages that are written, discarded and read while they are in memory, on their way out, or being
//! recompressed.

use super::*;
use crate::recompression::Recompression;
use crate::selection::Selection;

model!(
    /// Either write may win, and nothing of the other is left (CVE-2025-39941).
    two_writes_of_a_page,
    without FreedAsReplaced,
    || {
        let device = roomy(&backing());
        write(&device, 0, 1).expect("room");
        scope(|scope| {
            scope.spawn(|| write(&device, 0, 2).expect("room"));
            scope.spawn(|| write(&device, 0, 3).expect("room"));
            scope.spawn(|| one_of(&read(&device, 0), &[1, 2, 3]));
        });
        one_of(&read(&device, 0), &[2, 3]);
        device.check();
    }
);

model!(
    /// What is written while the page's old data is on its way to the backing stays.
    a_write_beside_eviction,
    without SettledIfUnchanged,
    || {
        let device = roomy(&backing());
        (0..3).for_each(|page| write(&device, page, page + 1).expect("room"));
        scope(|scope| {
            scope.spawn(|| evict_all(&device));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
        });
        expect(&device, 0, 9);
        (1..3).for_each(|page| expect(&device, page, page + 1));
        device.check();
    }
);

model!(
    /// A page that is discarded and written anew is not taken for what was on its way to the
    /// backing, whatever it looks like.
    a_discard_and_a_write_beside_eviction,
    without IsolatedWhileEvicted,
    || {
        let (device, like) = (roomy(&backing()), like_1());
        (0..3).for_each(|page| write(&device, page, page + 1).expect("room"));
        scope(|scope| {
            scope.spawn(|| evict_all(&device));
            scope.spawn(|| {
                device.discard(0, PAGE).expect("no room needed");
                write(&device, 0, like).expect("room");
            });
        });
        expect(&device, 0, like);
        (1..3).for_each(|page| expect(&device, page, page + 1));
        device.check();
    }
);

model!(
    /// Discarded pages stay discarded, and their memory is freed once.
    discards_beside_eviction,
    without SettledIfUnchanged,
    || {
        let device = roomy(&backing());
        (0..3).for_each(|page| write(&device, page, page + 1).expect("room"));
        scope(|scope| {
            scope.spawn(|| evict_all(&device));
            scope.spawn(|| {
                device.discard(0, 3 * PAGE).expect("no room needed");
                write(&device, 1, 9).expect("room");
            });
        });
        one_of(&read(&device, 0), &[0]);
        expect(&device, 1, 9);
        one_of(&read(&device, 2), &[0]);
        device.check();
    }
);

model!(
    /// What is written where a table's memory is on its way back to the kernel stays.
    a_write_beside_the_release_of_its_slots,
    without NothingWrittenToWhatIsOut,
    || {
        let device = roomy(&backing());
        write(&device, 0, 1).expect("room");
        device.discard(0, PAGE).expect("no room needed");
        scope(|scope| {
            scope.spawn(|| device.engine.tables.release(&device.engine.shards, 0));
            scope.spawn(|| write(&device, 1, 9).expect("room"));
            scope.spawn(|| one_of(&read(&device, 1), &[0, 9]));
        });
        expect(&device, 1, 9);
        one_of(&read(&device, 0), &[0]);
        device.check();
    }
);

model!(
    /// A read of a page that leaves, and that is changed then, finds it, and undoes nothing.
    a_read_beside_eviction,
    without PromotedIfUnchanged,
    || {
        let device = roomy(&backing());
        (0..2).for_each(|page| write(&device, page, page + 1).expect("room"));
        scope(|scope| {
            scope.spawn(|| {
                evict_all(&device);
                write(&device, 0, 9).expect("room");
            });
            scope.spawn(|| one_of(&read(&device, 0), &[1, 9]));
        });
        expect(&device, 0, 9);
        device.check();
    }
);

model!(
    /// What compaction moves in the meantime is freed where it is then.
    frees_beside_compaction,
    without FreedWhereItIs,
    || {
        let device = roomy(&backing());
        (0..12).for_each(|page| write(&device, page, page + 1).expect("room"));
        for page in (0..12).step_by(2) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        let all = Recompression::parse("algo=zstd").expect("parameters");
        scope(|scope| {
            scope.spawn(|| device.recompress(&all).expect("an algorithm"));
            scope.spawn(|| device.compact());
            scope.spawn(|| device.discard(PAGE, PAGE).expect("no room needed"));
        });
        for page in 2..12 {
            one_of(&read(&device, page), &[if page % 2 == 0 { 0 } else { page + 1 }]);
        }
        device.check();
    }
);

model!(
    /// What is written while the page's old data is being recompressed stays.
    a_write_beside_recompression,
    without MarkedUntilSettled,
    || {
        let device = roomy(&backing());
        (0..3).for_each(|page| write(&device, page, page + 1).expect("room"));
        let all = Recompression::parse("algo=zstd").expect("parameters");
        scope(|scope| {
            scope.spawn(|| drop(device.recompress(&all)));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
            scope.spawn(|| device.compact());
        });
        expect(&device, 0, 9);
        (1..3).for_each(|page| expect(&device, page, page + 1));
        device.check();
    }
);

model!(
    /// What is written while the page is written back because it was chosen stays.
    a_write_beside_chosen_write_back,
    without MarkedUntilSettled,
    || {
        let device = roomy(&backing());
        (0..3).for_each(|page| write(&device, page, page + 1).expect("room"));
        let all = || Selection::parse("page_indexes=0-9", 64).expect("a selection");
        scope(|scope| {
            scope.spawn(|| drop(device.write_back(all())));
            scope.spawn(|| write(&device, 0, 9).expect("room"));
            scope.spawn(|| device.compact());
        });
        expect(&device, 0, 9);
        (1..3).for_each(|page| expect(&device, page, page + 1));
        device.check();
    }
);
