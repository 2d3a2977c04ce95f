//! Recompression: what gets smaller, what is left alone, and what happens to pages meanwhile.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;

use super::*;
use crate::algorithm::{Algorithm, Priority};
use crate::codec::Codec;
use crate::device::tests::idle::{no_limit, pass, slot};
use crate::device::tests::selected::{expect_mixed, write_mixed};
use crate::engine::ShardIndex;
use crate::error::Error;
use crate::maintain::{Plan, Scratch, Wanted};
use crate::recompression::Recompression;
use crate::shard::SlotState;

const ZSTD: Algorithm = Algorithm::Zstd { level: 3 };

fn codec(device: &Device, page: u64) -> Option<Codec> {
    match slot(device, page).state() {
        SlotState::Resident { codec, .. } => Some(codec),
        _ => None,
    }
}

fn recompress(device: &Device, what: &str) -> u64 {
    let request = Recompression::parse(what).expect(what);
    device.recompress(&request).expect("recompressed")
}

/// 300 pages in two shards, of which every tenth is noise.
fn filled() -> Device {
    let device = no_limit(400, 2);
    write_mixed(&device, 300);
    device
        .set_algorithm_of(Priority::SECONDARY[0], ZSTD)
        .expect("it is in this build");
    device
}

#[test]
fn what_gains_is_stored_anew_and_what_does_not_is_not_tried_again() {
    let device = filled();
    let before = device.stats();
    assert_eq!(recompress(&device, ""), 270);
    let after = device.stats();
    assert_eq!(after.recompressed_pages, 270);
    assert!(
        after.mem_used_total * 10 < before.mem_used_total * 9,
        "{after:?}"
    );
    assert!(after.compr_data_size < before.compr_data_size);
    assert_eq!((after.resident_pages, after.huge_pages), (300, 30));
    for page in 0..300 {
        let expected = if page % 10 == 0 {
            Codec::Raw
        } else {
            Codec::Tagged
        };
        assert_eq!(codec(&device, page), Some(expected));
        assert!(slot(&device, page).is_tried());
    }
    assert_eq!(recompress(&device, ""), 0);
    expect_mixed(&device, 300);
    assert!(slot(&device, 5).is_tried(), "a read changes nothing of it");
    write(&device, 5, 5).expect("room");
    assert!(!slot(&device, 5).is_tried());
    assert_eq!(recompress(&device, ""), 1);
}

#[test]
fn only_pages_that_are_chosen_are_recompressed() {
    let device = filled();
    assert_eq!(recompress(&device, "type=idle"), 0);
    assert_eq!(recompress(&device, "type=huge"), 0);
    device.mark_idle(None);
    expect(&device, 7, 7);
    assert_eq!(recompress(&device, "type=huge_idle"), 0);
    // The noise has been tried: it does not count.
    assert_eq!(recompress(&device, "type=idle max_pages=20"), 20);
    assert_eq!(recompress(&device, "threshold=4095"), 0);
    assert_eq!(recompress(&device, "type=idle"), 270 - 20 - 1);
    assert_eq!(codec(&device, 7), Some(Codec::Lz4));
    assert!(slot(&device, 8).is_idle(), "a mark stays");
    expect_mixed(&device, 300);
}

#[test]
fn without_an_algorithm_it_is_refused() {
    let device = no_limit(100, 1);
    let error = device.recompress(&Recompression::ALL).expect_err("none");
    assert_eq!(error.errno(), Errno::INVAL, "{error}");
    assert!(!error.is_usage(), "{error}");
    device
        .set_algorithm_of(Priority::SECONDARY[0], ZSTD)
        .expect("it is in this build");
    device.stop();
    let error = device.recompress(&Recompression::ALL).expect_err("stops");
    assert_eq!(error.errno(), Errno::INTR);
}

#[test]
fn the_threshold_and_an_algorithm_of_its_own_leave_the_rest_to_be_tried() {
    let device = filled();
    assert_eq!(
        recompress(&device, "threshold=100"),
        0,
        "nothing gets so small"
    );
    assert!((0..300).all(|page| !slot(&device, page).is_tried() || page % 10 == 0));
    assert_eq!(recompress(&device, ""), 270);
    let before = device.stats().compr_data_size;
    recompress(&device, "algo=zstd:19");
    assert!(device.stats().compr_data_size < before);
    expect_mixed(&device, 300);
}

