//! File systems on a server that runs as another user.

use std::process::Command;

use serde_json::Value;

use crate::{Disk, alone, tool, within};
use support::{HANG, signal};

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
