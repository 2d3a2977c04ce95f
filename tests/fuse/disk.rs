//! `disk`: data, its end, holes, and a file system on a loop device.

use std::fs::{self, File, OpenOptions};
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use support::Random;
use uzram::fuse::{Mount, MountOptions};
use uzram::{BlockDevice, Device, DeviceConfig, Extent, OriginConfig, OriginUse, Result};

use crate::rig::{Loop, MIB, Mounted, PAGE, Served, can_mount, errno, run};

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

/// A device whose flushes mean something, and are counted.
struct Flushed {
    device: Device,
    flushes: AtomicU64,
}

impl BlockDevice for Flushed {
    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.device.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.device.write(offset, data)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.device.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.device.write_zeroes(offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, SeqCst);
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        self.device.extents(range, visit);
    }
}

#[test]
fn a_flush_reaches_the_device_where_it_does_anything() {
    if !can_mount("a_flush_reaches_the_device_where_it_does_anything") {
        return;
    }
    let served = Served::start(MIB);
    let disk = served.open_disk(OFlags::empty());
    for _ in 0..3 {
        disk.sync_all().expect("there is nothing to do");
    }
    let device = Arc::new(Flushed {
        device: Device::new(&DeviceConfig::new(MIB)).expect("a device"),
        flushes: AtomicU64::new(0),
    });
    let dir = tempfile::tempdir().expect("a directory");
    let options = MountOptions::default();
    let mount = Mount::start_bare(Arc::clone(&device) as _, dir.path(), options).expect("mounts");
    let disk = File::options()
        .write(true)
        .open(mount.disk_path())
        .expect("opens");
    for _ in 0..3 {
        let before = device.flushes.load(SeqCst);
        disk.sync_all().expect("flushed");
        // A process that another test starts may close its copy of the file, which flushes it, too.
        assert!(device.flushes.load(SeqCst) > before);
    }
    drop(disk);
    mount.unmount().expect("unmounts");
}

#[test]
fn disk_has_the_size_and_the_end_of_a_block_device() {
    if !can_mount("disk_has_the_size_and_the_end_of_a_block_device") {
        return;
    }
    has_the_size_and_the_end_of_a_block_device(&Served::start(MIB));
    let dir = tempfile::tempdir().expect("a directory");
    let spilling = Served::start_spilling(MIB, dir.path().join("spill"));
    has_the_size_and_the_end_of_a_block_device(&spilling);
}

