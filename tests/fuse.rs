//! The FUSE frontend through the kernel: files, attributes, a loop device with ext4, and every
//! way a mount ends. Needs root and `/dev/fuse`; says so loudly where they are missing.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use tempfile::TempDir;
use uzram::fuse::{Mount, MountOptions, detach_stale};
use uzram::{Attribute, BlockDevice, Device, DeviceConfig, Error};

/// Far longer than anything here takes, far shorter than a hang.
const HANG: Duration = Duration::from_secs(20);

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

/// Whether mounts can be made here; says so if not.
fn can_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if root && fuse.is_ok() {
        return true;
    }
    println!("SKIPPED: {test}: needs root and /dev/fuse");
    eprintln!("SKIPPED: {test}: needs root and /dev/fuse");
    false
}

/// A served device. Fields drop in order: the mount goes before its directory.
struct Served {
    mount: Mount,
    device: Arc<Device>,
    dir: TempDir,
}

impl Served {
    fn start(bytes: u64) -> Self {
        let device = Arc::new(Device::new(DeviceConfig::new(bytes)).expect("a device"));
        let dir = tempfile::tempdir().expect("a directory");
        let options = MountOptions::default();
        let mount = Mount::start(device.clone(), dir.path(), options).expect("mounts");
        Self { mount, device, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open_disk(&self, flags: OFlags) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.mount.disk_path())
            .expect("opens disk")
    }

    fn show(&self, attribute: Attribute) -> String {
        attribute.show(&self.device).expect("shows")
    }
}

/// A loop device on `disk`, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn attach(disk: &Path) -> Self {
        let output = Command::new("losetup")
            .args([
                "--direct-io=on",
                "--sector-size",
                "4096",
                "--find",
                "--show",
            ])
            .arg(disk)
            .output()
            .expect("losetup runs");
        assert!(output.status.success(), "losetup: {output:?}");
        let path = String::from_utf8(output.stdout).expect("a path");
        Self(path.trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mounted file system, unmounted when dropped.
struct Mounted(TempDir);

impl Mounted {
    fn mount(device: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        run(Command::new("mount")
            .args(["-o", "discard"])
            .arg(device)
            .arg(dir.path()));
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = |lazy: &[&str]| {
            let status = Command::new("umount")
                .args(lazy)
                .arg(self.0.path())
                .status();
            status.is_ok_and(|status| status.success())
        };
        if !umount(&[]) {
            umount(&["-l"]);
        }
    }
}

/// A server in a process of its own, killed when dropped; what it leaves mounted is detached.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "serve_for_another_test", "--nocapture"])
            .env(SERVE_DIR, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut server = Self { child, dir };
        let stdout = server.child.stdout.take().expect("piped");
        let served = BufReader::new(stdout)
            .lines()
            .any(|line| line.expect("reads").contains("served"));
        assert!(served, "the server did not come up");
        server
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = detach_stale(self.dir.path());
    }
}

const SERVE_DIR: &str = "UZRAM_TEST_SERVE_DIR";

/// Not a test of its own: the process behind [`Server`].
#[test]
fn serve_for_another_test() {
    let Some(dir) = std::env::var_os(SERVE_DIR) else {
        return;
    };
    let device = Arc::new(Device::new(DeviceConfig::new(16 * MIB)).expect("a device"));
    let mount = Mount::start(device, Path::new(&dir), MountOptions::default()).expect("mounts");
    println!("served");
    // Until the other test kills this process or goes away.
    let _ = std::io::stdin().read(&mut [0]);
    drop(mount);
}

fn run(command: &mut Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<Errno> {
    Errno::from_io_error(&result.expect_err("an error"))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        // Runs of a few bytes, so that some pages compress and some do not.
        let kinds = 1 + self.below(255) as u8;
        (0..len).map(|_| (self.next() as u8) % kinds).collect()
    }
}

