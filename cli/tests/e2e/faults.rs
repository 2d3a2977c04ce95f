//! A backing that really fails: a full file system, a limit on the size of files, system calls that
//! fail, a file cut short or replaced. What was acknowledged stays what it was; a write fails only
//! for want of room, and says so; and when the fault is over, the device is well again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::rig::{
    Background, MIB, Scratch, Server, TaggedDisk, run, skip_without_mounts, skipped, stat,
    status_of, tool,
};
use support::{HANG, within};

const ENOSPC: u32 = 28;
/// How long after a fault a device may take to find out that it is over.
const RECOVERY: Duration = Duration::from_secs(20);

/// A server of 64 MiB with memory for 8 that spills to `spill`; the pages come to about 34 MiB
/// compressed.
struct Fixture<'a> {
    scratch: &'a Scratch,
    server: Server,
    disk: TaggedDisk,
}

impl<'a> Fixture<'a> {
    fn new(scratch: &'a Scratch, spill: &Path) -> Self {
        let socket = scratch.path().join("nbd");
        let spill = spill.to_str().expect("text");
        let listen = format!("unix:{}", socket.display());
        let server = Server::start(
            scratch,
            "fault",
            &[
                "--size",
                "64M",
                "--mem-limit",
                "8M",
                "--backing",
                spill,
                "--nbd",
                &listen,
            ],
        );
        let disk = TaggedDisk::connect(&socket, "fault");
        Self {
            scratch,
            server,
            disk,
        }
    }

    fn get(&self, key: &str) -> u64 {
        stat(self.scratch, self.server.name()).get(key)
    }

    /// Writes every page once; none may fail.
    fn fill(&mut self) {
        for page in 0..self.disk.pages() {
            let done = self.disk.write(page);
            assert_eq!(done, Ok(()), "page {page}\n{}", self.server.log());
        }
        assert!(self.get("written_back_pages") > 1000, "little was spilled");
    }

    /// Writes pages until one is refused, which must be for want of room; that page.
    fn write_until_refused(&mut self) -> u32 {
        for page in 0..self.disk.pages() {
            if let Err(errno) = self.disk.write(page) {
                assert_eq!(errno, ENOSPC, "page {page}");
                return page;
            }
        }
        panic!("nothing was refused\n{}", self.server.log());
    }

    /// What was acknowledged is all there, and memory within its limit.
    fn assert_all_readable(&mut self) {
        let unreadable = self.disk.unreadable();
        assert!(
            unreadable.is_empty(),
            "{unreadable:?}\n{}",
            self.server.log()
        );
        assert!(self.get("mem_used_max") <= 8 * MIB);
    }

    /// The fault is over: before long every page can be written, and read.
    fn assert_recovers(&mut self) {
        let well = within(RECOVERY, || self.disk.write(0).is_ok());
        assert!(well, "still refused\n{}", self.server.log());
        self.fill();
        self.assert_all_readable();
    }

    /// The pages that are in memory, as the server tells its clients.
    fn pages_in_memory(&self) -> Vec<u32> {
        let uri = format!("nbd+unix:///fault?socket={}", self.scratch.arg("nbd"));
        let json = run(tool("nbdinfo").args(["--json", "--map=uzram:state", &uri]));
        let map: serde_json::Value = serde_json::from_str(&json).expect("nbdinfo prints JSON");
        let extents = map.as_array().expect("a list of extents");
        let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().expect("integer");
        let resident = extents.iter().filter(|extent| number(extent, "type") == 2);
        resident
            .flat_map(|extent| {
                let first = number(extent, "offset") / 4096;
                first as u32..(first + number(extent, "length") / 4096) as u32
            })
            .collect()
    }
}

/// A small file system in a file, unmounted when this is dropped.
struct TinyFileSystem {
    dir: PathBuf,
}

