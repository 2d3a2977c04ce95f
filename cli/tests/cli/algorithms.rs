//! Dictionaries, several algorithms, the state of pages, and a tail that is discarded.

use std::fs;

use serde_json::Value;

use crate::recompress::{copy, fill, uri};
use support::World;

fn compressed(world: &World) -> u64 {
    let stats: Value = serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap();
    stats["compr_data_size"].as_u64().unwrap()
}

#[test]
fn a_dictionary_of_the_device_makes_it_smaller() {
    let world = World::new();
    let server = world.serve(&[
        "vm",
        "--size=64M",
        "--nbd=unix:s",
        "--recompress=zstd:3",
        "--after=0",
    ]);
    let data = fill(&world);
    let said = world.ok(&["train-dict", "--device=vm", "--size=32K", "dict"]);
    assert!(said.ends_with(" of dictionary in dict\n"), "{said}");
    assert!(fs::metadata(world.path("dict")).unwrap().len() <= 32 << 10);
    world.ok(&["recompress", "vm"]);
    let without = compressed(&world);
    world.ok(&["set", "vm", "recomp_algorithm=algo=zstd:3 priority=2"]);
    world.ok(&["set", "vm", "algorithm_params=priority=2 level=3 dict=dict"]);
    let winbits = "algorithm_params=priority=2 deflate.winbits=-12";
    let line = world.refused(2, &["set", "vm", winbits]);
    assert!(line.contains("leave deflate.winbits out"), "{line}");
    world.ok(&["recompress", "vm"]);
    let with = compressed(&world);
    assert!(with < without, "{with} {without}");
    let states = world.ok(&["stat", "vm", "block_state"]);
    let recompressed = states.lines().filter(|line| line.contains('r')).count();
    assert!(recompressed > 100, "{recompressed}");
    assert!(world.ok(&["stat", "vm", "classes"]).contains("Total"));

    fs::remove_file(world.path("dict")).unwrap();
    world.ok(&["stop", "vm", "--save=image"]);
    drop(server);
    let _server = world.serve(&["vm", "--restore=image", "--nbd=unix:s"]);
    copy(&world, &uri(&world), "copy");
    assert!(fs::read(world.path("copy")).unwrap()[..data.len()] == data);
}

#[test]
fn a_dictionary_of_files() {
    let world = World::new();
    let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src/verbs");
    let files: Vec<_> = fs::read_dir(sources)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .filter(|path| path.ends_with(".rs"))
        .collect();
    let mut args = vec!["train-dict", "--size=8K", "dict"];
    args.extend(files.iter().map(String::as_str));
    world.ok(&args);
    assert!(fs::metadata(world.path("dict")).unwrap().len() <= 8 << 10);
    fs::write(world.path("little"), [1; 5000]).unwrap();
    let line = world.refused(1, &["train-dict", "dict", "little"]);
    assert!(line.contains("too few"), "{line}");
    fs::remove_file(world.path("dict")).unwrap();
    fs::write(world.path("zeroes"), vec![0; 3 << 20]).unwrap();
    let line = world.refused(1, &["train-dict", "dict", "zeroes"]);
    assert!(line.contains("too much the same"), "{line}");
    assert!(!world.path("dict").exists());
    world.refused(2, &["train-dict", "dict"]);
    world.refused(1, &["train-dict", "dict", "missing"]);
}

#[test]
fn a_tail_is_discarded_if_that_is_asked_for() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    fill(&world);
    let line = world.refused(1, &["set", "vm", "disksize=1M"]);
    assert!(line.contains("--discard-tail"), "{line}");
    world.ok(&["set", "vm", "disksize=1M", "--discard-tail"]);
    assert_eq!(world.ok(&["stat", "vm", "disksize"]), "1048576\n");
    world.ok(&["set", "vm", "disksize=64M"]);
    copy(&world, &uri(&world), "copy");
    let copied = fs::read(world.path("copy")).unwrap();
    let data = fs::read(world.path("data")).unwrap();
    assert!(copied[..1 << 20] == data[..1 << 20]);
    assert!(copied[1 << 20..].iter().all(|&byte| byte == 0));
}
