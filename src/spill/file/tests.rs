use super::*;
use crate::spill::log::SEGMENT_HEADER_LEN;

fn opens(path: &Path) -> Result<FileBacking> {
    FileBacking::open(&BackingConfig::new(path))
}

fn refusal(path: &Path) -> String {
    opens(path).expect_err("refused").to_string()
}

#[test]
fn a_file_is_made_private_and_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let backing = opens(&path).expect("made");
    assert_eq!(
        fs::metadata(&path).expect("there").permissions().mode() & 0o7777,
        0o600
    );
    assert!(refusal(&path).contains("in use"));
    drop(backing);
    assert!(!path.exists());
}

#[test]
fn a_file_that_another_locks_first_is_left_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let (file, made) = open(&path).expect("made");
    let theirs = opens(&path).expect("nobody has locked it");
    let refused = FileBacking::claim(file, made, &BackingConfig::new(&path));
    let refused = refused.expect_err("in use").to_string();
    assert!(made && refused.contains("in use"), "{refused}");
    assert!(theirs.is_at_path().expect("there"));
}

#[test]
fn what_is_wiped_is_overwritten_where_nothing_can_be_given_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let backing = FileBacking::open(&BackingConfig {
        keep: BackingKeep::Wipe,
        ..BackingConfig::new(&path)
    });
    let backing = backing.expect("made");
    backing.discards.store(false, Relaxed);
    let file = File::open(&path).expect("there");
    let holds_data = |at: u64| {
        let mut bytes = [0; 8192];
        file.read_exact_at(&mut bytes, at).expect("there");
        bytes.iter().any(|&byte| byte != 0)
    };
    for segment in [0, 2] {
        backing
            .write(StoreSegment(segment), 4096, &[7; 8192])
            .expect("written");
    }
    backing.discard(StoreSegment(0));
    let second = 2 * SEGMENT_BYTES + 4096;
    assert!(!holds_data(4096) && holds_data(second));
    drop(backing);
    assert!(!path.exists() && !holds_data(second));
}

#[test]
fn what_is_kept_stays_unless_there_is_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let config = BackingConfig {
        keep: BackingKeep::Keep,
        ..BackingConfig::new(&path)
    };
    drop(FileBacking::open(&config).expect("made"));
    assert!(!path.exists());
    let backing = FileBacking::open(&config).expect("made");
    let header = crate::spill::log::segment_header(7);
    backing.write(StoreSegment(0), 0, &header).expect("written");
    drop(backing);
    assert_eq!(fs::read(&path).expect("there"), header);
    drop(opens(&path).expect("an old spill"));
}

#[test]
fn a_file_that_was_there_is_emptied_and_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    fs::write(&path, vec![0; 5 << 20]).expect("written");
    let backing = opens(&path).expect("only zeroes");
    backing
        .write(StoreSegment(2), 4096, b"data")
        .expect("written");
    drop(backing);
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);
}

#[test]
fn an_old_spill_is_taken_over_wherever_its_data_begins() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    for segment in [0, 3] {
        let file = File::create(&path).expect("made");
        let header = crate::spill::log::segment_header(7);
        assert_eq!(header.len(), SEGMENT_HEADER_LEN as usize);
        file.write_all_at(&header, segment * SEGMENT_BYTES)
            .expect("written");
        file.write_all_at(&[9; 100], segment * SEGMENT_BYTES + 64)
            .expect("written");
        drop(opens(&path).expect("an old spill"));
    }
}

#[test]
fn other_peoples_data_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    // Where ext4, btrfs, ISO 9660 and a partition table at the end have their signatures.
    for at in [1080, 65_600, 32_769, (6 << 20) - 512] {
        let mut image = vec![0; 6 << 20];
        image[at..at + 8].copy_from_slice(b"_BHRfS_M");
        fs::write(&path, &image).expect("written");
        assert!(refusal(&path).contains("not an old spill"));
        assert!(fs::read(&path).expect("there") == image, "changed");
    }
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
    assert!(refusal(&path).contains("hard link"));
    fs::remove_file(&other).expect("removed");
    drop(opens(&path).expect("ours alone"));

    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: a file of another user's takes root");
        return;
    }
    std::os::unix::fs::chown(&path, Some(1), Some(1)).expect("given away");
    let said = refusal(&path);
    assert!(
        said.contains("another user's") && said.contains("remove it"),
        "{said}"
    );
    assert_eq!(fs::metadata(&path).expect("stays").uid(), 1);
}

#[test]
fn what_is_no_file_is_refused_with_its_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).expect("linked");
    for (path, says) in [
        (link.as_path(), "give the path it leads to"),
        (dir.path(), "is a directory"),
        (
            &dir.path().join("missing/spill"),
            "directory does not exist",
        ),
        (
            Path::new("/dev/null"),
            "neither a plain file nor a block device",
        ),
    ] {
        let said = refusal(path);
        assert!(said.contains(says), "{said}");
    }
    let small = BackingConfig {
        size: Some(1 << 20),
        ..BackingConfig::new(dir.path().join("spill"))
    };
    assert!(FileBacking::open(&small).expect_err("refused").is_usage());
    assert!(!dir.path().join("spill").exists());
}