fn has_the_size_and_the_end_of_a_block_device(served: &Served) {
    let disk = served.open_disk(OFlags::empty());
    let stat = disk.metadata().expect("stats");
    assert_eq!((stat.len(), stat.blksize(), stat.blocks()), (MIB, PAGE, 0));
    assert_eq!(stat.mode(), 0o100_600);

    disk.set_len(MIB).expect("nothing changes");
    disk.set_len(0).expect("nothing is there");
    assert_eq!(disk.metadata().expect("stats").len(), MIB);
    assert_eq!(errno(disk.set_len(2 * MIB)), Some(Errno::FBIG));

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
    // Far beyond, at no page's start.
    assert_eq!(disk.read_at(&mut back, (1 << 40) + 1).expect("the end"), 0);
    assert_eq!(
        errno(disk.write_at(&data, (1 << 40) + 1)),
        Some(Errno::NOSPC)
    );

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

/// The image is no scratch space, which `dd` without `conv=notrunc` would empty first.
#[test]
fn disk_over_an_image_is_not_emptied_by_who_opens_it() {
    if !can_mount("disk_over_an_image_is_not_emptied_by_who_opens_it") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    fs::write(&image, vec![7; MIB as usize]).expect("an image");
    let served = Served::over(image.clone());
    let path = served.path("disk");
    let refused = OpenOptions::new().write(true).truncate(true).open(&path);
    assert_eq!(errno(refused), Some(Errno::PERM));
    assert!(fs::read(&path).expect("reads") == vec![7; MIB as usize]);

    // One page is written so that it is in the image when it is answered, one is not.
    let page = [9; PAGE as usize];
    // Open to the end: close(2) flushes.
    let plain = served.open_disk(OFlags::empty());
    plain.write_at(&page, 0).expect("written");
    assert!(fs::read(&image).expect("reads") == vec![7; MIB as usize]);
    let synced = served.open_disk(OFlags::DSYNC);
    synced.write_at(&page, PAGE).expect("written");
    assert_eq!(
        fs::read(&image).expect("reads")[..2 * PAGE as usize],
        [9; 2 * PAGE as usize]
    );
}

#[test]
fn disk_that_is_truncated_loses_what_is_beyond_and_keeps_its_size() {
    if !can_mount("disk_that_is_truncated_loses_what_is_beyond_and_keeps_its_size") {
        return;
    }
    let served = Served::start(MIB);
    let path = served.path("disk");
    let contents = || fs::read(&path).expect("reads");
    let full = vec![7; MIB as usize];
    {
        let disk = served.open_disk(OFlags::empty());
        disk.write_all_at(&full, 0).expect("writes");
        disk.set_len(MIB).expect("it is as long");
        assert!(contents() == full);
    }
    // In the middle of a page, by who has it open and by path.
    let disk = served.open_disk(OFlags::empty());
    disk.set_len(MIB / 2 + 100).expect("shorter");
    let (head, tail) = (
        vec![7; MIB as usize / 2 + 100],
        vec![0; MIB as usize / 2 - 100],
    );
    drop(disk);
    assert!(contents() == [head, tail].concat());
    served.is_left();
    let cut = Command::new("truncate")
        .args(["-s", "4096"])
        .arg(&path)
        .status();
    assert!(cut.expect("truncate runs").success());
    let (head, tail) = (vec![7; PAGE as usize], vec![0; (MIB - PAGE) as usize]);
    assert!(contents() == [head, tail].concat());
    assert_eq!(served.device.stats().orig_data_size, PAGE);
    served.is_left();
    // Not under another user.
    let disk = served.open_disk(OFlags::empty());
    let other = served.device.enter(uzram::Who::default());
    assert_eq!(errno(disk.set_len(0)), Some(Errno::BUSY));
    disk.set_len(MIB).expect("it is as long");
    drop(other);
    // One who has it open twice is no other; one who goes on in another thread neither.
    let again = served.open_disk(OFlags::empty());
    let cut = std::thread::spawn(move || disk.set_len(0));
    cut.join().expect("no panic").expect("shorter");
    drop(again);
    assert_eq!(served.device.stats().orig_data_size, 0);
}

#[test]
fn imaging_tools_write_disk() {
    if !can_mount("imaging_tools_write_disk") {
        return;
    }
    let served = Served::start(4 * MIB);
    let path = served.path("disk");
    let scratch = tempfile::tempdir().expect("a directory");
    // Some data, a hole, some data, and a hole at its end.
    let image = [
        Random(3).bytes(MIB as usize / 2),
        vec![0; MIB as usize],
        Random(4).bytes(MIB as usize / 2),
        vec![0; MIB as usize],
    ]
    .concat();
    fs::write(scratch.path().join("image"), &image).expect("writes");
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-ec", script])
            .env("DISK", &path)
            .current_dir(scratch.path())
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{script}: {output:?}");
    };
    shell("fallocate --dig-holes image; qemu-img convert -f raw -O qcow2 image qcow2");
    let rest = vec![0; MIB as usize];
    for script in [
        "qemu-img convert -f qcow2 -O raw qcow2 $DISK",
        "cp image $DISK",
        "cp --sparse=always image $DISK",
        "rsync --inplace image $DISK",
        "rsync --inplace --sparse image $DISK",
        "dd if=image of=$DISK bs=64K conv=sparse status=none",
    ] {
        // Nothing of this is to show.
        let disk = served.open_disk(OFlags::empty());
        disk.write_all_at(&vec![9; 4 * MIB as usize], 0)
            .expect("writes");
        drop(disk);
        served.is_left();
        shell(script);
        let found = fs::read(&path).expect("reads");
        assert!(found == [image.as_slice(), &rest].concat(), "{script}");
        assert_eq!(fs::metadata(&path).expect("stats").len(), 4 * MIB);
    }
    served.is_left();
    shell("qemu-img convert -n -f qcow2 -O raw qcow2 $DISK");
    shell("qemu-img compare -f qcow2 -F raw qcow2 $DISK");
}

#[test]
fn disk_is_mapped_by_those_who_share_it() {
    if !can_mount("disk_is_mapped_by_those_who_share_it") {
        return;
    }
    let served = Served::start(MIB);
    served.device.write(PAGE, b"before").expect("writes");
    let script = "import errno, mmap, os, sys\n\
        fd = os.open(sys.argv[1], os.O_RDWR)\n\
        try:\n\
        \x20   m = mmap.mmap(fd, 0)\n\
        except OSError as e:\n\
        \x20   sys.exit(77 if e.errno == errno.ENODEV else 1)\n\
        assert m[4096:4102] == b'before'\n\
        m[4096:4101] = b'after'\n\
        m.flush()\n\
        m[8192:8196] = b'late'\n\
        assert os.pread(fd, 4, 8192) == b'late'\n";
    let mapped = Command::new("python3")
        .args(["-c", script])
        .arg(served.path("disk"))
        .output()
        .expect("python3 runs");
    if mapped.status.code() == Some(77) {
        eprintln!("SKIPPED: the mapping needs Linux 6.6");
        return;
    }
    assert!(mapped.status.success(), "{mapped:?}");
    let mut found = [0; 6];
    served.device.read(PAGE, &mut found).expect("reads");
    assert_eq!(&found, b"aftere");
    served
        .device
        .read(2 * PAGE, &mut found[..4])
        .expect("reads");
    assert_eq!(&found[..4], b"late");
}