/// Random requests on `file` from `start` on, checked against a flat array.
fn follow_model(file: &File, start: u64, len: u64, align: u64, seed: u64) {
    let mut random = Random(seed);
    let mut model = vec![0; len as usize];
    let keep = FallocateFlags::KEEP_SIZE;
    for step in 0..400 {
        let offset = random.below(len / align) * align;
        let most = if step % 20 == 0 { 3 * MIB } else { 32 << 10 };
        let count = (1 + random.below(most / align)) * align;
        let count = count.min(len - offset);
        let range = offset as usize..(offset + count) as usize;
        match random.below(8) {
            0..=2 => {
                let data = random.bytes(count as usize);
                file.write_all_at(&data, start + offset).expect("writes");
                model[range].copy_from_slice(&data);
            }
            3 => {
                let punch = FallocateFlags::PUNCH_HOLE | keep;
                fallocate(file, punch, start + offset, count).expect("punches");
                model[range].fill(0);
            }
            4 => {
                let zero = FallocateFlags::ZERO_RANGE | keep;
                fallocate(file, zero, start + offset, count).expect("zeroes");
                model[range].fill(0);
            }
            5 => file.sync_data().expect("syncs"),
            _ => {
                let mut data = vec![0xaa; count as usize];
                file.read_exact_at(&mut data, start + offset)
                    .expect("reads");
                assert!(
                    data == model[range],
                    "seed {seed} step {step} offset {offset}"
                );
            }
        }
    }
    let mut all = vec![0xaa; len as usize];
    file.read_exact_at(&mut all, start).expect("reads");
    assert!(all == model, "seed {seed}");
}

#[test]
fn disk_holds_what_is_written() {
    if !can_mount("disk_holds_what_is_written") {
        return;
    }
    let served = Served::start(64 * MIB);
    let (buffered, direct) = (OFlags::empty(), OFlags::DIRECT);
    std::thread::scope(|scope| {
        for (index, (flags, align)) in [(buffered, 1), (direct, PAGE), (buffered, 512), (direct, 1)]
            .into_iter()
            .enumerate()
        {
            let file = served.open_disk(flags);
            // Regions share no page, so that their models are independent.
            let start = index as u64 * 16 * MIB;
            scope.spawn(move || follow_model(&file, start, 8 * MIB, align, index as u64));
        }
    });
}

#[test]
fn disk_has_the_size_and_the_end_of_a_block_device() {
    if !can_mount("disk_has_the_size_and_the_end_of_a_block_device") {
        return;
    }
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    let stat = disk.metadata().expect("stats");
    assert_eq!((stat.len(), stat.blksize(), stat.blocks()), (MIB, PAGE, 0));
    assert_eq!(stat.mode(), 0o100_600);

    disk.set_len(MIB).expect("nothing changes");
    assert_eq!(errno(disk.set_len(0)), Some(Errno::INVAL));
    assert_eq!(errno(disk.set_len(2 * MIB)), Some(Errno::INVAL));

    let data = [7; 8192];
    assert_eq!(
        disk.write_at(&data, MIB - PAGE).expect("a short write"),
        4096
    );
    assert_eq!(errno(disk.write_at(&data, MIB)), Some(Errno::NOSPC));
    assert_eq!(disk.metadata().expect("stats").blocks(), PAGE / 512);
    let mut back = [0; 8192];
    assert_eq!(
        disk.read_at(&mut back, MIB - PAGE).expect("a short read"),
        4096
    );
    assert_eq!(back[..4096], data[..4096]);
    assert_eq!(disk.read_at(&mut back, MIB).expect("the end"), 0);

    let refused = |mode, offset, len| {
        let error = fallocate(&disk, mode, offset, len).expect_err("refused");
        (error, disk.metadata().expect("stats").len())
    };
    for mode in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        assert_eq!(refused(mode, 0, PAGE), (Errno::OPNOTSUPP, MIB));
    }
    let zero = FallocateFlags::ZERO_RANGE;
    assert_eq!(refused(zero, MIB - PAGE, 2 * PAGE), (Errno::INVAL, MIB));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&disk, punch, MIB - PAGE, 8 * PAGE).expect("up to the end");
    fallocate(&disk, punch, MIB, PAGE).expect("nothing there");
    assert_eq!(disk.metadata().expect("stats").blocks(), 0);
}

