//! File systems that are on an image: what they take of mount's options, and copies of one another.

use std::fs::{self, File};

use crate::{alone, text, tool};
use support::{World, can_mount};

/// How the world's `mnt` is mounted: type and options.
fn mounted(world: &World, dir: &str) -> (String, String) {
    let at = world.path(dir);
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(1) == at.to_str());
    let fields: Vec<_> = line.expect("it is mounted").split(' ').collect();
    (fields[2].to_owned(), fields[3].to_owned())
}

/// Whether the kernel takes no writes to a block device.
fn is_read_only(device: &str) -> bool {
    let name = device.trim().trim_start_matches("/dev/");
    fs::read_to_string(format!("/sys/block/{name}/ro")).unwrap() == "1\n"
}

fn has(options: &str, option: &str) -> bool {
    options.split(',').any(|it| it == option)
}

#[test]
fn a_file_system_without_discard_is_mounted_from_its_image() {
    if !can_mount("a_file_system_without_discard_is_mounted_from_its_image") {
        return;
    }
    let world = World::new();
    let tree = world.dir("tree");
    world.dir("mnt");
    fs::write(tree.join("file"), vec![7; 100_000]).unwrap();
    let (squashfs, erofs) = (world.path("squashfs"), world.path("erofs"));
    tool(
        "mksquashfs",
        &[text(&tree), text(&squashfs), "-quiet", "-no-progress"],
    );
    tool("mkfs.erofs", &[text(&erofs), text(&tree)]);
    // Not of whole pages: only a part of the last one is there.
    let file = File::options().append(true).open(&squashfs).unwrap();
    file.set_len(file.metadata().unwrap().len().next_multiple_of(4096) + 512)
        .unwrap();
    for fs_type in ["squashfs", "erofs"] {
        for option in ["--snapshot", "--read-only"] {
            let origin = format!("--origin={fs_type}");
            world.ok(&["mount", &origin, option, "mnt"]);
            assert_eq!(mounted(&world, "mnt").0, fs_type);
            assert!(fs::read(world.path("mnt/file")).unwrap() == vec![7; 100_000]);
            world.ok(&["umount", "mnt"]);
        }
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_read_only_device_is_mounted_read_only() {
    if !can_mount("a_read_only_device_is_mounted_read_only") {
        return;
    }
    let world = World::new();
    world.dir("mnt");
    let line = world.refused(2, &["mount", "--size=64M", "--read-only", "mnt"]);
    assert!(line.contains("--origin or --restore"), "{line}");
    let image = world.path("image");
    File::create(&image).unwrap().set_len(32 << 20).unwrap();
    tool("mkfs.ext4", &["-q", text(&image)]);
    let before = fs::read(&image).unwrap();
    world.ok(&["mount", "--origin=image", "--read-only", "mnt"]);
    let (_, options) = mounted(&world, "mnt");
    assert!(
        has(&options, "ro") && !has(&options, "discard"),
        "{options}"
    );
    assert!(fs::write(world.path("mnt/file"), "x").is_err());
    let device = world.loops()[0].0.clone();
    assert!(is_read_only(&device), "{device}");
    world.ok(&["umount", "mnt"]);
    assert!(fs::read(&image).unwrap() == before);

    world.ok(&["mount", "--origin=image", "--snapshot", "mnt"]);
    let (_, options) = mounted(&world, "mnt");
    assert!(has(&options, "rw") && has(&options, "discard"), "{options}");
    world.ok(&["umount", "mnt"]);

    world.dir("fuse");
    let _server = world.serve(&["x", "--origin=image", "--read-only", "--fuse=fuse"]);
    let device = world.ok(&["attach", "x"]);
    assert!(is_read_only(&device), "{device}");
    world.ok(&["detach", "x"]);
    world.ok(&["stop", "x"]);
    assert!(fs::read(&image).unwrap() == before);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn two_copies_of_one_xfs_are_mounted_beside_each_other() {
    if !can_mount("two_copies_of_one_xfs_are_mounted_beside_each_other") {
        return;
    }
    let world = World::new();
    let (first, second) = (world.dir("first"), world.dir("second"));
    let image = world.path("image");
    File::create(&image).unwrap().set_len(300 << 20).unwrap();
    let _alone = alone();
    tool("mkfs.xfs", &["-q", text(&image)]);
    let mount = |dir| world.ok(&["mount", "--origin=image", "--snapshot", dir]);
    let said = mount("first");
    assert!(!said.contains("nouuid"), "{said}");
    let said = mount("second");
    assert!(said.contains("nouuid"), "{said}");
    assert!(!has(&mounted(&world, "first").1, "nouuid"));
    assert!(has(&mounted(&world, "second").1, "nouuid"));
    fs::write(second.join("file"), "second").unwrap();
    assert!(!first.join("file").exists());
    world.ok(&["umount", "second"]);
    world.ok(&["umount", "first"]);
    assert_eq!(world.leftovers(), [""; 0]);
}
