//! Several algorithms on one device: their priorities, their parameters, and dictionaries.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::algorithm::{Algorithm, Priority};
use crate::attributes::Attribute;
use crate::device::tests::idle::no_limit;
use crate::recompression::Recompression;
use crate::shard::SlotIndex;

/// The priority of the algorithm that made a page's object.
fn priority(device: &Device, page: u64) -> u8 {
    let run = device
        .engine
        .shards
        .layout
        .run(crate::PageIndex(page as u32), page + 1);
    let shard = device.engine.shards.lock(run.shard);
    shard.priority(shard.slot(SlotIndex(run.slot.0))).number()
}

fn set(device: &Device, attribute: Attribute, value: &str) {
    attribute.store(device, value).expect(value);
}

fn recompress(device: &Device, what: &str) -> crate::Result<u64> {
    device.recompress(&Recompression::parse(what).expect(what))
}

fn filled(pages: u64) -> Device {
    let device = no_limit(pages, 2);
    for page in 0..pages {
        write(&device, page, page).expect("room");
    }
    device
}

#[test]
fn no_level_is_taken_that_an_algorithm_does_not_have() {
    let device = no_limit(4, 1);
    let before = device.algorithm();
    for wrong in [
        Algorithm::Lz4hc { level: 2 },
        Algorithm::Zstd { level: 100 },
        Algorithm::Deflate { level: 0 },
    ] {
        let mut config = DeviceConfig::new(1 << 20);
        config.algorithm = wrong;
        let mut again = DeviceConfig::new(1 << 20);
        again.recompress = vec![Algorithm::Lz4, wrong];
        let refused = [
            device.set_algorithm(wrong),
            device.set_algorithm_of(Priority::SECONDARY[1], wrong),
            Device::new(&config).map(drop),
            Device::new(&again).map(drop),
        ];
        let is_usage =
            |result: &crate::Result<()>| matches!(result, Err(error) if error.is_usage());
        assert!(refused.iter().all(is_usage), "{wrong:?}: {refused:?}");
    }
    assert_eq!(device.algorithm(), before);
    assert_eq!(device.algorithm_of(Priority::SECONDARY[1]), None);
}

#[test]
fn every_algorithm_serves_new_pages() {
    let device = no_limit(400, 2);
    let all = [
        "lz4",
        "lz4hc",
        "zstd",
        "deflate",
        "lz4hc:12",
        "zstd:9",
        "deflate:12",
    ];
    for (page, algorithm) in (0..).zip(all) {
        device
            .set_algorithm(algorithm.parse().expect(algorithm))
            .expect("it is in this build");
        write(&device, page, page).expect("room");
        write(&device, page + 100, page).expect("room");
        assert_eq!(priority(&device, page), 0);
    }
    for page in 0..all.len() as u64 {
        expect(&device, page, page);
        device
            .write((page + 100) * PAGE + 1, b"part")
            .expect("room");
    }
    device.check();
}

