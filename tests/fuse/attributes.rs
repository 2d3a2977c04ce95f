//! The directory and the attributes in it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use rustix::fs::OFlags;
use rustix::io::Errno;
use support::eventually;
use uzram::{Attribute, BlockDevice};

use crate::rig::{MIB, PAGE, Served, can_mount, errno};

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
    assert!(!echo("15T", "disksize"));

    assert!(!echo("1", "reset"), "disk is open");
    drop(disk);
    // The kernel tells of a close after it returns.
    eventually("closed", || !served.device.is_in_use());
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