#[test]
fn disk_of_a_read_only_device_is_not_changed() {
    if !can_mount("disk_of_a_read_only_device_is_not_changed") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    fs::write(&image, vec![7; MIB as usize]).expect("an image");
    let origin = OriginConfig::new(&image, OriginUse::Snapshot);
    let mut config = DeviceConfig::over(origin).expect("an image");
    config.read_only = true;
    let served = Served::with(&config);
    let path = served.path("disk");
    assert_eq!(fs::metadata(&path).expect("stats").mode() & 0o777, 0o400);
    let opened = |options: &mut OpenOptions| errno(options.open(&path));
    assert_eq!(opened(OpenOptions::new().write(true)), Some(Errno::ROFS));
    let both = opened(OpenOptions::new().read(true).write(true));
    assert_eq!(both, Some(Errno::ROFS));
    let anew = opened(OpenOptions::new().write(true).truncate(true));
    assert_eq!(anew, Some(Errno::ROFS));

    // The device itself, whoever comes to it.
    let refused = |changed: Result<()>| changed.expect_err("refused").errno();
    let device = &served.device;
    assert_eq!(refused(device.write(0, &[1; 512])), Errno::ROFS);
    assert_eq!(refused(device.write_zeroes(0, PAGE)), Errno::ROFS);
    assert_eq!(refused(device.discard(0, MIB)), Errno::ROFS);
    assert_eq!(refused(device.reset()), Errno::ROFS);

    let attached = Loop::attach(&path);
    let write = || {
        let file = OpenOptions::new().write(true).open(&attached.0)?;
        file.write_all_at(&[1; PAGE as usize], 0)
    };
    assert_eq!(errno(write()), Some(Errno::PERM));
    assert!(fs::read(&path).expect("reads") == vec![7; MIB as usize]);
    assert!(fs::read(&image).expect("reads") == vec![7; MIB as usize]);
}

#[test]
fn disk_can_be_opened_to_be_written_anew() {
    if !can_mount("disk_can_be_opened_to_be_written_anew") {
        return;
    }
    let served = Served::start(MIB);
    let path = served.path("disk");
    let scratch = tempfile::tempdir().expect("a directory");
    let shell = |script: &str| {
        let output = Command::new("sh")
            .args(["-c", script])
            .env("DISK", &path)
            .current_dir(scratch.path())
            .output()
            .expect("sh runs");
        (output.status.success(), format!("{output:?}"))
    };
    let succeeds = |script: &str| {
        let (success, output) = shell(script);
        assert!(success, "{script}: {output}");
    };
    let contents = || fs::read(&path).expect("reads");

    succeeds("echo x > $DISK");
    assert_eq!(contents()[..3], *b"x\n\0");
    succeeds("tr '\\0' y < /dev/zero | head -c 1M > full && cp full $DISK");
    assert_eq!(contents(), vec![b'y'; MIB as usize]);
    // A copy leaves out holes, which must not show what was there before.
    succeeds("truncate -s 256K holes && printf z >> holes && cp holes $DISK");
    let (head, tail) = (vec![0; 256 << 10], vec![0; (768 << 10) - 1]);
    assert!(contents() == [head, vec![b'z'], tail].concat());
    succeeds("dd if=full of=$DISK bs=64K count=1 status=none");
    assert_eq!(fs::metadata(&path).expect("stats").len(), MIB);
    assert_eq!(served.device.stats().orig_data_size, 64 << 10);

    // Not under another user, who also goes on seeing all of the disk.
    let device = Loop::attach(&path);
    assert!(!shell("echo x > $DISK").0);
    let file = File::open(&device.0).expect("opens");
    let mut last = [1; PAGE as usize];
    file.read_exact_at(&mut last, MIB - PAGE).expect("reads");
    assert_eq!(last, [0; PAGE as usize]);
    let mut first = [0];
    file.read_exact_at(&mut first, 0).expect("reads");
    assert_eq!(first, *b"y");
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