impl TinyFileSystem {
    fn new(scratch: &Scratch, mib: u64) -> Self {
        let (image, dir) = (scratch.path().join("tiny.img"), scratch.path().join("tiny"));
        File::create(&image)
            .and_then(|file| file.set_len(mib * MIB))
            .expect("an image");
        run(tool("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
        fs::create_dir(&dir).expect("a mountpoint");
        let tiny = Self { dir };
        run(tool("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&tiny.dir));
        tiny
    }
}

impl Drop for TinyFileSystem {
    fn drop(&mut self) {
        // Lazily: a server that a failed test leaves may still hold its backing.
        status_of(tool("umount").arg("-l").arg(&self.dir));
    }
}

#[test]
fn a_full_file_system_gets_space_back() {
    if skip_without_mounts("a backing on a full file system") {
        return;
    }
    let scratch = Scratch::new();
    let tiny = TinyFileSystem::new(&scratch, 128);
    let ballast = tiny.dir.join("ballast");
    run(tool("fallocate").args(["-l", "100M"]).arg(&ballast));
    let mut fixture = Fixture::new(&scratch, &tiny.dir.join("spill"));
    let refused = fixture.write_until_refused();
    assert!(refused > 2048, "refused at page {refused}");
    fixture.assert_all_readable();
    fs::remove_file(&ballast).expect("the ballast goes");
    fixture.assert_recovers();
    assert!(fixture.server.terminate().success());
}

#[test]
fn a_limit_on_the_size_of_files() {
    let scratch = Scratch::new();
    let spill = scratch.path().join("spill");
    let mut fixture = Fixture::new(&scratch, &spill);
    let limit = |fixture: &Fixture, bytes: &str| {
        let pid = format!("--pid={}", fixture.server.pid());
        // The soft one alone: anyone may raise it again.
        run(tool("prlimit").args([&pid, &format!("--fsize={bytes}:")]));
    };
    limit(&fixture, &(6 * MIB).to_string());
    fixture.write_until_refused();
    fixture.assert_all_readable();
    limit(&fixture, "unlimited");
    fixture.assert_recovers();
    assert!(fixture.server.terminate().success());
}

#[test]
fn writes_that_fail() {
    let scratch = Scratch::new();
    let trace = scratch.path().join("trace");
    let spill = scratch.path().join("spill");
    let mut fixture = Fixture::new(&scratch, &spill);
    let calls = "pwrite64,pwritev,pwritev2";
    let pid = fixture.server.pid().to_string();
    let mut strace = Background::start(
        tool("strace")
            .args(["-f", "-qq", "-p", &pid, "-o"])
            .arg(&trace)
            .args(["-e", &format!("trace={calls}"), "-e"])
            .arg(format!("inject={calls}:error=EIO"))
            .stderr(Stdio::null()),
    );
    let traced = within(HANG, || !strace.is_running() || is_traced(&pid));
    if !traced || !strace.is_running() {
        skipped("writes that fail", "strace may not trace a server here");
        return;
    }
    fixture.write_until_refused();
    fixture.assert_all_readable();
    strace.signal(Signal::INT);
    assert!(strace.wait(Duration::from_secs(10)).is_some());
    let injected = fs::read_to_string(&trace).expect("strace's output");
    assert!(injected.contains("(INJECTED)"), "no write was failed");
    fixture.assert_recovers();
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    threads.flatten().all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

#[test]
fn a_backing_cut_short_loses_what_was_there_alone() {
    let scratch = Scratch::new();
    let spill = scratch.path().join("spill");
    let mut fixture = Fixture::new(&scratch, &spill);
    fixture.fill();
    let resident = fixture.pages_in_memory();
    assert!(resident.len() > 500, "{} in memory", resident.len());
    let file = File::options().write(true).open(&spill);
    file.and_then(|file| file.set_len(0))
        .expect("cutting it short");
    let lost = fixture.disk.unreadable();
    assert!(!lost.is_empty(), "nothing was lost with the file");
    let in_memory_lost = resident.iter().find(|page| lost.contains(page));
    assert_eq!(in_memory_lost, None, "a page that was in memory");
    fixture.assert_recovers();
}

#[test]
fn a_backing_replaced_is_neither_read_nor_removed() {
    let scratch = Scratch::new();
    let spill = scratch.path().join("spill");
    let mut fixture = Fixture::new(&scratch, &spill);
    fixture.fill();
    fs::remove_file(&spill).expect("the file was there");
    fixture.assert_all_readable();
    fs::write(&spill, "somebody else's").expect("another file");
    fixture.fill();
    fixture.assert_all_readable();
    assert!(fixture.server.terminate().success());
    let now = fs::read_to_string(&spill).expect("it is still there");
    assert_eq!(now, "somebody else's");
}

/// A block device whose server fails and delays as long as a file exists: nbdkit under nbdfuse
/// under a loop device.
struct FaultyDevice {
    _nbdkit: Background,
    mountpoint: PathBuf,
    device: String,
    trigger: PathBuf,
}

impl FaultyDevice {
    fn new(scratch: &Scratch) -> Self {
        let (mountpoint, trigger) = (scratch.path().join("fuse"), scratch.path().join("trigger"));
        fs::create_dir(&mountpoint).expect("a mountpoint");
        let nbdkit = Background::start(
            tool("nbdfuse")
                .arg(&mountpoint)
                .args(["--command", "nbdkit", "-s", "--exit-with-parent"])
                .args(["--filter=error", "--filter=delay", "memory", "size=64M"])
                .args(["delay-write=2ms", "error=EIO", "error-rate=100%"])
                .arg(format!("error-file={}", trigger.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let mut faulty = Self {
            _nbdkit: nbdkit,
            device: String::new(),
            trigger,
            mountpoint,
        };
        let disk = faulty.mountpoint.join("nbd");
        assert!(within(HANG, || disk.exists()), "nbdfuse did not start");
        // Direct: what fails must fail now, not when the page cache is written back.
        let device = run(tool("losetup")
            .args(["-f", "--show", "--direct-io=on"])
            .arg(&disk));
        faulty.device = device.trim_end().to_owned();
        faulty
    }

    fn fail(&self, on: bool) {
        if on {
            fs::write(&self.trigger, "").expect("a trigger");
        } else {
            fs::remove_file(&self.trigger).expect("the trigger was there");
        }
    }
}

impl Drop for FaultyDevice {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            status_of(tool("losetup").args(["-d", &self.device]));
        }
        status_of(tool("fusermount3").args(["-u", "-z"]).arg(&self.mountpoint));
    }
}

#[test]
fn a_device_that_fails_for_a_while() {
    if skip_without_mounts("a backing device that fails") {
        return;
    }
    let scratch = Scratch::new();
    let faulty = FaultyDevice::new(&scratch);
    let mut fixture = Fixture::new(&scratch, Path::new(&faulty.device));
    fixture.fill();
    fixture.assert_all_readable();
    for _ in 0..2 {
        let resident = fixture.pages_in_memory();
        run(Command::new("sync")
            .arg("-f")
            .arg(faulty.trigger.with_file_name("run")));
        faulty.fail(true);
        for &page in &resident {
            assert_eq!(fixture.disk.verify(page), Ok(()), "page {page} in memory");
        }
        fixture.write_until_refused();
        fixture.disk.unreadable();
        faulty.fail(false);
        fixture.assert_all_readable();
        fixture.assert_recovers();
    }
    assert!(fixture.server.terminate().success());
}
