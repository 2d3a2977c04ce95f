//! Devices that would spill or be saved to themselves, at any depth.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::{alone, text, tool};
use support::{HANG, World, can_mount, finish, within};

/// Bytes that are there, also once all others have been spilled.
fn holds(path: &Path, bytes: &[u8]) {
    assert!(fs::read(path).unwrap() == bytes);
}

fn is_refused(world: &World, args: &[&str], on: &str) {
    let line = world.refused(1, args);
    assert!(line.contains(&format!("lies on {on} itself")), "{line}");
}

/// A loop device over a file, gone with this.
struct Loop(String);

impl Loop {
    fn over(file: &Path) -> Self {
        File::create(file).unwrap().set_len(8 << 20).unwrap();
        let device = tool("losetup", &["--find", "--show", text(file)]);
        Self(device.trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
        // What looks at it, udev say, keeps it for a while.
        let bound = Path::new("/sys/block").join(self.0.trim_start_matches("/dev/"));
        within(HANG, || !bound.join("loop/backing_file").exists());
    }
}

/// Mounts an overlay at `over`, which writes to directories in `mnt`; says loudly if the kernel has none.
fn overlay(world: &World) -> bool {
    let kinds = fs::read_to_string("/proc/filesystems").unwrap();
    if !kinds.lines().any(|kind| kind.ends_with("\toverlay")) {
        eprintln!("SKIPPED: the kernel has no overlay");
        return false;
    }
    let (mnt, lower, over) = (world.path("mnt"), world.dir("lower"), world.dir("over"));
    let (upper, work) = (mnt.join("upper"), mnt.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let [lower, upper, work] = [&lower, &upper, &work].map(|dir| text(dir));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    tool(
        "mount",
        &["-t", "overlay", "overlay", "-o", &options, text(&over)],
    );
    true
}

#[test]
fn a_device_neither_spills_nor_saves_to_itself() {
    if !can_mount("a_device_neither_spills_nor_saves_to_itself") {
        return;
    }
    // A btrfs has a device number of its own.
    for fs in ["--fs=ext4", "--fs=btrfs"] {
        let world = World::new();
        let mnt = world.dir("mnt");
        let alone = alone();
        world.ok(&["mount", "--name=n", "--size=128M", fs, "mnt"]);
        drop(alone);
        let bytes = vec![7; 100_000];
        fs::write(mnt.join("file"), &bytes).unwrap();
        std::os::unix::fs::symlink(&mnt, world.path("link")).unwrap();
        let disk = Loop::over(&mnt.join("disk"));
        let on_loop = format!("backing_dev={}", disk.0);
        for place in ["backing_dev=mnt/s", "backing_dev=link/s", &on_loop] {
            is_refused(&world, &["set", "n", place], "n");
        }
        if overlay(&world) {
            is_refused(&world, &["set", "n", "backing_dev=over/s"], "n");
            tool("umount", &[text(&world.path("over"))]);
        }
        is_refused(&world, &["save", "n", "mnt/image"], "n");
        assert!(!mnt.join("s").exists() && !mnt.join("image").exists());
        // Its own file of the attribute, which is served by who would have to look.
        let attribute = world.rundir().join("n/fuse/backing_dev");
        let echo = format!("echo {} >{}", mnt.join("s").display(), attribute.display());
        let output = finish(
            Command::new("sh")
                .args(["-c", &echo])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped()),
        );
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(world.ok(&["stat", "n", "backing_dev"]), "none\n");
        holds(&mnt.join("file"), &bytes);
        drop(disk);
        world.ok(&["set", "n", "backing_dev=s"]);
        world.ok(&["umount", "mnt"]);
        assert_eq!(world.leftovers(), [""; 0]);
    }
}

#[test]
fn devices_do_not_back_each_other() {
    if !can_mount("devices_do_not_back_each_other") {
        return;
    }
    let world = World::new();
    let (a, b) = (world.dir("a"), world.dir("b"));
    world.ok(&["mount", "--name=one", "--size=64M", "a"]);
    world.ok(&[
        "mount",
        "--name=two",
        "--size=64M",
        "--backing=a/spill",
        "b",
    ]);
    fs::write(b.join("file"), [7; 5000]).unwrap();
    is_refused(&world, &["set", "one", "backing_dev=b/s"], "one");
    let line = world.refused(1, &["save", "one", "b/image"]);
    assert!(line.contains("by way of") && line.contains("two"), "{line}");
    // The other way round once that is over.
    world.ok(&["set", "two", "backing_dev=none"]);
    world.ok(&["set", "one", "backing_dev=b/s"]);
    is_refused(&world, &["set", "two", "backing_dev=a/s"], "two");
    holds(&b.join("file"), &[7; 5000]);
    assert!(!a.join("s").exists());
    world.ok(&["umount", "a"]);
    world.ok(&["umount", "b"]);
    assert_eq!(world.leftovers(), [""; 0]);
}
