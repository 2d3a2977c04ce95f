//! The systemd unit, as far as systemd can tell without being in charge.

use std::fs;
use std::io::Write;
use std::process::Command;

use crate::common::World;

#[test]
fn systemd_has_no_objection_to_the_unit() {
    let unit = include_str!("../../systemd/uzram@.service");
    let installed = "/usr/local/bin/uzram";
    assert!(unit.contains(installed));
    let world = World::new();
    let path = world.dir("units").join("uzram@device.service");
    fs::write(&path, unit.replace(installed, env!("CARGO_BIN_EXE_uzram"))).unwrap();
    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&path)
        .output();
    let Ok(verified) = verified else {
        // Straight to the descriptor: the harness keeps what a passing test prints to itself.
        let why = "systemd_has_no_objection_to_the_unit: there is no systemd-analyze";
        let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
        return;
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_it: Vec<_> = said
        .lines()
        .filter(|line| line.contains("uzram@"))
        .collect();
    assert!(about_it.is_empty() && verified.status.success(), "{said}");
}

/// The line that the unit starts, with options as they are in its file.
#[test]
fn what_the_unit_starts_serves() {
    let world = World::new();
    let server = world.serve(&[
        "--size=8M",
        "--mem-limit=1M",
        "--backing=spill",
        "--",
        "device",
    ]);
    assert!(world.ok(&["list"]).contains("device"));
    drop(server);
}
