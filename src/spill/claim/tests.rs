use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::spill::LoopDisk;
use crate::spill::blocks::BLOCK;
use crate::spill::log::{SEGMENT_HEADER_LEN, segment_header};

fn claim(path: &Path) -> Result<Claim> {
    Claim::new(&BackingConfig::new(path))
}

fn force(path: &Path) -> Result<Claim> {
    Claim::new(&BackingConfig {
        force: true,
        ..BackingConfig::new(path)
    })
}

fn refusal(path: &Path) -> String {
    claim(path).expect_err("refused").to_string()
}

/// A file of so many bytes in which these stand at an offset, and nothing else.
fn file_with(path: &Path, len: u64, data: &[(u64, &[u8])]) {
    let file = File::create(path).expect("made");
    file.set_len(len).expect("room");
    for (at, bytes) in data {
        file.write_all_at(bytes, *at).expect("written");
    }
}

fn run(program: &str, args: &[&str], disk: &LoopDisk) -> String {
    let output = Command::new(program).args(args).arg(&disk.path).output();
    let output = output.expect(program);
    assert!(output.status.success(), "{program}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// What is refused must say this much, and be as it was.
fn is_left_alone(disk: &LoopDisk, says: &[&str]) {
    let before = disk.contents();
    let said = refusal(&disk.path);
    assert!(disk.contents() == before, "changed: {said}");
    let remedies = ["blkdiscard -fz", "BackingConfig::force"];
    for words in says.iter().chain(&remedies) {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("remove it"), "{said}");
}

#[test]
fn a_file_that_another_locks_first_is_left_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let file = make(&path).expect("made").expect("new");
    let theirs = claim(&path).expect("nobody has locked it");
    let refused = Claim::made(file, &path).expect_err("in use").to_string();
    assert!(refused.contains("in use"), "{refused}");
    assert!(path.exists());
    drop(theirs);
}

#[test]
fn an_old_spill_is_taken_over_wherever_its_data_begins() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    for segment in [0, 3] {
        let header = segment_header(7);
        assert_eq!(header.len(), SEGMENT_HEADER_LEN as usize);
        let at = segment * SEGMENT_BYTES;
        file_with(
            &path,
            at + SEGMENT_BYTES,
            &[(at, &header), (at + 64, &[9; 100])],
        );
        drop(claim(&path).expect("an old spill"));
        assert_eq!(fs::metadata(&path).expect("there").len(), 0);
    }
    // Not where no segment begins.
    file_with(&path, 4 << 20, &[(4096, &segment_header(7))]);
    assert!(refusal(&path).contains("byte 4096"));
}

#[test]
fn nothing_in_a_file_is_precious_if_it_is_holes_or_zeroes() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("spill");
    for (len, data) in [
        (0, &[][..]),
        (1 << 40, &[]),
        (3 << 20, &[(0, &[0; 3 << 20][..])]),
        (70_001, &[(65_536, &[0; 4465])]),
    ] {
        file_with(&path, len, data);
        drop(claim(&path).expect("empty"));
        assert_eq!(fs::metadata(&path).expect("there").len(), 0);
    }
}

/// Data anywhere: where nothing would look for a signature, in front of which and behind which all
/// is zero.
#[test]
fn other_peoples_data_is_left_alone() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("image");
    const LEN: u64 = (20 << 20) + 5;
    let places = [
        0,
        1,
        1080,
        (2 << 20) + 1,
        17 << 20,
        (19 << 20) - 1,
        LEN - (2 << 20),
        LEN - 1,
    ];
    for preallocated in [false, true] {
        for at in places {
            file_with(&path, LEN, &[(at, b"x")]);
            if preallocated {
                let file = File::options().write(true).open(&path).expect("there");
                let at_start = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&file, at_start, 0, LEN).expect("room");
            }
            let before = fs::read(&path).expect("there");
            let said = refusal(&path);
            assert!(said.contains(&format!("byte {at} ")), "{at}: {said}");
            assert!(
                said.contains("not an old spill") && said.contains("BackingConfig::force"),
                "{said}"
            );
            assert!(fs::read(&path).expect("there") == before, "changed");
        }
    }
    drop(force(&path).expect("it is of no worth"));
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);
}

