//! The files of spills after their server was killed: the next command clears them, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use crate::backing_keep::bytes_left;
use crate::scrub::fill;
use support::{HANG, Serve, World, eventually};

/// A server that spills to nothing yet, or to `first` which is to be wiped.
fn serve(world: &World, wipes: bool) -> Serve {
    let mut args = vec!["vm", "--size=64M", "--mem-limit=4M", "--nbd=unix:s"];
    if wipes {
        args.extend(["--backing=first", "--backing-keep=wipe"]);
    }
    world.serve(&args)
}

fn record(world: &World) -> Value {
    let record = fs::read(world.rundir().join("vm/record")).unwrap();
    serde_json::from_slice(&record).unwrap()
}

fn assert_zero(file: &File) {
    // On a slow disk the overwriting goes on after the end.
    eventually("wiped", || bytes_left(file) == 0);
}

#[test]
fn a_backing_that_was_set_is_cleared_after_a_kill() {
    let world = World::new();
    let spill = world.path("B");
    for (clear, wipes) in [
        (&["detach", "vm"][..], false),
        (&["stop", "vm"], true),
        (&["stop", "--force", "vm"], false),
        (&["serve", "vm", "--size=1M"], true),
    ] {
        let mut server = serve(&world, wipes);
        world.ok(&["set", "vm", "backing_dev=B"]);
        fill(&world);
        let open = File::open(&spill).unwrap();
        assert!(bytes_left(&open) > 0);
        assert!(!world.path("first").exists());
        server.kill_9();
        assert!(spill.exists());
        if clear[0] == "serve" {
            let mut next = world.serve(&clear[1..]);
            assert!(!spill.exists(), "{clear:?}");
            world.ok(&["stop", "vm"]);
            assert_eq!(next.ended(HANG), Some(0));
        } else {
            world.ok(clear);
        }
        assert!(!spill.exists(), "{clear:?}");
        if wipes {
            assert_zero(&open);
        }
        assert_eq!(world.leftovers(), [""; 0]);
    }
}

/// At its start, and later: it is not ours to remove, but what was spilled to it is.
#[test]
fn a_file_that_was_there_is_emptied_after_a_kill() {
    let world = World::new();
    let spill = world.path("first");
    for (at_start, wipes) in [(true, true), (false, false)] {
        let mut options = File::options();
        options
            .write(true)
            .create(true)
            .mode(0o600)
            .open(&spill)
            .unwrap();
        let inode = fs::metadata(&spill).unwrap().ino();
        let mut server = serve(&world, wipes);
        if !at_start {
            world.ok(&["set", "vm", "backing_dev=first"]);
        }
        fill(&world);
        assert!(bytes_left(&File::open(&spill).unwrap()) > 0);
        server.kill_9();
        world.ok(&["detach", "vm"]);
        let meta = fs::metadata(&spill).unwrap();
        assert_eq!((meta.ino(), meta.len()), (inode, 0), "{at_start}");
    }
}

/// What left in order is nobody's any more, whoever has put something there since then.
#[test]
fn a_backing_that_has_left_is_not_recorded() {
    let world = World::new();
    let spill = world.path("B");
    File::create(&spill).unwrap();
    let mut server = serve(&world, false);
    world.ok(&["set", "vm", "backing_dev=B"]);
    assert_eq!(record(&world)["spills"][0]["path"], json!(spill));
    world.ok(&["set", "vm", "backing_dev=C"]);
    world.ok(&["set", "vm", "backing_dev=none"]);
    let record = record(&world);
    assert_eq!(
        (&record["spills"], &record["making"]),
        (&json!([]), &json!([]))
    );
    fs::write(&spill, "precious").unwrap();
    world.refused(1, &["set", "vm", "backing_dev=missing/D"]);
    server.kill_9();
    world.ok(&["detach", "vm"]);
    assert_eq!(fs::read_to_string(&spill).unwrap(), "precious");
    assert!(!world.path("C").exists());
}

/// From the moment that it exists.
#[test]
fn a_kill_while_a_backing_is_made_leaves_none() {
    let world = World::new();
    let spill = world.path("B");
    for at_start in [true, false, true, false, true, false] {
        let started = (!at_start).then(|| serve(&world, false));
        let mut command = match at_start {
            true => world.command(&["serve", "vm", "--size=64M", "--backing=B"]),
            false => world.command(&["set", "vm", "backing_dev=B"]),
        };
        let mut command = command.spawn().unwrap();
        let start = Instant::now();
        while !spill.exists() {
            assert!(start.elapsed() < HANG, "it is never made");
        }
        match started {
            Some(mut server) => server.kill_9(),
            None => command.kill().unwrap(),
        }
        command.wait().unwrap();
        world.ok(&["detach", "vm"]);
        assert!(!spill.exists(), "{at_start}");
        assert_eq!(world.leftovers(), [""; 0]);
    }
}

/// Of what a record says that is being made only what was only just made is removed.
#[test]
fn what_came_where_a_backing_was_to_be_made_stays() {
    let world = World::new();
    let made = world.path("B");
    let make = |mode, text: &str| {
        let _ = fs::remove_file(&made);
        let mut options = File::options();
        options
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&made)
            .unwrap();
        fs::write(&made, text).unwrap();
    };
    let clear = |path: &Path| {
        serve(&world, false).kill_9();
        let mut record = record(&world);
        record["making"] = json!([path]);
        fs::write(world.rundir().join("vm/record"), record.to_string()).unwrap();
        world.ok(&["detach", "vm"]);
    };
    make(0o600, "precious");
    clear(&made);
    assert_eq!(fs::read_to_string(&made).unwrap(), "precious");
    make(0o644, "");
    clear(&made);
    assert!(made.exists());
    make(0o600, "");
    fs::hard_link(&made, world.path("link")).unwrap();
    clear(&made);
    assert!(made.exists());
    fs::remove_file(world.path("link")).unwrap();
    std::os::unix::fs::symlink(&made, world.path("link")).unwrap();
    clear(&world.path("link"));
    assert!(made.exists() && world.path("link").exists());
    clear(&made);
    assert!(!made.exists());
}

/// Whoever finds a file that is of no use any more may use it, by its name or as it is.
#[test]
fn what_was_written_over_a_spill_after_a_kill_stays() {
    let world = World::new();
    let spill = world.path("first");
    for (was_there, wipes) in [(false, false), (false, true), (true, false), (true, true)] {
        if was_there {
            let mut options = File::options();
            let mode = options.write(true).create(true).mode(0o600);
            mode.open(&spill).unwrap();
        }
        let mut server = serve(&world, wipes);
        if !wipes {
            world.ok(&["set", "vm", "backing_dev=first"]);
        }
        fill(&world);
        assert!(bytes_left(&File::open(&spill).unwrap()) > 0);
        server.kill_9();
        let inode = fs::metadata(&spill).unwrap().ino();
        fs::write(&spill, "precious").unwrap();
        let output = world.run(&["detach", "vm"]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("stays: it holds data"), "{said}");
        assert_eq!(fs::read_to_string(&spill).unwrap(), "precious");
        assert_eq!(fs::metadata(&spill).unwrap().ino(), inode);
        assert_eq!(world.leftovers(), [""; 0]);
        fs::remove_file(&spill).unwrap();
    }
}
