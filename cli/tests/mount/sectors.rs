//! File systems that came to be on disks with sectors of 512 bytes.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::{alone, text, tool};
use support::{World, can_mount};

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

/// The bytes that each partition of a block device starts at, as its sectors have it.
fn partition_starts(device: &str) -> Vec<u64> {
    let args = ["--show", "--noheadings", "--output=START", device.trim()];
    // In units of 512 bytes whatever the sectors are.
    let start = |line: &str| line.trim().parse::<u64>().unwrap() * 512;
    tool("partx", &args).lines().map(start).collect()
}

#[test]
fn a_partition_table_is_found_again_at_the_next_attach() {
    if !can_mount("a_partition_table_is_found_again_at_the_next_attach") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    let start = |more: &[&str]| world.serve(&[&["vm", "--fuse=fuse"], more].concat());
    // From its 256th sector on, which is 1 MiB in or, of small sectors, an eighth of that.
    let mut mbr = [0; 512];
    mbr[450] = 0x83;
    mbr[454..458].copy_from_slice(&256_u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&1024_u32.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);

    let server = start(&["--size=16M"]);
    let device = world.ok(&["attach", "vm"]);
    assert_eq!(sector_size(&device), "4096");
    fs::write(device.trim(), mbr).unwrap();
    assert_eq!(partition_starts(&device), [1 << 20]);
    world.ok(&["detach", "vm"]);
    let device = world.ok(&["attach", "vm"]);
    assert_eq!(sector_size(&device), "4096");
    assert_eq!(partition_starts(&device), [1 << 20]);
    world.ok(&["detach", "vm"]);

    // A saved image remembers it, and what was asked for goes before what was.
    world.ok(&["save", "vm", "saved"]);
    world.ok(&["stop", "vm"]);
    drop(server);
    let server = start(&["--restore=saved"]);
    let device = world.ok(&["attach", "vm"]);
    assert_eq!(partition_starts(&device), [1 << 20]);
    world.ok(&["detach", "vm"]);
    let device = world.ok(&["attach", "vm", "--sector-size=512"]);
    assert_eq!(sector_size(&device), "512");
    assert_eq!(partition_starts(&device), [128 << 10]);
    world.ok(&["detach", "vm"]);
    world.refused(2, &["attach", "vm", "--sector-size=1024"]);
    world.ok(&["stop", "vm"]);
    drop(server);

    // A guest's, of which nothing is remembered: the header says it.
    for (bytes, sectors) in [(512_u64, "512"), (4096, "4096")] {
        let disk = File::create(world.path("disk")).unwrap();
        disk.set_len(16 << 20).unwrap();
        let mut header = [0; 32];
        header[..8].copy_from_slice(b"EFI PART");
        header[24] = 1;
        disk.write_all_at(&mbr, 0).unwrap();
        disk.write_all_at(&header, bytes).unwrap();
        let server = start(&["--origin=disk"]);
        let device = world.ok(&["attach", "vm"]);
        assert_eq!(sector_size(&device), sectors);
        world.ok(&["detach", "vm"]);
        world.ok(&["stop", "vm"]);
        drop(server);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_nobody_can_tell_gets_small_sectors() {
    if !can_mount("what_nobody_can_tell_gets_small_sectors") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    let luks = [b"LUKS\xba\xbe\0\x01".as_slice(), &[0; 584]].concat();
    // XFS with the mark of an ISO image: what blkid(8) finds ambivalent.
    image(&world, 300, &["mkfs.xfs", "-q", "-ssize=512"]);
    let xfs = File::options()
        .write(true)
        .open(world.path("image"))
        .unwrap();
    xfs.write_all_at(b"\x01CD001\x01\0", 32 << 10).unwrap();
    let attached = |options: &[&str]| {
        let server = world.serve(&[&["vm", "--fuse=fuse"], options].concat());
        let device = world.ok(&["attach", "vm"]);
        let found = sector_size(&device);
        world.ok(&["detach", "vm"]);
        world.ok(&["stop", "vm"]);
        drop(server);
        found
    };
    assert_eq!(attached(&["--origin=image", "--snapshot"]), "512");
    let line = {
        world.dir("mnt");
        world.refused(1, &["mount", "--origin=image", "--snapshot", "mnt"])
    };
    assert!(line.contains("wipefs"), "{line}");
    let disk = File::create(world.path("image")).unwrap();
    disk.set_len(8 << 20).unwrap();
    assert_eq!(attached(&["--origin=image"]), "4096");
    disk.write_all_at(&luks, 0).unwrap();
    assert_eq!(attached(&["--origin=image"]), "512");
    assert_eq!(attached(&["--size=8M"]), "4096");
    assert_eq!(world.leftovers(), [""; 0]);
}