#[test]
fn what_is_formatted_over_an_old_spill_is_not_ours_any_more() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("image");
    file_with(
        &path,
        8 << 20,
        &[(0, &segment_header(7)), (512, b"EFI PART")],
    );
    let before = fs::read(&path).expect("there");
    assert!(refusal(&path).contains("GPT"));
    assert!(fs::read(&path).expect("there") == before, "changed");
}

#[test]
fn a_file_that_another_user_planted_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    fs::write(&path, "").expect("written");
    let metadata = fs::metadata(&path).expect("there");
    assert_eq!(check_private(&metadata), Ok(()));

    let other = dir.path().join("other");
    fs::hard_link(&path, &other).expect("linked");
    for claimed in [claim(&path), force(&path)] {
        let said = claimed.expect_err("refused").to_string();
        assert!(said.contains("hard link"), "{said}");
    }
    fs::remove_file(&other).expect("removed");
    drop(claim(&path).expect("ours alone"));

    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: a file of another user's takes root");
        return;
    }
    std::os::unix::fs::chown(&path, Some(1), Some(1)).expect("given away");
    for claimed in [claim(&path), force(&path)] {
        let said = claimed.expect_err("refused").to_string();
        assert!(
            said.contains("another user's") && said.contains("remove it"),
            "{said}"
        );
    }
    assert_eq!(fs::metadata(&path).expect("stays").uid(), 1);
}

#[test]
fn what_is_no_file_is_refused_with_its_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let link = |name: &str, to: &Path| -> PathBuf {
        let link = dir.path().join(name);
        std::os::unix::fs::symlink(to, &link).expect("linked");
        link
    };
    let file = dir.path().join("file");
    fs::write(&file, "").expect("written");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .expect("made");
    for (path, says) in [
        (
            link("dangling", &dir.path().join("nowhere")),
            "leads nowhere",
        ),
        (link("to-file", &file), "give the path it leads to"),
        (
            link("to-null", Path::new("/dev/null")),
            "to no block device",
        ),
        (dir.path().to_owned(), "is a directory"),
        (dir.path().join("missing/spill"), "directory does not exist"),
        (
            Path::new("/dev/null").to_owned(),
            "neither a plain file nor a block device",
        ),
        (fifo, "neither a plain file nor a block device"),
    ] {
        for claimed in [claim(&path), force(&path)] {
            let said = claimed.expect_err("refused").to_string();
            assert!(said.contains(says), "{said}");
        }
    }
    assert!(!dir.path().join("nowhere").exists());
}

#[test]
fn what_is_on_a_block_device_is_named_and_left_alone() {
    let Some(disk) = LoopDisk::of(24 << 20) else {
        return;
    };
    let write = |at: u64, bytes: &[u8]| {
        let device = File::options().write(true).open(&disk.path);
        let device = device.expect("there");
        device.write_all_at(bytes, at).expect("written");
        device.sync_all().expect("written");
    };
    drop(claim(&disk.path).expect("all zeroes"));
    let ext4 = ["-q", "-F", "-E", "nodiscard"];
    let cases: [(&str, &[&str], &str); 2] = [
        ("mkfs.ext4", &ext4, "an ext2, ext3 or ext4 file system"),
        ("mkswap", &["--quiet"], "a swap area"),
    ];
    for (program, args, is) in cases {
        // A spill was there before: both leave the first sector as it is, or clear it.
        write(0, &segment_header(7));
        run(program, args, &disk);
        is_left_alone(&disk, &[is]);
    }
    run("mkfs.ext4", &ext4, &disk);
    run("wipefs", &["--all", "--quiet"], &disk);
    is_left_alone(
        &disk,
        &["data, from byte", "wipefs clears its signatures only"],
    );
    run("blkdiscard", &["-fz"], &disk);
    drop(claim(&disk.path).expect("cleared as it was told"));
    for at in [17 << 20, (24 << 20) - 1] {
        write(at, b"x");
        is_left_alone(&disk, &[&format!("byte {at} ")]);
        write(at, &[0]);
    }
    // The label of an old spill is enough of one: what is behind it may be older than that.
    write(17 << 20, b"x");
    write(0, &segment_header(7));
    drop(claim(&disk.path).expect("an old spill"));
}

