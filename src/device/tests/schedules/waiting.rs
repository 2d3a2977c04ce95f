//! Writers that wait for room, and what they wait for.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::memory::FrameBudget;

/// Pages of a run, which are all of one shard.
const RUN: u64 = 32;

model!(
    /// Writers of several shards that meet the limit together take no more than there is.
    writers_at_the_limit,
    without BudgetTakenAtOnce,
    || {
        let mut config = DeviceConfig::new(4 * RUN * PAGE);
        config.mem_limit = Some(8 * PAGE);
        config.shards = Some(4);
        let device = Device::with_stores(&config, Origin::Blank, None).expect("a device");
        scope(|scope| {
            for shard in 0..4 {
                let device = &device;
                scope.spawn(move || {
                    // Without a backing it fails once there is no room.
                    (0..8).find(|page| write(device, shard * RUN + page, page + 1).is_err())
                });
            }
        });
        assert!(device.engine.limit.budget.used() <= 8);
        device.check();
    }
);

model!(
    /// Writers get on while the limit changes: none is forgotten, none sent away.
    writers_beside_changes_of_the_limit,
    without WakeRemembered,
    || {
        let device = device(64, 24, 1, &backing());
        scope(|scope| {
            for writer in 0..2 {
                let device = &device;
                scope.spawn(move || {
                    for page in 0..16 {
                        write(device, 2 * page + writer, page + 1).expect("room");
                    }
                });
            }
            scope.spawn(|| {
                for frames in [12, 40, 8] {
                    device.set_mem_limit(Some(frames * PAGE)).expect("a valid limit");
                }
            });
        });
        for page in 0..32 {
            expect(&device, page, page / 2 + 1);
        }
        device.check();
    }
);

model!(
    /// Once the backing works again no writer is sent away because it did not before.
    a_writer_beside_a_backing_that_recovers,
    without WholeRoundAwaited,
    || {
        let backing = backing();
        let device = device(64, 8, 1, &backing);
        backing.fail_writes.store(true, Relaxed);
        let full = (0..64).find(|&page| write(&device, page, page + 1).is_err()).expect("full");
        scope(|scope| {
            scope.spawn(|| drop(write(&device, full, 7)));
            scope.spawn(|| {
                backing.fail_writes.store(false, Relaxed);
                write(&device, full + 1, 9).expect("the backing works");
            });
        });
        expect(&device, full + 1, 9);
        device.check();
    }
);

model!(
    /// The end of the device leaves nobody waiting, whatever it interrupts.
    the_end_beside_everything,
    without WritersSentAway,
    || {
        let device = device(64, 8, 1, &backing());
        (0..8).for_each(|page| write(&device, page, page + 1).expect("room"));
        scope(|scope| {
            scope.spawn(|| (8..40).find(|&page| write(&device, page, 1).is_err()));
            scope.spawn(|| (8..40).find(|&page| write(&device, page, 2).is_err()));
            scope.spawn(|| (0..8).for_each(|page| expect(&device, page, page + 1)));
            scope.spawn(|| drop(device.evict(8 * PAGE)));
            scope.spawn(|| device.compact());
            scope.spawn(|| {
                let timeout = Duration::from_secs(5);
                assert!(device.stop_spilling(timeout));
                device.stop();
            });
        });
        assert!(device.engine.limit.budget.used() <= device.engine.limit.budget.limit());
        assert_ne!(device.engine.limit.budget.limit(), FrameBudget::UNLIMITED);
    }
);
