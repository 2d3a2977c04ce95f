//! `mount`, `umount`, `attach` and `detach` with the kernel's own file systems and loop devices.

mod attach;
mod images;
mod keeper;
mod kills;
mod layers;
mod rootless;
mod sectors;
mod storm;
mod umount;
mod uring;

use std::cell::RefCell;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::{
    HANG, Serve, World, can_mount, ended, eventually, finish, is_pending, one_line, signal,
    waits_handling, within,
};

/// What the contract gives a stop.
const STOP: Duration = Duration::from_secs(5);

/// Runs a tool that must succeed; its stdout.
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A world with a mountpoint and some real files to put there.
struct Disk {
    world: World,
    mnt: PathBuf,
    files: PathBuf,
    /// The loop device of the last mount.
    used: RefCell<String>,
}

impl Disk {
    fn new(test: &str) -> Option<Self> {
        if !can_mount(test) {
            return None;
        }
        let world = World::new();
        let (mnt, files) = (world.dir("mnt"), world.dir("files"));
        // This crate's own sources, and a program of some megabytes.
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        tool("cp", &["-r", sources, text(&files)]);
        tool("cp", &[env!("CARGO_BIN_EXE_uzram"), text(&files)]);
        Some(Self {
            world,
            mnt,
            files,
            used: RefCell::default(),
        })
    }

    fn mount(&self, options: &[&str]) {
        let mut args = vec!["mount", "--name=disk"];
        args.extend(options);
        args.push("mnt");
        let said = self.world.ok(&args);
        let umount = format!("uzram umount {}\n", self.mnt.display());
        assert!(
            said.lines().count() == 1 && said.ends_with(&umount),
            "{said}"
        );
        *self.used.borrow_mut() = self.device();
        if env::var_os(support::offered::OVER_IO_URING).is_some() {
            assert!(uring::is_served(self.pid()));
        }
    }

    fn fill(&self) {
        tool("cp", &["-r", text(&self.files), text(&self.mnt)]);
    }

    fn compare(&self) {
        let copy = self.mnt.join("files");
        tool("diff", &["-r", text(&self.files), text(&copy)]);
    }

    fn device(&self) -> String {
        let loops = self.world.loops();
        assert_eq!(loops.len(), 1, "{loops:?}");
        loops[0].0.clone()
    }

    fn owner(&self) -> Value {
        let list: Value = serde_json::from_str(&self.world.ok(&["list", "--json"])).unwrap();
        list[0]["pid"].clone()
    }

    fn pid(&self) -> u32 {
        u32::try_from(self.owner().as_u64().unwrap()).unwrap()
    }

    fn kill_9(&self) {
        signal(self.pid(), "KILL");
        // Its threads end one by one, and its lock goes with the last.
        assert!(within(HANG, || self.owner().is_null()));
    }

    /// Nothing mounted, attached, running or lying about; a loop device that was in use to the end
    /// goes when its last user has gone, and shows no more than `/disk` until then.
    fn nothing_is_left(&self) {
        let used = self.used.borrow();
        let file = Path::new("/sys/block")
            .join(used.trim_start_matches("/dev/"))
            .join("loop/backing_file");
        let orphaned = || fs::read_to_string(&file).is_ok_and(|name| name == "/disk\n");
        assert!(within(HANG, || !orphaned()), "{used} is left");
        assert_eq!(self.world.leftovers(), [""; 0]);
        assert!(fs::read_dir(&self.mnt).unwrap().next().is_none());
    }
}

impl Drop for Disk {
    /// A loop device whose mount is gone is not found by its path any more.
    fn drop(&mut self) {
        let used = self.used.borrow();
        let file = Path::new("/sys/block")
            .join(used.trim_start_matches("/dev/"))
            .join("loop/backing_file");
        if fs::read_to_string(file).is_ok_and(|name| name == "/disk\n") {
            let _ = Command::new("losetup").args(["--detach", &used]).status();
        }
    }
}

