//! The systemd units, as far as systemd can tell without being in charge.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use crate::common::{HANG, Serve, World, signal};

#[test]
fn systemd_has_no_objection_to_the_units() {
    let world = World::new();
    let units = world.dir("units");
    for (name, unit) in [
        (
            "uzram@device.service",
            include_str!("../../systemd/uzram@.service"),
        ),
        (
            "uzram-mount@device.service",
            include_str!("../../systemd/uzram-mount@.service"),
        ),
    ] {
        let installed = "/usr/local/bin/uzram";
        assert!(unit.contains(installed));
        let path = units.join(name);
        fs::write(&path, unit.replace(installed, env!("CARGO_BIN_EXE_uzram"))).unwrap();
        let verified = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output();
        let Ok(verified) = verified else {
            // Straight to the descriptor: the harness keeps what a passing test prints to itself.
            let why = "systemd_has_no_objection_to_the_units: there is no systemd-analyze";
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            return;
        };
        let said = String::from_utf8_lossy(&verified.stderr);
        let about_it = said.lines().filter(|line| line.contains("uzram"));
        assert_eq!(about_it.count(), 0, "{said}");
        assert!(verified.status.success(), "{said}");
    }
}

/// What the unit starts, and what it says to systemd: that it is there, and that it is well.
#[test]
fn what_the_unit_starts_serves_and_feeds_the_watchdog() {
    let world = World::new();
    let table = "[device]\nsize = \"8M\"\nmem-limit = \"1M\"\nbacking = \"spill\"\n";
    fs::write(world.path("uzram.toml"), table).unwrap();
    let systemd = UnixDatagram::bind(world.path("notify")).unwrap();
    systemd.set_read_timeout(Some(HANG)).unwrap();
    let mut command = world.command(&["up", "--foreground", "device", "--config=uzram.toml"]);
    command
        .env("NOTIFY_SOCKET", world.path("notify"))
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID");
    let mut server = Serve::start(&mut command);
    let next = || {
        let mut message = [0; 64];
        let len = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    let said: Vec<_> = std::iter::repeat_with(next).take(5).collect();
    assert_eq!(
        said.iter().filter(|said| *said == "READY=1").count(),
        1,
        "{said:?}"
    );
    assert_eq!(
        said.iter().filter(|said| *said == "WATCHDOG=1").count(),
        4,
        "{said:?}"
    );
    assert!(world.ok(&["list"]).contains("device"));
    assert!(world.path("spill").exists());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
}
