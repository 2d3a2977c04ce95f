//! Every way a mount begins and ends.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;
use support::{HANG, eventually};
use uzram::fuse::{Mount, MountOptions, Mounted, detach_stale};
use uzram::{Device, DeviceConfig, Error};

use crate::rig::{Loop, MIB, PAGE, Served, Server, can_mount, errno, run};

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
    eventually("written to", || served.device.stats().same_pages > 0);
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
    let device = Arc::new(Device::new(&DeviceConfig::new(MIB)).expect("a device"));
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
    let dead = errno(fs::read_dir(server.dir.path()));
    assert!(
        matches!(
            dead,
            Some(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)
        ),
        "{dead:?}"
    );

    let device = Arc::new(Device::new(&DeviceConfig::new(MIB)).expect("a device"));
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
    let device = Arc::new(Device::new(&DeviceConfig::new(MIB)).expect("a device"));
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

/// Who serves it might have no right to mount, nor to unmount.
#[test]
fn a_directory_is_mounted_by_one_and_served_by_another() {
    if !can_mount("a_directory_is_mounted_by_one_and_served_by_another") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (mounted, connection) = Mounted::new(dir.path()).expect("mounts");
    let device = Arc::new(Device::new(&DeviceConfig::new(MIB)).expect("a device"));
    let options = MountOptions::default();
    let mount = Mount::start_on(connection, Arc::clone(&device), mounted.dir(), options);
    let mount = mount.expect("serves");
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.disk_path())
        .expect("opens");
    disk.write_all_at(b"hello", 4096).expect("writes");
    let mut read = [0; 5];
    disk.read_exact_at(&mut read, 4096).expect("reads");
    assert_eq!(&read, b"hello");
    mounted.unmount().expect("unmounts, whatever is open");
    assert!(unmount_in_time(mount));
    assert!(fs::read_dir(dir.path()).expect("lists").next().is_none());
    assert!(disk.read_at(&mut [0; 512], 0).is_err(), "cut off");
    assert_eq!(
        Arc::strong_count(&device),
        1,
        "the serving threads are gone"
    );
}
