//! What becomes of a spill with each `--backing-keep`.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::STOP;
use crate::scrub::fill;
use support::{HANG, Serve, World, eventually, signal};

fn spilled(world: &World, keep: &str) -> Serve {
    let keep = format!("--backing-keep={keep}");
    let server = world.serve(&[
        "vm",
        "--size=64M",
        "--mem-limit=4M",
        "--backing=spill",
        "--nbd=unix:s",
        // Its threads have no say in when the device goes.
        "--metrics=unix:metrics",
        &keep,
    ]);
    fill(world);
    server
}

/// Bytes of a file that are not zero, also of one that was removed.
pub(crate) fn bytes_left(mut file: &File) -> usize {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes.iter().filter(|&&byte| byte != 0).count()
}

fn open(spill: &Path) -> File {
    File::open(spill).unwrap()
}

#[test]
fn a_kept_spill_stays_and_is_taken_over() {
    let world = World::new();
    let spill = world.path("spill");
    let mut server = spilled(&world, "keep");
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    assert!(bytes_left(&open(&spill)) > 30 << 20);

    spilled(&world, "keep").kill_9();
    world.ok(&["detach", "vm"]);
    assert!(bytes_left(&open(&spill)) > 30 << 20);

    let mut server = world.serve(&["vm", "--size=64M", "--backing=spill"]);
    assert_eq!(fs::metadata(&spill).unwrap().len(), 0);
    world.ok(&["stop", "vm"]);
    assert_eq!(server.ended(HANG), Some(0));
}

#[test]
fn a_wiped_spill_is_zeroes_before_it_is_gone() {
    let world = World::new();
    let spill = world.path("spill");
    // Ended in order, killed, and a file that was there before.
    for end in ["TERM", "KILL", "found"] {
        if end == "found" {
            File::create(&spill).unwrap();
        }
        let mut server = spilled(&world, "wipe");
        let file = open(&spill);
        if end == "KILL" {
            server.kill_9();
            world.ok(&["detach", "vm"]);
        } else {
            signal(server.pid(), "TERM");
            assert_eq!(server.ended(STOP), Some(0));
        }
        assert_eq!(spill.exists(), end == "found");
        // On a slow disk the overwriting goes on after the end.
        eventually(&format!("wiped after {end}"), || bytes_left(&file) == 0);
    }
    fs::remove_file(&spill).unwrap();
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn only_a_spill_is_wiped() {
    let world = World::new();
    fs::write(world.path("data"), "precious").unwrap();
    let line = world.refused(1, &["wipe-spill", "data"]);
    assert!(line.contains("not a spill"), "{line}");
    assert_eq!(fs::read_to_string(world.path("data")).unwrap(), "precious");
    let line = world.refused(
        2,
        &[
            "serve",
            "a",
            "--size=1M",
            "--backing=b",
            "--backing-keep=no",
        ],
    );
    assert!(line.contains("keep, remove or wipe"), "{line}");
    world.refused(2, &["serve", "a", "--size=1M", "--backing-keep=keep"]);
    world.refused(2, &["serve", "a", "--size=1M", "--backing-encrypt"]);
    world.refused(2, &["serve", "a", "--size=1M", "--backing-force"]);
}

#[test]
fn wiping_is_not_ended_by_what_ends_its_server() {
    let world = World::new();
    let spill = world.path("spill");
    let mut server = spilled(&world, "keep");
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    // Enough for it to be at work when the signals come.
    let mut more = File::options().append(true).open(&spill).unwrap();
    for _ in 0..160 {
        more.write_all(&[7; 1 << 20]).unwrap();
    }
    let mut wipe = world.command(&["wipe-spill", "spill"]).spawn().unwrap();
    let status = format!("/proc/{}/status", wipe.id());
    let handles_hup = |status: &str| {
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        caught.is_some_and(|mask| mask & 1 != 0)
    };
    while !handles_hup(&fs::read_to_string(&status).unwrap()) {
        assert!(
            wipe.try_wait().unwrap().is_none(),
            "it takes no care of signals"
        );
    }
    for name in ["TERM", "INT", "HUP"] {
        signal(wipe.id(), name);
    }
    let ended = support::ended(&mut wipe, HANG).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    assert_eq!(bytes_left(&open(&spill)), 0);
}