#[test]
fn data_and_holes_are_found() {
    if !can_mount("data_and_holes_are_found") {
        return;
    }
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    assert_eq!(seek(&disk, SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(&disk, SeekFrom::Hole(0)), Ok(0));
    disk.write_all_at(&[1; 2 * PAGE as usize], 4 * PAGE)
        .expect("writes");
    disk.write_all_at(&[1], MIB - 1).expect("writes");
    for (from, data, hole) in [
        (0, 4 * PAGE, 0),
        (4 * PAGE, 4 * PAGE, 6 * PAGE),
        (5 * PAGE + 17, 5 * PAGE + 17, 6 * PAGE),
        (6 * PAGE, MIB - PAGE, 6 * PAGE),
        (MIB - 1, MIB - 1, MIB),
    ] {
        assert_eq!(
            seek(&disk, SeekFrom::Data(from)),
            Ok(data),
            "data from {from}"
        );
        assert_eq!(
            seek(&disk, SeekFrom::Hole(from)),
            Ok(hole),
            "hole from {from}"
        );
    }
    assert_eq!(seek(&disk, SeekFrom::Data(MIB)), Err(Errno::NXIO));
}

#[test]
fn the_directory_lists_the_attributes_and_takes_nothing_else() {
    if !can_mount("the_directory_lists_the_attributes_and_takes_nothing_else") {
        return;
    }
    let served = Served::start(MIB);
    let listed: BTreeSet<String> = fs::read_dir(served.dir.path())
        .expect("lists")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name")
        })
        .collect();
    let names = Attribute::ALL.iter().map(|a| a.name().to_owned());
    let expected: BTreeSet<String> = names.chain(["disk".to_owned()]).collect();
    assert_eq!(listed, expected);

    for attribute in Attribute::ALL {
        let stat = fs::metadata(served.path(attribute.name())).expect("stats");
        assert_eq!(stat.mode() & 0o7777, u32::from(attribute.mode()));
        assert_eq!(stat.len(), PAGE);
    }
    assert_eq!(
        errno(File::open(served.path("nothing"))),
        Some(Errno::NOENT)
    );
    assert_eq!(
        errno(File::create(served.path("nothing"))),
        Some(Errno::PERM)
    );
    assert_eq!(
        errno(fs::create_dir(served.path("nothing"))),
        Some(Errno::PERM)
    );
    assert_eq!(
        errno(fs::remove_file(served.path("disk"))),
        Some(Errno::PERM)
    );
    let moved = fs::rename(served.path("disk"), served.path("d"));
    assert_eq!(errno(moved), Some(Errno::PERM));

    let space = rustix::fs::statvfs(served.dir.path()).expect("statfs");
    assert_eq!(space.f_blocks * space.f_frsize, MIB);
}

#[test]
fn attributes_read_and_write_as_in_sysfs() {
    if !can_mount("attributes_read_and_write_as_in_sysfs") {
        return;
    }
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    disk.write_all_at(&[3; 5 * PAGE as usize], 0)
        .expect("writes");
    for attribute in Attribute::ALL {
        let path = served.path(attribute.name());
        if attribute.is_readable() {
            let text = fs::read_to_string(&path).expect("reads");
            assert_eq!(text, served.show(attribute), "{attribute:?}");
        } else {
            assert_eq!(
                errno(File::open(&path)),
                Some(Errno::ACCESS),
                "{attribute:?}"
            );
        }
        if !attribute.is_writable() {
            let opened = OpenOptions::new().write(true).open(&path);
            assert_eq!(errno(opened), Some(Errno::ACCESS), "{attribute:?}");
        }
    }

    let echo = |value: &str, name: &str| {
        let script = format!("echo {value} > {}", served.path(name).display());
        Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh runs")
            .status
            .success()
    };
    assert!(echo("1", "compact"));
    assert!(echo("64M", "mem_limit"));
    assert!(echo("0", "mem_used_max"));
    assert!(!echo("1", "mem_used_max"));
    assert!(!echo("lots", "mem_limit"));
    assert!(!echo("2M", "disksize"));

    assert!(!echo("1", "reset"), "disk is open");
    drop(disk);
    // The kernel tells of a close after it returns.
    let deadline = Instant::now() + HANG;
    while served.mount.is_disk_open() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(echo("1", "reset"));
    assert_eq!(served.device.stats().orig_data_size, 0);
}

