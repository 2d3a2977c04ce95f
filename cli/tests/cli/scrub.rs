//! `uzram scrub`, and what the file of a spill shows.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use support::World;

const DATA: usize = 48 << 20;

/// Fills a device with random data over NBD; returns the data.
pub(crate) fn fill(world: &World) -> Vec<u8> {
    let mut data = vec![0; DATA];
    let random = File::open("/dev/urandom").unwrap();
    std::io::Read::read_exact(&mut &random, &mut data).unwrap();
    fs::write(world.path("data"), &data).unwrap();
    let uri = format!("nbd+unix:///vm?socket={}", world.path("s").display());
    let copied = Command::new("nbdcopy")
        .args([world.path("data").to_str().unwrap(), &uri])
        .output()
        .unwrap();
    assert!(copied.status.success(), "{copied:?}");
    data
}

/// Pages of `data` that a spill shows: those whose middles are in it.
fn shown(data: &[u8], spill: &Path) -> usize {
    let spill = fs::read(spill).unwrap();
    let middles: std::collections::HashSet<&[u8]> =
        data.chunks(4096).map(|page| &page[2040..2056]).collect();
    spill
        .windows(16)
        .filter(|window| middles.contains(window))
        .count()
}

/// Damages the spill file in `places`, far enough apart that each is in another record.
fn damage(spill: &Path, places: usize) {
    let spill = File::options().read(true).write(true).open(spill).unwrap();
    for place in 0..places {
        let at = (1 << 20) + place as u64 * 100_003;
        let mut bytes = [0; 32];
        spill.read_exact_at(&mut bytes, at).unwrap();
        spill.write_all_at(&bytes.map(|byte| !byte), at).unwrap();
    }
}

#[test]
fn what_is_damaged_is_counted_and_named() {
    for encrypted in [false, true] {
        let world = World::new();
        let mut args = vec!["vm", "--size=64M", "--mem-limit=4M", "--backing=spill"];
        args.extend(["--nbd=unix:s"]);
        args.extend(encrypted.then_some("--backing-encrypt"));
        let _server = world.serve(&args);
        assert_eq!(
            world.ok(&["scrub", "vm"]),
            "0 spilled pages checked, all intact\n"
        );
        let data = fill(&world);
        let said = world.ok(&["scrub", "vm"]);
        assert!(said.contains("spilled pages checked, all intact"), "{said}");
        let spill = world.path("spill");
        match (encrypted, shown(&data, &spill)) {
            (false, shown) => assert!(shown > 10_000, "{shown}"),
            (true, shown) => assert_eq!(shown, 0),
        }

        damage(&spill, 30);
        let line = world.refused(1, &["scrub", "vm"]);
        let stats: Value = serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap();
        let lost = stats["damaged_records"].as_u64().unwrap();
        // A place may be at the border of two records, or behind the last of an append.
        assert!((25..=60).contains(&lost), "{lost}");
        assert!(line.contains(&format!(", {lost} damaged: ")), "{line}");
        let more = format!(" and {} more", lost - 20);
        assert!(line.trim_end().ends_with(&more), "{line}");
        assert!(world.ok(&["stat", "vm"]).contains("damaged"));
        assert_eq!(world.refused(1, &["scrub", "vm"]), line);
    }
}
