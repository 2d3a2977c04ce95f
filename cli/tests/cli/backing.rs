//! What `--backing` and `backing_dev` use, and what they leave alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::up_down::configure;
use support::{HANG, World, signal};

/// A file in which there is data where nobody would look for it: more zeroes in front of it and behind
/// it than any format begins and ends with.
fn looks_blank(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(40 << 20).unwrap();
    file.write_all_at(b"the only copy", 20 << 20).unwrap();
}

fn is_as_it_was(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap();
    let (before, data) = bytes.split_at(20 << 20);
    let (data, behind) = data.split_at(13);
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    bytes.len() == 40 << 20 && data == b"the only copy" && zero(before) && zero(behind)
}

#[test]
fn data_anywhere_is_left_alone_however_it_is_asked_for() {
    let world = World::new();
    let path = world.path("precious");
    looks_blank(&path);
    let serve = [
        "serve",
        "a",
        "--size=8M",
        "--mem-limit=1M",
        "--backing=precious",
    ];
    let line = world.refused(1, &serve);
    assert!(
        line.contains("byte 20971520") && line.contains("--backing-force"),
        "{line}"
    );
    assert!(is_as_it_was(&path));

    let table = "[a]\nsize = \"8M\"\nbacking = \"precious\"\n";
    let line = world.refused(1, &["up", configure(&world, table)]);
    assert!(line.contains("--backing-force"), "{line}");
    assert!(is_as_it_was(&path));
    assert_eq!(world.leftovers(), [""; 0]);

    let _server = world.serve(&["a", "--size=8M"]);
    let set = ["set", "a", "backing_dev=precious"];
    let line = world.refused(1, &set);
    assert!(line.contains("--backing-force"), "{line}");
    assert!(is_as_it_was(&path));
    assert_eq!(world.ok(&["stat", "a", "backing_dev"]), "none\n");
}

#[test]
fn data_of_no_worth_is_overwritten_by_an_explicit_word() {
    let world = World::new();
    let path = world.path("spill");
    let is_used = || fs::metadata(&path).unwrap().len() == 0;
    looks_blank(&path);
    let mut server = world.serve(&["a", "--size=8M", "--backing=spill", "--backing-force"]);
    assert!(is_used());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));

    looks_blank(&path);
    let table = "[a]\nsize = \"8M\"\nbacking = \"spill\"\nbacking-force = true\n";
    let config = configure(&world, table);
    world.ok(&["up", config]);
    assert!(is_used());
    world.ok(&["down", config]);

    let _server = world.serve(&["a", "--size=8M"]);
    for words in [
        &["backing_dev=spill", "--backing-force"][..],
        &["backing_dev=force:spill"],
    ] {
        looks_blank(&path);
        world.ok(&[&["set", "a"], words].concat());
        assert!(is_used());
        let shown = world.ok(&["stat", "a", "backing_dev"]);
        assert_eq!(shown, format!("{}\n", path.display()));
        world.ok(&["set", "a", "backing_dev=none"]);
    }
}
