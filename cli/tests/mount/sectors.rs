//! File systems that came to be on disks with sectors of 512 bytes.

use std::fs::{self, File};
use std::path::Path;

use crate::common::{World, can_mount};
use crate::{alone, text, tool};

/// An image with a file system made by `mkfs`.
fn image(world: &World, mib: u64, mkfs: &[&str]) {
    let image = world.path("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    let args: Vec<_> = mkfs[1..].iter().copied().chain([text(&image)]).collect();
    tool(mkfs[0], &args);
}

fn sector_size(device: &str) -> String {
    let device = device.trim().trim_start_matches("/dev/");
    let sysfs = Path::new("/sys/block").join(device);
    let shown = |name| fs::read_to_string(sysfs.join(name)).unwrap();
    assert_eq!(shown("loop/dio"), "1\n");
    shown("queue/logical_block_size").trim().to_owned()
}

/// Mounts the image, writes there, and finds it again in an image that is in order.
fn round_trip(world: &World, sectors: &str, fsck: &[&str]) {
    let mnt = world.path("mnt");
    world.ok(&["mount", "--origin=image", "mnt"]);
    assert_eq!(sector_size(&world.loops()[0].0), sectors);
    let line = world.refused(1, &["umount", "mnt", "--save=saved"]);
    assert!(line.contains("its --origin"), "{line}");
    fs::write(mnt.join("file"), vec![7; 100_000]).unwrap();
    world.ok(&["umount", "mnt"]);
    let image = world.path("image");
    let args: Vec<_> = fsck[1..].iter().copied().chain([text(&image)]).collect();
    tool(fsck[0], &args);
    world.ok(&["mount", "--origin=image", "--snapshot", "mnt"]);
    assert!(fs::read(mnt.join("file")).unwrap() == vec![7; 100_000]);
    world.ok(&["umount", "mnt"]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_file_system_of_small_blocks_is_mounted_from_its_image() {
    if !can_mount("a_file_system_of_small_blocks_is_mounted_from_its_image") {
        return;
    }
    let world = World::new();
    world.dir("mnt");
    world.dir("fuse");
    let ext4_check = ["fsck.ext4", "-f", "-n"];
    image(&world, 32, &["mkfs.ext4", "-q", "-b1024"]);
    round_trip(&world, "512", &ext4_check);

    let _server = world.serve(&["vm", "--origin=image", "--snapshot", "--fuse=fuse"]);
    let device = world.ok(&["attach", "vm"]);
    assert_eq!(sector_size(&device), "512");
    world.ok(&["detach", "vm"]);
    world.ok(&["stop", "vm"]);

    image(&world, 32, &["mkfs.ext4", "-q", "-b4096"]);
    round_trip(&world, "4096", &ext4_check);

    let _alone = alone();
    // As it is on a file.
    image(&world, 300, &["mkfs.xfs", "-q", "-ssize=512"]);
    round_trip(&world, "512", &["xfs_repair", "-n"]);
}

#[test]
fn what_mount_does_not_mount_is_named() {
    if !can_mount("what_mount_does_not_mount_is_named") {
        return;
    }
    let world = World::new();
    world.dir("mnt");
    let mut disk = vec![0; 1 << 20];
    let refused = |disk: &[u8], words| {
        fs::write(world.path("image"), disk).unwrap();
        let line = world.refused(1, &["mount", "--origin=image", "mnt"]);
        assert!(line.contains("/image: ") && line.contains(words), "{line}");
        assert!(!line.contains("/dev/loop"), "{line}");
    };
    refused(&disk, "there is no file system on it");
    // A partition of type 83h, from sector 8 on, of 1024 sectors.
    disk[450] = 0x83;
    disk[454] = 8;
    disk[459] = 4;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    refused(&disk, "it has a partition table");
    assert_eq!(world.leftovers(), [""; 0]);
}