#[test]
fn without_memory_to_recompress_in_it_says_so() {
    let mut config = DeviceConfig::new(400 * PAGE);
    config.shards = Some(1);
    config.mem_limit = Some(64 * PAGE);
    let device = Device::new(&config).expect("a device");
    device
        .set_algorithm_of(Priority::SECONDARY[0], ZSTD)
        .expect("it is in this build");
    let stored = (0..400)
        .take_while(|&page| write(&device, page, page).is_ok())
        .count() as u64;
    assert!(stored < 400);
    // There may be a little room after all: then it begins, and makes more.
    match device.recompress(&Recompression::ALL) {
        Ok(smaller) => assert!(smaller > 0),
        Err(error) => assert!(matches!(error, Error::NoSpace(_)), "{error}"),
    }
    for page in 0..stored {
        expect(&device, page, page);
    }
    device.check();
}

/// An object may be freed, and another come to its address, while it is recompressed.
#[test]
fn what_changes_meanwhile_is_not_undone() {
    let device = no_limit(16, 1);
    for page in 0..16 {
        write(&device, page, page).expect("room");
    }
    let step = (Priority::SECONDARY[0], ZSTD.into());
    let request = &Recompression::ALL;
    let wanted = Wanted {
        request,
        plan: &Plan::new(request, &[step]).expect("one"),
        age: None,
    };
    let mut scratch = Scratch::new();
    let shard = ShardIndex(0);
    device
        .recompressor
        .choose(&wanted, shard, 0..16, 16, &mut scratch);
    assert!((0..16).all(|page| slot(&device, page).is_selected()));
    let again = &mut Scratch::new();
    device.recompressor.choose(&wanted, shard, 0..16, 16, again);
    assert_eq!(
        device
            .recompressor
            .settle_recompressed(shard, again)
            .smaller,
        0,
        "chosen twice"
    );

    let before = slot(&device, 0);
    device.discard(0, PAGE).expect("no room needed");
    write(&device, 0, 0).expect("room");
    assert!(slot(&device, 0).same_place(before), "another address");
    device.discard(0, PAGE).expect("no room needed");
    write(&device, 0, 1000).expect("room");
    write(&device, 1, 2000).expect("room");
    device.discard(2 * PAGE, PAGE).expect("no room needed");
    expect(&device, 3, 3);
    device.write(4 * PAGE + 9, b"part").expect("room");
    device.mark_idle(None);
    device.compact();

    scratch.recompress(&device.engine, &wanted);
    assert_eq!(
        device
            .recompressor
            .settle_recompressed(shard, &scratch)
            .smaller,
        11
    );
    for page in 0..16 {
        let expected = match page {
            2 => None,
            0..5 => Some(Codec::Lz4),
            _ => Some(Codec::Tagged),
        };
        assert_eq!(codec(&device, page), expected, "page {page}");
        assert_eq!(slot(&device, page).is_idle(), page != 2);
    }
    expect(&device, 0, 1000);
    expect(&device, 1, 2000);
    for page in [3].into_iter().chain(5..16) {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn old_pages_are_recompressed_unasked() {
    let mut config = DeviceConfig::new(400 * PAGE);
    config.recompress = vec![ZSTD];
    // The thread looks each second.
    const OLD: Duration = Duration::from_secs(8);
    config.recompress_after = Some(OLD);
    config.shards = Some(2);
    let device = Device::new(&config).expect("a device");
    for page in 0..300 {
        write(&device, page, page).expect("room");
    }
    pass(&device, Duration::from_secs(70));
    let used = Instant::now();
    write(&device, 0, 0).expect("room");
    expect(&device, 1, 1);
    // It gives way to whatever else there is to do.
    eventually("recompressed", || device.stats().recompressed_pages >= 298);
    let codecs = [0, 1].map(|page| codec(&device, page));
    if used.elapsed() < OLD {
        assert_eq!(codecs, [Some(Codec::Lz4); 2]);
    }
    for page in 0..300 {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn pages_stay_whole_while_all_is_recompressed_and_evicted() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(600, 150, 2, &backing);
    device
        .set_algorithm_of(Priority::SECONDARY[0], ZSTD)
        .expect("it is in this build");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let recompressor = scope.spawn(|| {
            let mut smaller = 0;
            while !done.load(Relaxed) {
                smaller += recompress(&device, "");
            }
            smaller
        });
        for round in 0..6 {
            for page in 0..600 {
                write(&device, page, page + round).expect("room");
            }
            for page in 0..600 {
                expect(&device, page, page + round);
            }
        }
        done.store(true, Relaxed);
        assert!(recompressor.join().expect("no panic") > 0);
    });
    assert!(device.stats().written_back_pages > 0);
    device.check();
}
