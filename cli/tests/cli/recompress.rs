//! Recompression from the command line, asked for and unasked.

use std::fs;
use std::process::Command;

use serde_json::Value;

use support::{World, eventually};

/// Copies this test's own program, rounded up to a MiB, onto the device; returns its bytes.
pub(crate) fn fill(world: &World) -> Vec<u8> {
    let mut data = fs::read(std::env::current_exe().unwrap()).unwrap();
    data.truncate(16 << 20);
    data.resize(data.len().next_multiple_of(1 << 20), 0);
    fs::write(world.path("data"), &data).unwrap();
    copy(world, "data", &uri(world));
    data
}

pub(crate) fn uri(world: &World) -> String {
    format!("nbd+unix:///vm?socket={}", world.path("s").display())
}

pub(crate) fn copy(world: &World, from: &str, to: &str) {
    let mut nbdcopy = Command::new("nbdcopy");
    let copied = nbdcopy
        .args([from, to])
        .current_dir(world.path(""))
        .output();
    let copied = copied.unwrap();
    assert!(copied.status.success(), "{copied:?}");
}

fn stats(world: &World) -> Value {
    serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap()
}

#[test]
fn memory_gets_less_and_the_data_stays() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    let line = world.refused(1, &["recompress", "vm"]);
    assert!(line.contains("recomp_algorithm"), "{line}");
    let line = world.refused(2, &["recompress", "vm", "cold"]);
    assert!(line.contains("type=idle"), "{line}");
    let data = fill(&world);
    let before = stats(&world)["mem_used_total"].as_u64().unwrap();
    world.ok(&["set", "vm", "recomp_algorithm=algo=zstd:3"]);
    let marked = world.ok(&["idle", "vm", "--json"]);
    let marked: Value = serde_json::from_str(&marked).unwrap();
    assert!(marked["pages"].as_u64() > Some(0), "{marked}");
    let said = world.ok(&["recompress", "vm", "type=idle"]);
    assert!(said.contains("pages made smaller: memory"), "{said}");
    let after = stats(&world);
    assert!(after["recompressed_pages"].as_u64().unwrap() > 0, "{after}");
    let after = after["mem_used_total"].as_u64().unwrap();
    assert!(after * 10 < before * 9, "{before} {after}");
    copy(&world, &uri(&world), "copy");
    let copy = fs::read(world.path("copy")).unwrap();
    assert!(copy[..data.len()] == data);

    world.ok(&["set", "vm", "comp_algorithm=zstd:9"]);
    let shown = world.ok(&["stat", "vm", "comp_algorithm", "recomp_algorithm"]);
    assert_eq!(
        shown,
        "lz4 lz4hc [zstd:9] deflate\n#1: lz4 lz4hc [zstd:3] deflate\n"
    );
    let metrics = world.ok(&["metrics"]);
    let line = format!("uzram_memory_bytes{{device=\"vm\"}} {after}");
    assert!(
        metrics.lines().any(|there| there == line),
        "{line} in\n{metrics}"
    );
}

#[test]
fn what_is_old_is_recompressed_unasked() {
    let world = World::new();
    let args = [
        "vm",
        "--size=64M",
        "--nbd=unix:s",
        "--recompress=zstd",
        "--after=1",
    ];
    let _server = world.serve(&args);
    fill(&world);
    eventually("recompressed", || stats(&world)["recompressed_pages"] != 0);
}