#[test]
fn a_page_takes_the_first_algorithm_that_makes_it_smaller() {
    let device = filled(100);
    set(&device, Attribute::RecompAlgorithm, "algo=lz4 priority=1");
    set(
        &device,
        Attribute::RecompAlgorithm,
        "algo=zstd:3 priority=2",
    );
    set(
        &device,
        Attribute::RecompAlgorithm,
        "algo=deflate priority=3",
    );
    let shown = Attribute::RecompAlgorithm.show(&device).expect("readable");
    let expected = "#1: [lz4] lz4hc zstd deflate\n#2: lz4 lz4hc [zstd:3] deflate\n\
                    #3: lz4 lz4hc zstd [deflate]\n";
    assert_eq!(shown, expected);
    // The first makes them no smaller than they are.
    assert_eq!(recompress(&device, "priority=1").expect("set"), 0);
    assert_eq!(recompress(&device, "max_pages=10").expect("set"), 10);
    assert_eq!((priority(&device, 0), priority(&device, 99)), (2, 0));
    assert_eq!(
        recompress(&device, "algo=deflate max_pages=20").expect("set"),
        10
    );
    let highest = (0..100)
        .filter(|&page| priority(&device, page) == 3)
        .count();
    assert!(highest >= 10, "{highest}");
    recompress(&device, "").expect("set");
    assert!((0..100).all(|page| priority(&device, page) >= 2));
    assert_eq!(recompress(&device, "priority=2").expect("set"), 0);
    for page in 0..100 {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn what_no_algorithm_made_smaller_is_tried_with_another() {
    let device = filled(50);
    device
        .set_algorithm_of(Priority::SECONDARY[0], Algorithm::Lz4)
        .expect("it is in this build");
    assert_eq!(recompress(&device, "").expect("set"), 0);
    device
        .set_algorithm_of(Priority::SECONDARY[2], Algorithm::Zstd { level: 3 })
        .expect("it is in this build");
    assert_eq!(recompress(&device, "").expect("set"), 50);
    assert_eq!(priority(&device, 7), 3);
    let error = recompress(&device, "priority=2").expect_err("not set");
    assert_eq!(error.errno(), Errno::INVAL);
}

/// One that is all of some pages.
fn dictionary(dir: &Path) -> String {
    let pages: Vec<Page> = (10..20).map(tagged).collect();
    let path = dir.join("dictionary");
    fs::write(&path, pages.as_flattened()).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn parameters_are_those_of_one_algorithm() {
    let dir = tempfile::tempdir().expect("a directory");
    let dict = dictionary(dir.path());
    let device = filled(50);
    set(&device, Attribute::CompAlgorithm, "zstd");
    set(&device, Attribute::RecompAlgorithm, "algo=deflate");
    set(&device, Attribute::AlgorithmParams, "priority=1 level=9");
    set(
        &device,
        Attribute::AlgorithmParams,
        &format!("algo=zstd level=5 dict={dict}"),
    );
    let expected = Some(Algorithm::Deflate { level: 9 });
    assert_eq!(device.algorithm_of(Priority::SECONDARY[0]), expected);
    assert_eq!(device.algorithm(), Algorithm::Zstd { level: 5 });
    set(&device, Attribute::AlgorithmParams, "algo=deflate");
    let expected = Some(Algorithm::Deflate { level: 6 });
    assert_eq!(device.algorithm_of(Priority::SECONDARY[0]), expected);
    for bad in [
        "level",
        "level=x",
        "level=23",
        "priority=3 level=1",
        "priority=4",
        "algo=lz4hc",
        &format!("priority=1 dict={dict}"),
        "deflate.winbits=10",
    ] {
        let error = Attribute::AlgorithmParams
            .store(&device, bad)
            .expect_err(bad);
        assert_eq!(error.errno(), Errno::INVAL, "{bad}");
    }
    let missing = Attribute::AlgorithmParams.store(&device, "dict=/nowhere");
    assert_eq!(missing.expect_err("missing").errno(), Errno::NOENT);
}

#[test]
fn objects_keep_their_dictionary_wherever_they_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let dict = dictionary(dir.path());
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(300, 100, 2, &backing);
    set(&device, Attribute::CompAlgorithm, "zstd");
    for page in 0..10 {
        write(&device, page, page).expect("room");
    }
    let plain = device.stats().compr_data_size;
    set(&device, Attribute::AlgorithmParams, &format!("dict={dict}"));
    for page in 10..20 {
        write(&device, page, page).expect("room");
    }
    let with = device.stats().compr_data_size - plain;
    assert!(with * 2 < plain, "{with} {plain}");
    fs::remove_file(&dict).expect("there");
    set(&device, Attribute::CompAlgorithm, "lz4");
    device.evict(10 * PAGE).expect("room");
    for page in 20..300 {
        write(&device, page, page).expect("room");
    }
    device.compact();
    let image = dir.path().join("image");
    device.save(&image).expect("saved");

    let other = no_limit(300, 3);
    // Its own has the number that the other has in the image.
    let own = dir.path().join("own");
    fs::write(&own, [7; 1000]).expect("written");
    set(&other, Attribute::CompAlgorithm, "zstd");
    let params = format!("dict={}", own.display());
    set(&other, Attribute::AlgorithmParams, &params);
    let error = other.restore(&image).expect_err("another dictionary");
    assert_eq!(error.errno(), Errno::EXIST);
    other.check();
    assert_eq!(other.stats().orig_data_size, 0);
    write(&other, 5, 55).expect("room");
    expect(&other, 5, 55);

    let restored = no_limit(300, 3);
    restored.restore(&image).expect("a whole image");
    for page in 0..300 {
        expect(&device, page, page);
        expect(&restored, page, page);
    }
    device.check();
    restored.check();
}