/// Keeps those who leave a dead file system for a while apart from each other and from those who
/// run mkfs.btrfs, which looks at every mounted loop device and fails over a dead one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn round_trip(fs_type: &str, fsck: &[&str]) {
    let Some(disk) = Disk::new(&format!("round_trip of {fs_type}")) else {
        return;
    };
    let alone = alone();
    disk.mount(&["--size=512M", "--fs", fs_type]);
    drop(alone);
    let device = disk.device();
    let sysfs = Path::new("/sys/block").join(device.trim_start_matches("/dev/"));
    let attribute = |name| {
        fs::read_to_string(sysfs.join(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(attribute("queue/logical_block_size"), "4096");
    assert_eq!(attribute("loop/dio"), "1");
    assert_eq!(
        attribute("queue/scheduler").split(' ').next(),
        Some("[none]")
    );
    let options = tool("findmnt", &["-n", "-o", "FSTYPE,OPTIONS", text(&disk.mnt)]);
    assert!(options.starts_with(fs_type), "{options}");
    assert!(options.contains("discard"), "{options}");

    disk.fill();
    disk.compare();
    tool("umount", &[text(&disk.mnt)]);
    let mut args = fsck[1..].to_vec();
    args.push(&device);
    tool(fsck[0], &args);
    tool("mount", &["-o", "discard", &device, text(&disk.mnt)]);
    disk.compare();

    let pid = disk.pid();
    disk.world.ok(&["umount", text(&disk.mnt)]);
    assert!(is_gone(pid));
    disk.nothing_is_left();
}

#[test]
fn ext4_round_trip() {
    round_trip("ext4", &["fsck.ext4", "-f", "-n"]);
}

#[test]
fn btrfs_round_trip() {
    round_trip("btrfs", &["btrfs", "check", "--force"]);
}

#[test]
fn xfs_round_trip() {
    round_trip("xfs", &["xfs_repair", "-n"]);
}

#[test]
fn a_limit_spills_to_a_file_that_goes_in_the_end() {
    let Some(disk) = Disk::new("a_limit_spills_to_a_file_that_goes_in_the_end") else {
        return;
    };
    let spill = disk.world.path("spill");
    let _alone = alone();
    for end in ["umount", "kill -9"] {
        disk.mount(&["--size=512M", "--mem-limit=8M", "--backing=spill"]);
        disk.fill();
        tool("sync", &["-f", text(&disk.mnt)]);
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        disk.compare();
        let stats = disk.world.ok(&["stat", "disk", "--json"]);
        let stats: Value = serde_json::from_str(&stats).unwrap();
        assert!(stats["written_back_pages"].as_u64().unwrap() > 0, "{stats}");
        assert!(
            stats["mem_used_max"].as_u64().unwrap() <= 8 << 20,
            "{stats}"
        );
        assert!(spill.exists());
        if end == "kill -9" {
            disk.kill_9();
        }
        disk.world.ok(&["umount", "mnt"]);
        assert!(!spill.exists(), "{end}");
        disk.nothing_is_left();
    }
}

#[test]
fn deleted_files_give_their_memory_back() {
    let Some(disk) = Disk::new("deleted_files_give_their_memory_back") else {
        return;
    };
    disk.mount(&["--size=256M"]);
    let stored = || {
        let stats = disk.world.ok(&["stat", "disk", "--json"]);
        let stats: Value = serde_json::from_str(&stats).unwrap();
        stats["orig_data_size"].as_u64().unwrap()
    };
    let empty = stored();
    disk.fill();
    tool("sync", &["-f", text(&disk.mnt)]);
    let full = stored();
    let size = fs::metadata(env!("CARGO_BIN_EXE_uzram")).unwrap().len();
    assert!(full > empty + size / 2, "{empty} {full}");
    fs::remove_dir_all(disk.mnt.join("files")).unwrap();
    tool("sync", &["-f", text(&disk.mnt)]);
    // The discards follow the commit.
    let freed = || stored() < empty + size / 4;
    assert!(within(HANG, freed), "{empty} {full} {}", stored());
    disk.world.ok(&["umount", "mnt"]);
}

#[test]
fn a_file_system_grows_while_it_is_mounted() {
    let Some(disk) = Disk::new("a_file_system_grows_while_it_is_mounted") else {
        return;
    };
    let _alone = alone();
    // ext4 asks for a right to resources that root in a container may not have.
    disk.mount(&["--size=512M", "--fs=btrfs"]);
    disk.fill();
    let blocks = || tool("findmnt", &["-n", "-b", "-o", "SIZE", text(&disk.mnt)]);
    let before: u64 = blocks().trim().parse().unwrap();
    disk.world.ok(&["set", "disk", "disksize=2G"]);
    assert_eq!(
        tool("blockdev", &["--getsize64", &disk.device()]),
        "2147483648\n"
    );
    tool("btrfs", &["filesystem", "resize", "max", text(&disk.mnt)]);
    let after: u64 = blocks().trim().parse().unwrap();
    assert!(after > before * 3, "{before} {after}");
    let more = disk.mnt.join("more");
    tool("cp", &["-r", text(&disk.files), text(&more)]);
    tool("sync", &["-f", text(&disk.mnt)]);
    disk.compare();
    tool("diff", &["-r", text(&disk.files), text(&more)]);
    let line = disk.world.refused(1, &["set", "disk", "disksize=512M"]);
    assert!(line.contains("in use"), "{line}");
    tool("umount", &[text(&disk.mnt)]);
    tool("btrfs", &["check", "--force", &disk.device()]);
    tool("mount", &[&disk.device(), text(&disk.mnt)]);
    disk.world.ok(&["umount", "mnt"]);
    disk.nothing_is_left();
}

#[test]
fn a_file_system_is_saved_and_mounted_again() {
    let Some(disk) = Disk::new("a_file_system_is_saved_and_mounted_again") else {
        return;
    };
    let _alone = alone();
    disk.mount(&["--size=512M", "--fs=xfs"]);
    disk.fill();
    let line = disk.world.refused(1, &["stop", "disk", "--save=early"]);
    let hint = format!("uzram umount --save early {} ", disk.mnt.display());
    assert!(line.contains(&hint), "{line}");
    for (target, words) in [
        ("missing/image", "/missing: No such file"),
        ("mnt", "not a regular file"),
        ("mnt/image", "is unmounted first"),
    ] {
        let line = disk.world.refused(1, &["umount", "mnt", "--save", target]);
        assert!(line.contains(words), "{line}");
        disk.compare();
    }
    let said = disk.world.ok(&["umount", "mnt", "--save", "image"]);
    assert!(said.ends_with(" in image\n"), "{said}");
    disk.nothing_is_left();
    disk.mount(&["--restore=image"]);
    disk.compare();
    // As it is now, with files on it that are on their way.
    disk.fill();
    disk.world.ok(&["save", "disk", "image"]);
    disk.world.ok(&["umount", "mnt"]);
    disk.mount(&["--restore=image", "--size=1G", "--backing=spill"]);
    // Refused by the server, which is asked when nothing is mounted any more.
    let line = disk.world.refused(1, &["umount", "mnt", "--save", "spill"]);
    let state = "is unmounted, and disk still served with all its data: uzram umount --save OTHER ";
    assert!(
        line.contains("is the backing") && line.contains(state),
        "{line}"
    );
    disk.world.ok(&["umount", "mnt", "--save", "image"]);
    disk.nothing_is_left();
}

/// The server is held still, so that the signal comes before the end.
#[test]
fn a_device_that_is_being_taken_down_is_down_after_ctrl_c() {
    let Some(disk) = Disk::new("a_device_that_is_being_taken_down_is_down_after_ctrl_c") else {
        return;
    };
    disk.mount(&["--size=512M"]);
    disk.fill();
    let pid = disk.pid();
    signal(pid, "STOP");
    let mut umount = disk.world.command(&["umount", "mnt"]).spawn().unwrap();
    eventually("begun", || waits_handling(umount.id(), Signal::INT));
    signal(umount.id(), "INT");
    eventually("taken", || !is_pending(umount.id(), Signal::INT));
    signal(pid, "CONT");
    let status = ended(&mut umount, HANG).unwrap();
    let said = std::io::read_to_string(umount.stderr.unwrap()).unwrap();
    assert_eq!(said, "uzram: interrupted, but disk was down by then\n");
    assert_eq!(status.code(), Some(1));
    disk.nothing_is_left();
}

#[test]
fn a_busy_file_system_stays_whole() {
    let Some(disk) = Disk::new("a_busy_file_system_stays_whole") else {
        return;
    };
    disk.mount(&["--size=256M"]);
    disk.fill();
    let open = fs::File::open(disk.mnt.join("files")).unwrap();
    let line = disk.world.refused(1, &["umount", "mnt"]);
    assert!(line.contains("fuser -vm"), "{line}");
    disk.compare();
    let line = disk.world.refused(1, &["stop", "disk"]);
    assert!(line.contains("uzram umount"), "{line}");
    let line = disk.world.refused(1, &["reset", "disk"]);
    assert!(line.contains("uzram umount"), "{line}");
    let line = disk.world.refused(1, &["detach", "disk"]);
    assert!(line.contains("uzram umount"), "{line}");
    let line = disk.world.refused(1, &["mount", "--size=1G", "mnt"]);
    assert!(line.contains("already"), "{line}");
    disk.compare();
    drop(open);
    disk.world.ok(&["umount", "mnt"]);
    disk.nothing_is_left();
}

#[test]
fn sigterm_to_the_server_of_a_busy_file_system() {
    let Some(disk) = Disk::new("sigterm_to_the_server_of_a_busy_file_system") else {
        return;
    };
    let _alone = alone();
    disk.mount(&["--size=512M"]);
    // A directory that goes with the mount: what the writer starts later fails.
    let within_mount = disk.world.dir("mnt/busy");
    let script = format!(
        "while cp -r {0} {1}/$((n+=1)); do :; done",
        text(&disk.files),
        text(&within_mount)
    );
    let mut writer = Command::new("sh")
        .args(["-c", &script])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("written to", || within_mount.join("1").exists());
    let pid = disk.pid();
    signal(pid, "TERM");
    assert!(within(STOP, || is_gone(pid)), "the server goes on");
    assert_eq!(disk.world.mounts(), [""; 0]);
    let _ = writer.kill();
    ended(&mut writer, HANG).expect("the writer ends");
    assert!(within(HANG, || disk.world.loops().is_empty()));
    disk.nothing_is_left();
}

/// Ended, if perhaps not yet collected by whatever is process 1 here.
fn is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[test]
fn mountpoints_that_will_not_do() {
    let Some(disk) = Disk::new("mountpoints_that_will_not_do") else {
        return;
    };
    fs::write(disk.world.path("file"), "").unwrap();
    for (mountpoint, says) in [
        ("missing", "mkdir"),
        ("file", "not a directory"),
        ("files", "not empty"),
        ("/proc", "already"),
    ] {
        let line = disk.world.refused(1, &["mount", "--size=64M", mountpoint]);
        assert!(line.contains(says), "{line}");
    }
    for (mountpoint, says) in [("mnt", "nothing is mounted"), ("/proc", "umount(8)")] {
        let line = disk.world.refused(1, &["umount", mountpoint]);
        assert!(line.contains(says), "{line}");
    }
    disk.nothing_is_left();
}

#[test]
fn a_failing_step_undoes_the_others() {
    let Some(disk) = Disk::new("a_failing_step_undoes_the_others") else {
        return;
    };
    for (tool, says) in [
        ("mkfs.ext4", "no more"),
        ("mount", "no more"),
        ("losetup", "no more"),
    ] {
        let bin = fake_tool(
            &disk.world,
            tool,
            "echo >&2; echo no more >&2; echo Usage: >&2; exit 1",
        );
        let args = ["mount", "--size=64M", "mnt"];
        let output = finish(disk.world.command(&args).env("PATH", &bin));
        let line = one_line(&output, 1, &args);
        assert!(line.contains(says), "{tool}: {line}");
        fs::remove_dir_all(&bin).unwrap();
        disk.nothing_is_left();
    }
    // The server's own refusal is passed on.
    let _taken = disk.world.serve(&["disk", "--size=1M"]);
    let line = disk
        .world
        .refused(1, &["mount", "--name=disk", "--size=64M", "mnt"]);
    assert!(line.contains("already being served"), "{line}");
    assert!(line.contains("--name"), "{line}");
}

#[test]
fn an_interrupt_undoes_everything() {
    let Some(disk) = Disk::new("an_interrupt_undoes_everything") else {
        return;
    };
    let started = disk.world.path("started");
    // What a terminal's Ctrl-C does to the tool, too.
    let script = format!("touch {}; sleep 1; kill -INT $$", started.display());
    let bin = fake_tool(&disk.world, "mkfs.ext4", &script);
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap());
    let args = ["mount", "--size=64M", "mnt"];
    let child = disk.world.command(&args).env("PATH", path).spawn().unwrap();
    eventually("started", || started.exists());
    signal(child.id(), "INT");
    let output = child.wait_with_output().unwrap();
    let line = one_line(&output, 1, &args);
    assert!(line.contains("interrupted, everything"), "{line}");
    fs::remove_dir_all(bin).unwrap();
    disk.nothing_is_left();
}

#[test]
fn what_hangs_does_not_hold_up_a_stop() {
    if !can_mount("what_hangs_does_not_hold_up_a_stop") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    let bin = fake_tool(&world, "losetup", "exec sleep 8");
    let args = [
        "serve",
        "stuck",
        "--size=8M",
        "--fuse=fuse",
        "--nbd=unix:sock",
    ];
    let mut command = world.command(&args);
    let mut server = Serve::start(command.env("PATH", bin));
    let device = world.ok(&["attach", "stuck"]);
    signal(server.pid(), "TERM");
    let code = server.ended(STOP);
    tool("losetup", &["--detach", device.trim()]);
    assert_eq!(code, Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!world.path("sock").exists());
}

/// A directory for PATH in which `name` is a shell script.
fn fake_tool(world: &World, name: &str, script: &str) -> PathBuf {
    let bin = world.dir("bin");
    let tool = bin.join(name);
    fs::write(&tool, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    bin
}
