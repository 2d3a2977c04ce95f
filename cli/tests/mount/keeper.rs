//! File systems on a server that runs as another user.

use std::process::Command;

use serde_json::Value;

use crate::{Disk, alone, tool, within};
use support::{HANG, World, can_mount, signal};

const USER: &str = "--user=daemon";

fn entry(disk: &Disk, key: &str) -> Value {
    let list: Value = serde_json::from_str(&disk.world.ok(&["list", "--json"])).unwrap();
    list[0][key].clone()
}

#[test]
fn a_file_system_on_a_server_of_another_user_spills_and_comes_back() {
    let Some(disk) = Disk::new("a_file_system_on_a_server_of_another_user") else {
        return;
    };
    let alone = alone();
    disk.mount(&["--size=512M", "--mem-limit=4M", "--backing=spill", USER]);
    drop(alone);
    let status = std::fs::read_to_string(format!("/proc/{}/status", disk.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    disk.fill();
    tool("sync", &[]);
    let written = |disk: &Disk| entry(disk, "stats")["written_back_pages"].as_u64().unwrap();
    assert!(within(HANG, || written(&disk) > 0), "nothing is spilled");
    disk.compare();
    disk.world.ok(&["umount", "mnt"]);
    disk.nothing_is_left();
    assert!(!disk.world.path("spill").exists());
}

/// The file system is written out while its server is told to end.
#[test]
fn a_file_system_is_unmounted_by_the_keeper_when_the_server_ends() {
    let Some(disk) = Disk::new("a_file_system_is_unmounted_by_the_keeper") else {
        return;
    };
    let _alone = alone();
    for key in ["pid", "keeper_pid"] {
        disk.mount(&["--size=64M", USER]);
        std::fs::write(disk.mnt.join("file"), [7; 1 << 20]).unwrap();
        let pid = u32::try_from(entry(&disk, key).as_u64().unwrap()).unwrap();
        signal(pid, "TERM");
        assert!(within(HANG, || disk.world.leftovers().is_empty()), "{key}");
        disk.nothing_is_left();
    }
}

#[test]
fn a_mount_whose_server_is_killed_goes_with_it() {
    let Some(disk) = Disk::new("a_mount_whose_server_is_killed_goes_with_it") else {
        return;
    };
    let _alone = alone();
    disk.mount(&["--size=64M", "--backing=spill", USER]);
    let keeper = entry(&disk, "keeper_pid");
    signal(disk.pid(), "KILL");
    assert!(within(HANG, || disk.world.leftovers().is_empty()));
    disk.nothing_is_left();
    assert!(!disk.world.path("spill").exists());
    // And where both are, the next command clears as it does with any.
    disk.mount(&["--size=64M", "--backing=spill", USER]);
    assert_ne!(entry(&disk, "keeper_pid"), keeper);
    let (server, keeper) = (disk.pid(), entry(&disk, "keeper_pid"));
    let both = [server.to_string(), keeper.to_string()];
    let killed = Command::new("kill").arg("-KILL").args(both).status();
    assert!(killed.unwrap().success());
    assert!(within(HANG, || entry(&disk, "alive") == false));
    disk.world.ok(&["umount", "mnt"]);
    disk.nothing_is_left();
    assert!(!disk.world.path("spill").exists());
}

#[test]
fn a_device_of_another_user_is_attached_and_detached() {
    if !can_mount("a_device_of_another_user_is_attached_and_detached") {
        return;
    }
    let _alone = alone();
    for end in [&["detach", "vm"][..], &["stop", "--force", "vm"]] {
        let world = World::new();
        world.dir("fuse");
        let mut server = world.serve(&["vm", "--size=8M", "--fuse=fuse", USER]);
        let device = world.ok(&["attach", "vm"]);
        let device = device.trim();
        let of = format!("of={device}");
        tool(
            "dd",
            &["if=/dev/urandom", &of, "bs=1M", "count=8", "conv=fsync"],
        );
        let line = world.refused(1, &["stop", "vm"]);
        assert!(line.contains("uzram detach"), "{line}");
        world.ok(end);
        assert_eq!(world.loops(), []);
        if end[0] == "detach" {
            world.ok(&["stop", "vm"]);
        }
        assert_eq!(server.ended(HANG), Some(0));
        assert_eq!(world.leftovers(), [""; 0]);
    }
}

/// By a table, with what is on it saved and restored.
#[test]
fn what_a_table_has_another_user_serve_outlives_down() {
    let Some(disk) = Disk::new("what_a_table_has_another_user_serve_outlives_down") else {
        return;
    };
    let _alone = alone();
    let (world, file) = (&disk.world, disk.mnt.join("file"));
    let table = format!(
        "[disk]\nsize = \"64M\"\nuser = \"daemon\"\nmountpoint = \"{}\"\nsave = \"{}\"\n",
        disk.mnt.display(),
        world.path("saved").display(),
    );
    std::fs::write(world.path("uzram.toml"), table).unwrap();
    world.ok(&["up", "uzram.toml"]);
    assert_ne!(entry(&disk, "keeper_pid"), Value::Null);
    std::fs::write(&file, [7; 1 << 20]).unwrap();
    world.ok(&["down", "uzram.toml"]);
    disk.nothing_is_left();
    world.ok(&["up", "uzram.toml"]);
    assert_eq!(std::fs::read(&file).unwrap(), [7; 1 << 20]);
    world.ok(&["down", "uzram.toml"]);
    disk.nothing_is_left();
}