#[test]
fn what_was_on_a_forced_block_device_is_not_found_there_any_more() {
    let Some(disk) = LoopDisk::of(24 << 20) else {
        return;
    };
    run("mkfs.ext4", &["-q", "-F"], &disk);
    assert!(claim(&disk.path).is_err());
    let found = |disk: &LoopDisk| run("wipefs", &["--no-act"], disk);
    assert!(found(&disk).contains("ext4"));
    drop(force(&disk.path).expect("it is of no worth"));
    assert_eq!(found(&disk), "");
}

#[test]
fn a_link_to_a_block_device_is_followed() {
    let Some(disk) = LoopDisk::of(8 << 20) else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let (link, twice) = (dir.path().join("by-label"), dir.path().join("twice"));
    std::os::unix::fs::symlink(&disk.path, &link).expect("linked");
    std::os::unix::fs::symlink("by-label", &twice).expect("linked");
    for path in [&link, &twice] {
        let claimed = claim(path).expect("a block device");
        assert_eq!(claimed.kind, Kind::BlockDevice);
        let refused = claim(&disk.path).expect_err("in use").to_string();
        assert!(refused.contains("in use"), "{refused}");
    }
}

/// What cannot be told to be empty in time is not taken for it.
#[test]
fn what_takes_too_long_to_read_counts_as_data() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("zeroes");
    fs::write(&path, [0; 4096]).expect("written");
    let file = DirectFile::new(open_found(&path).expect("there"));
    let past = Instant::now() - Duration::from_secs(1);
    let first = |deadline| first_data(&file, 4096, deadline).expect("reads");
    assert_eq!(first(past), FirstData::Unknown);
    assert_eq!(first(Instant::now() + LOOK), FirstData::None);
}

/// A spill of segments 1 and 3, the last of them not full.
fn old_spill() -> File {
    let file = tempfile::tempfile().expect("a file");
    for (segment, len) in [(1, SEGMENT_BYTES), (3, CHUNK + BLOCK as u64)] {
        let mut bytes = vec![7; len as usize];
        let header = segment_header(segment);
        bytes[..header.len()].copy_from_slice(&header);
        let written = file.write_all_at(&bytes, segment * SEGMENT_BYTES);
        written.expect("room");
    }
    file
}

fn again(file: &File) -> File {
    file.try_clone().expect("a descriptor")
}

/// A kill in the middle must not make a spill unknown.
#[test]
fn what_is_half_wiped_is_known_for_a_spill() {
    let (mut steps, mut done) = (0, false);
    while !done {
        let file = old_spill();
        let len = file.metadata().expect("a length").len();
        let mut left = steps;
        let wiped = wipe::wipe_file(&DirectFile::new(again(&file)), 0..len, || {
            left -= 1;
            left >= 0
        });
        done = wiped.expect("a file");
        assert_eq!(not_spilled(file).expect("it is read"), None, "{steps}");
        steps += 1;
    }
    assert!(steps > 5, "{steps}");
}

#[test]
fn what_others_have_written_to_a_spill_is_seen() {
    let file = old_spill();
    file.write_all_at(b"precious", 100).expect("room");
    let what = not_spilled(again(&file)).expect("it is read");
    assert!(what.is_some_and(|what| what.contains("from byte 100 on")));
    file.set_len(0).expect("cut");
    assert_eq!(not_spilled(file).expect("it is read"), None);
}
