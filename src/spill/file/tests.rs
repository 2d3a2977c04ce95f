use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};

use super::*;
use crate::spill::SEGMENT_BYTES;

fn opens(path: &Path) -> Result<FileBacking> {
    FileBacking::open(&BackingConfig::new(path))
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
    let refused = opens(&path).expect_err("locked").to_string();
    assert!(refused.contains("in use"), "{refused}");
    drop(backing);
    assert!(!path.exists());
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
            .write_at(segment * SEGMENT_BYTES + 4096, &[7; 8192])
            .expect("written");
    }
    backing.discard(0..SEGMENT_BYTES);
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
    backing.write_at(0, &header).expect("written");
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
        .write_at(2 * SEGMENT_BYTES + 4096, b"data")
        .expect("written");
    drop(backing);
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);
}

#[test]
fn a_size_that_is_too_small_makes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let small = BackingConfig {
        size: Some(1 << 20),
        ..BackingConfig::new(dir.path().join("spill"))
    };
    assert!(FileBacking::open(&small).expect_err("refused").is_usage());
    assert!(!dir.path().join("spill").exists());
}

/// Who has opened it may remove it; who uses it may have no right to its path.
#[test]
fn a_file_that_was_handed_over_is_emptied_and_keeps_its_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let mut config = BackingConfig::new(&path);
    let handed = config.hand().expect("made");
    assert!(handed.is_made());
    config.handed = Some(handed);
    // Wherever that leads, nobody looks.
    config.path = "/nonexistent/spill".into();
    let backing = FileBacking::open(&config).expect("opened");
    backing.write_at(0, &[7; 4096]).expect("written");
    assert_ne!(fs::metadata(&path).expect("there").len(), 0);
    drop(backing);
    assert_eq!(fs::metadata(&path).expect("there").len(), 0);

    fs::write(&path, "precious").expect("written");
    config.handed = Some(BackingConfig::new(&path).hand().expect("opened"));
    let refused = FileBacking::open(&config)
        .expect_err("not a spill")
        .to_string();
    assert!(refused.contains("is not an old spill"), "{refused}");
    assert_eq!(fs::read(&path).expect("there"), b"precious");
}
