//! How verbs exit.

use std::fs;

use crate::common::World;

/// Refusals of one kind have one code, whoever refuses: the command line, a file, or a server.
#[test]
fn what_never_makes_sense_exits_2_and_what_does_not_now_exits_1() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M", "--nbd=unix:s"]);
    let image = world.path("image");
    fs::write(&image, [7; 8192]).unwrap();
    let _over = world.serve(&["over", "--origin=image"]);
    fs::write(world.path("no-dict"), [7; 4096]).unwrap();
    fs::write(
        world.path("a.toml"),
        "[a]\nsize = 5\n[b]\nsize = \"1M\"\nfs = 7\n",
    )
    .unwrap();
    fs::write(world.path("b.toml"), "[a]\nsize = 5\n[b]\nsize = 6\n").unwrap();
    for (code, args) in [
        (2, &["set", "vm", "mem_limit=lots"][..]),
        (2, &["set", "vm", "mem_limit=4K"]),
        (2, &["set", "vm", "disksize=5"]),
        (2, &["set", "vm", "comp_algorithm=lzo"]),
        (2, &["train-dict", "d", "image", "--size=1"]),
        (2, &["train-dict", "d", "--device=vm", "--size=1"]),
        (2, &["up", "--config=a.toml"]),
        (2, &["writeback", "vm", "page_indexes=9-1"]),
        // As things stand.
        (1, &["set", "vm", "disksize=1T"]),
        (1, &["set", "vm", "disksize=4K", "reset=1", "disksize=9T"]),
        (1, &["set", "vm", "backing_dev=."]),
        (1, &["set", "over", "backing_dev=spill"]),
        (1, &["set", "vm", "algorithm_params=priority=1 level=1"]),
        (1, &["set", "vm", "algorithm_params=algo=zstd level=1"]),
        (1, &["recompress", "vm"]),
        (1, &["writeback", "vm", "page_index=999999"]),
        (1, &["train-dict", "d", "--device=vm"]),
        (1, &["train-dict", "d", "image"]),
        (1, &["save", "over", "saved"]),
        (1, &["stop", "over", "--save=saved"]),
        (1, &["save", "vm", "."]),
        (1, &["stop", "vm", "--save=."]),
        (1, &["sync", "vm"]),
        (1, &["serve", "b", "--size=1M", "--backing=."]),
        (1, &["serve", "b", "--restore=no-dict"]),
        (1, &["serve", "vm", "--size=1M"]),
    ] {
        world.refused(code, args);
    }
    let output = world.run(&["up", "--config=b.toml"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}