#[test]
fn an_attribute_read_in_pieces_is_of_one_moment() {
    if !can_mount("an_attribute_read_in_pieces_is_of_one_moment") {
        return;
    }
    let served = Served::start(MIB);
    let file = File::open(served.path("mm_stat")).expect("opens");
    let before = served.show(Attribute::MmStat);
    let mut first = [0; 5];
    file.read_exact_at(&mut first, 0).expect("reads");
    served
        .device
        .write(0, &[1; 3 * PAGE as usize])
        .expect("writes");
    let after = served.show(Attribute::MmStat);
    assert_ne!(before, after);

    let mut rest = vec![0; 4096];
    let len = file.read_at(&mut rest, 5).expect("reads");
    assert_eq!([&first[..], &rest[..len]].concat(), before.as_bytes());
    let len = file.read_at(&mut rest, 0).expect("reads again");
    assert_eq!(&rest[..len], after.as_bytes());
}

#[test]
fn ext4_lives_on_a_loop_device() {
    if !can_mount("ext4_lives_on_a_loop_device") {
        return;
    }
    let served = Served::start(64 * MIB);
    let device = Loop::attach(&served.mount.disk_path());
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0));
    let data = Random(1).bytes(20 * MIB as usize);
    {
        let mounted = Mounted::mount(&device.0);
        fs::write(mounted.path("file"), &data).expect("writes");
    }
    run(Command::new("e2fsck").arg("-fn").arg(&device.0));
    let full = served.device.stats().orig_data_size;
    assert!(full >= 20 * MIB, "{full}");
    {
        let mounted = Mounted::mount(&device.0);
        assert!(fs::read(mounted.path("file")).expect("reads") == data);
        fs::remove_file(mounted.path("file")).expect("removes");
        run(Command::new("fstrim").arg(mounted.0.path()));
    }
    let trimmed = served.device.stats().orig_data_size;
    assert!(trimmed + 18 * MIB <= full, "{trimmed} of {full} left");
    run(Command::new("blkdiscard").arg("-f").arg(&device.0));
    assert_eq!(served.device.stats().orig_data_size, 0);
}

/// Unmounts; returns whether that took no longer than it may.
fn unmount_in_time(mount: Mount) -> bool {
    let start = Instant::now();
    mount.unmount().expect("unmounts");
    start.elapsed() < HANG
}

#[test]
fn an_idle_mount_goes_and_leaves_an_empty_directory() {
    if !can_mount("an_idle_mount_goes_and_leaves_an_empty_directory") {
        return;
    }
    let Served { mount, device, dir } = Served::start(MIB);
    assert!(unmount_in_time(mount));
    assert!(fs::read_dir(dir.path()).expect("lists").next().is_none());
    assert_eq!(
        Arc::strong_count(&device),
        1,
        "the serving threads are gone"
    );
}

#[test]
fn an_open_file_does_not_hold_up_an_unmount() {
    if !can_mount("an_open_file_does_not_hold_up_an_unmount") {
        return;
    }
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    let Served { mount, device, dir } = served;
    assert!(unmount_in_time(mount));
    assert!(fs::read_dir(dir.path()).expect("lists").next().is_none());
    assert!(disk.read_at(&mut [0; 512], 0).is_err(), "cut off");
    assert_eq!(
        Arc::strong_count(&device),
        1,
        "the serving threads are gone"
    );
}

