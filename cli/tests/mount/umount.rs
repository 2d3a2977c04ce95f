//! Taking down what is there: only what was made by us, and all of it, whoever made the rest.

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::{Disk, alone, text, tool, within};
use support::is_saving;
use support::{HANG, World, can_mount, ended, signal};

#[test]
fn umount_leaves_what_mount_did_not_make() {
    if !can_mount("umount_leaves_what_mount_did_not_make") {
        return;
    }
    let world = World::new();
    let (fuse, mnt) = (world.dir("fuse"), world.dir("mnt"));
    let mut server = world.serve(&["own", "--size=64M", "--fuse=fuse"]);
    let line = world.refused(1, &["umount", "fuse"]);
    assert!(line.contains("uzram stop own"), "{line}");
    let device = world.ok(&["attach", "own"]);
    let device = device.trim();
    tool("mkfs.ext4", &["-q", device]);
    tool("mount", &[device, text(&mnt)]);
    let by_hand = format!("umount {}", mnt.display());
    for args in [
        &["umount", "mnt"][..],
        &["detach", "own"],
        &["stop", "own"],
        &["reset", "own"],
    ] {
        let line = world.refused(1, args);
        assert!(line.contains(&by_hand), "{args:?}: {line}");
        assert!(!line.contains("uzram umount"), "{args:?}: {line}");
    }
    assert!(mnt.join("lost+found").exists());
    assert!(fuse.join("disk").exists());
    tool("umount", &[text(&mnt)]);
    world.ok(&["detach", "own"]);
    world.ok(&["stop", "own"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn umount_finishes_what_umount_8_began() {
    let Some(disk) = Disk::new("umount_finishes_what_umount_8_began") else {
        return;
    };
    let elsewhere = disk.world.dir("elsewhere");
    disk.mount(&["--size=64M"]);
    tool("mount", &["--move", text(&disk.mnt), text(&elsewhere)]);
    for mountpoint in ["mnt", "elsewhere"] {
        let line = disk.world.refused(1, &["umount", mountpoint]);
        let by_hand = format!(" umount {}", elsewhere.display());
        assert!(line.contains(&by_hand), "{line}");
    }
    tool("umount", &[text(&elsewhere)]);
    disk.world.ok(&["umount", "mnt"]);
    disk.nothing_is_left();
    let line = disk.world.refused(1, &["umount", "mnt"]);
    assert!(line.contains("nothing is mounted"), "{line}");
    assert!(Path::new(disk.used.borrow().as_str()).exists());
}

/// The mountpoint's file system and the loop devices over a FUSE directory whose server was
/// killed, and the same of the server that took its place.
#[test]
fn a_dead_server_takes_nothing_of_a_living_one() {
    if !can_mount("a_dead_server_takes_nothing_of_a_living_one") {
        return;
    }
    let world = World::new();
    let (_, mnt) = (world.dir("fuse"), world.dir("mnt"));
    let serve = |name| world.serve(&[name, "--size=64M", "--fuse=fuse"]);

    // While the dead one's record is there, by a start that died before it was cleared.
    let mut dead = serve("dead");
    let record = fs::read(world.rundir().join("dead/record")).unwrap();
    let orphan = world.ok(&["attach", "dead"]);
    dead.kill_9();
    let _live = serve("live");
    let gone = || {
        !Path::new("/sys/block")
            .join(&orphan.trim()[5..])
            .join("loop")
            .exists()
    };
    assert!(within(HANG, gone), "{orphan} is left");
    assert!(!world.rundir().join("dead").exists());
    let made = fs::DirBuilder::new()
        .mode(0o1700)
        .create(world.rundir().join("dead"));
    made.unwrap();
    fs::write(world.rundir().join("dead/record"), record).unwrap();

    let device = world.ok(&["attach", "live"]);
    let device = device.trim();
    tool("mkfs.ext4", &["-q", device]);
    tool("mount", &[device, text(&mnt)]);
    let _busy = fs::File::open(mnt.join("lost+found")).unwrap();
    let line = world.refused(1, &["umount", "mnt"]);
    assert!(line.contains("uzram detach live"), "{line}");
    world.ok(&["detach", "dead"]);
    assert!(!world.rundir().join("dead").exists());
    assert_eq!(world.loops().len(), 1);
    assert!(mnt.join("lost+found").exists());
    assert!(world.path("fuse/disk").exists());
    let list = world.ok(&["list"]);
    assert!(list.contains(text(&mnt)), "{list}");
}

#[test]
fn umount_after_kill_9() {
    let _alone = alone();
    for (fs_type, busy) in [
        ("ext4", false),
        ("ext4", true),
        ("btrfs", false),
        ("xfs", false),
    ] {
        let Some(disk) = Disk::new("umount_after_kill_9") else {
            return;
        };
        disk.mount(&["--size=512M", "--fs", fs_type]);
        disk.fill();
        let open = busy.then(|| fs::File::open(disk.mnt.join("files")).unwrap());
        disk.kill_9();
        let line = disk.world.refused(1, &["stat", "disk"]);
        assert!(!line.is_empty());
        disk.world.ok(&["umount", "mnt"]);
        drop(open);
        // The kernel lets go of a busy loop device a moment after its last user does.
        assert!(within(HANG, || disk.world.loops().is_empty()));
        disk.nothing_is_left();
    }
}

/// The server is held still while it writes the image, so that the save cannot end before the kill.
#[test]
fn a_server_that_is_killed_in_its_last_save_is_not_said_to_be_served() {
    let Some(disk) = Disk::new("a kill in the last save") else {
        return;
    };
    let images = disk.world.dir("images");
    let left = || fs::read_dir(&images).unwrap().count();
    let mut tries = 0..50;
    loop {
        tries.next().expect("each save ends before the kill");
        disk.mount(&["--size=256M"]);
        disk.fill();
        let pid = disk.pid();
        let mut umount = disk
            .world
            .command(&["umount", "--save=images/image", "mnt"]);
        let mut umount = umount.spawn().unwrap();
        let begun = Instant::now();
        while !is_saving(pid, &images) && left() == 0 && begun.elapsed() < HANG {}
        signal(pid, "STOP");
        signal(pid, "KILL");
        assert_eq!(ended(&mut umount, HANG).unwrap().code(), Some(1));
        let mut said = String::new();
        umount.stderr.unwrap().read_to_string(&mut said).unwrap();
        let clear = format!(
            "; clear what it left with: uzram umount {}\n",
            text(&disk.mnt)
        );
        assert!(
            said.ends_with(&clear) && !said.contains("still served"),
            "{said}"
        );
        disk.world.ok(&["umount", "mnt"]);
        disk.nothing_is_left();
        if said.contains("what was on disk is lost, and nothing was saved") {
            break;
        }
        fs::remove_file(images.join("image")).unwrap();
    }
    assert_eq!(left(), 0);
}

#[test]
fn serving_a_killed_name_anew_clears_its_file_system() {
    let _alone = alone();
    for busy in [false, true] {
        let Some(disk) = Disk::new("serving_a_killed_name_anew_clears_its_file_system") else {
            return;
        };
        disk.mount(&["--size=256M"]);
        disk.fill();
        let open = busy.then(|| fs::File::open(disk.mnt.join("files")).unwrap());
        disk.kill_9();
        let line = disk.world.refused(1, &["stat", "disk"]);
        let says = format!("uzram umount {}", disk.mnt.display());
        assert!(line.contains(&says), "{line}");
        let mut server = disk.world.serve(&["disk", "--size=1M"]);
        assert_eq!(disk.world.mounts(), [""; 0]);
        drop(open);
        disk.world.ok(&["stop", "disk"]);
        assert_eq!(server.ended(HANG), Some(0));
        disk.nothing_is_left();
    }
}

#[test]
fn detach_clears_the_file_system_of_a_killed_server() {
    let Some(disk) = Disk::new("detach_clears_the_file_system_of_a_killed_server") else {
        return;
    };
    let _alone = alone();
    disk.mount(&["--size=64M"]);
    disk.kill_9();
    // As if by hand: now only the mountpoint leads to the loop device.
    tool(
        "umount",
        &["--lazy", text(&disk.world.rundir().join("disk/fuse"))],
    );
    disk.world.ok(&["detach", "disk"]);
    disk.nothing_is_left();
}

#[test]
fn stopping_a_frozen_server_by_force_leaves_nothing() {
    let Some(disk) = Disk::new("stopping_a_frozen_server_by_force_leaves_nothing") else {
        return;
    };
    let _alone = alone();
    disk.mount(&["--size=64M"]);
    signal(disk.pid(), "STOP");
    disk.world.ok(&["stop", "--force", "disk"]);
    disk.nothing_is_left();
}

#[test]
fn what_is_swap_or_below_another_device_stays_attached() {
    if !can_mount("what_is_swap_or_below_another_device_stays_attached") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    let _server = world.serve(&["swap", "--size=16M", "--fuse=fuse"]);
    let device = world.ok(&["attach", "swap"]);
    let device = device.trim();
    tool("mkswap", &[device]);
    if !Command::new("swapon")
        .arg(device)
        .status()
        .unwrap()
        .success()
    {
        eprintln!("SKIPPED: no swap here");
        return;
    }
    let swap = SwapOff(device);
    for verb in ["detach", "stop", "reset"] {
        let line = world.refused(1, &[verb, "swap"]);
        assert!(line.contains(&format!("swapoff {device}")), "{line}");
    }
    drop(swap);
    world.ok(&["detach", "swap"]);
    assert_eq!(world.loops(), []);
}

struct SwapOff<'a>(&'a str);

impl Drop for SwapOff<'_> {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(self.0).status();
    }
}

#[test]
fn mountpoints_that_look_alike_get_names_of_their_own() {
    let Some(disk) = Disk::new("mountpoints_that_look_alike_get_names_of_their_own") else {
        return;
    };
    let world = &disk.world;
    world.dir("x");
    for mountpoint in ["x/y", "x-y"] {
        world.dir(mountpoint);
        world.ok(&["mount", "--size=1M", mountpoint]);
    }
    assert_eq!(world.ok(&["list"]).lines().count(), 3);
    for mountpoint in ["x/y", "x-y"] {
        world.ok(&["umount", mountpoint]);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}
