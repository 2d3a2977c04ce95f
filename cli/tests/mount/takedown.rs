//! Taking down what is there: only what was made by us, and all of it, whoever made the rest.

use std::path::Path;

use crate::common::{HANG, World, can_mount};
use crate::{Disk, text, tool};

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