#[test]
fn a_loop_device_under_load_does_not_hold_up_an_unmount() {
    if !can_mount("a_loop_device_under_load_does_not_hold_up_an_unmount") {
        return;
    }
    let served = Served::start(16 * MIB);
    let device = Loop::attach(&served.mount.disk_path());
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(&device.0)
        .expect("opens");
    let writer = std::thread::spawn(move || {
        // Direct I/O wants memory aligned to the sector.
        let mut buffer = vec![5; 2 * PAGE as usize];
        let skip = buffer.as_ptr().align_offset(PAGE as usize);
        let page = &mut buffer[skip..skip + PAGE as usize];
        let mut page_number = 0;
        while file.write_all_at(page, page_number % 4096 * PAGE).is_ok() {
            page_number += 1;
        }
        page_number
    });
    std::thread::sleep(Duration::from_millis(200));
    let Served {
        mount,
        device: served,
        dir,
    } = served;
    assert!(unmount_in_time(mount));
    assert!(fs::read_dir(dir.path()).expect("lists").next().is_none());
    assert!(writer.join().expect("ends with an error") > 0);
    assert_eq!(
        Arc::strong_count(&served),
        1,
        "the serving threads are gone"
    );
}

#[test]
fn a_mount_that_somebody_else_unmounted_ends_quietly() {
    if !can_mount("a_mount_that_somebody_else_unmounted_ends_quietly") {
        return;
    }
    let Served { mount, dir, .. } = Served::start(MIB);
    run(Command::new("umount").arg(dir.path()));
    assert!(unmount_in_time(mount));
}

#[test]
fn a_living_mount_is_not_mounted_over() {
    if !can_mount("a_living_mount_is_not_mounted_over") {
        return;
    }
    let served = Served::start(MIB);
    assert!(!detach_stale(served.dir.path()).expect("looks"));
    let device = Arc::new(Device::new(DeviceConfig::new(MIB)).expect("a device"));
    let refused = Mount::start(device, served.dir.path(), MountOptions::default());
    let error = refused.expect_err("refused");
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
    assert!(error.to_string().contains("already mounted"), "{error}");
    assert_eq!(
        fs::read_to_string(served.path("initstate")).expect("alive"),
        "1\n"
    );
}

#[test]
fn what_a_killed_server_left_is_cleaned_up() {
    if !can_mount("what_a_killed_server_left_is_cleaned_up") {
        return;
    }
    let mut server = Server::start();
    let disk = File::open(server.dir.path().join("disk")).expect("served");
    server.kill();
    let dead = fs::read_dir(server.dir.path());
    assert_eq!(errno(dead), Some(Errno::NOTCONN));

    let device = Arc::new(Device::new(DeviceConfig::new(MIB)).expect("a device"));
    let mount = Mount::start(device, server.dir.path(), MountOptions::default());
    let mount = mount.expect("replaces the dead mount");
    assert_eq!(fs::metadata(mount.disk_path()).expect("stats").len(), MIB);
    assert!(!detach_stale(server.dir.path()).expect("looks"));
    mount.unmount().expect("unmounts");

    let mut server = Server::start();
    server.kill();
    assert!(detach_stale(server.dir.path()).expect("detaches"));
    assert!(!detach_stale(server.dir.path()).expect("looks"));
    assert!(
        fs::read_dir(server.dir.path())
            .expect("lists")
            .next()
            .is_none()
    );
    drop(disk);
}

#[test]
fn a_bare_block_device_has_no_attributes() {
    if !can_mount("a_bare_block_device_has_no_attributes") {
        return;
    }
    let device = Arc::new(Device::new(DeviceConfig::new(MIB)).expect("a device"));
    let dir = tempfile::tempdir().expect("a directory");
    let mount = Mount::start_bare(device, dir.path(), MountOptions::default()).expect("mounts");
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
    assert_eq!(
        errno(File::open(dir.path().join("mm_stat"))),
        Some(Errno::NOENT)
    );
    let mut disk = OpenOptions::new()
        .write(true)
        .open(mount.disk_path())
        .expect("opens");
    disk.write_all(b"hello").expect("writes");
    drop(disk);
    mount.unmount().expect("unmounts");
}
