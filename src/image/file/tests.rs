use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{FlockOperation, flock};

use super::*;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("there").file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().expect("text"))
        .collect();
    names.sort();
    names
}

fn target(path: &Path) -> Target {
    Target::of(path, Links::Follow).expect("a place")
}

/// With a name, as where the file system has no files without one; and without.
#[test]
fn a_file_is_not_at_its_place_until_it_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let unnamed = || {
        ImageFile::unnamed(target(&path), 0o600)
            .ok()
            .expect("O_TMPFILE")
    };
    let named = || ImageFile::named(target(&path), 0o600).expect("a file");
    let makers: [(&dyn Fn() -> ImageFile, usize); 2] = [(&unnamed, 0), (&named, 1)];
    for (make, beside) in makers {
        let file = make();
        assert_eq!(names(dir.path()).len(), beside);
        drop(file);
        assert!(names(dir.path()).is_empty());
        for text in [b"whole", b"other"] {
            let mut file = make();
            file.write_all(text).expect("written");
            file.sync().expect("on disk");
            file.commit().expect("in place");
            assert_eq!(names(dir.path()), ["image"]);
            assert_eq!(fs::read(&path).expect("there"), text);
        }
        fs::remove_file(&path).expect("there");
    }
}

/// What a kill leaves, in the moment before a file takes its place as well.
#[test]
fn what_a_killed_save_left_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let killed = |mut file: ImageFile| {
        // As the kernel does: nothing but its lock is gone.
        let name = file.private.take().expect("a name");
        flock(&file.file, FlockOperation::Unlock).expect("locked");
        name
    };
    killed(ImageFile::named(target(&path), 0o600).expect("a file"));
    let mut file = ImageFile::unnamed(target(&path), 0o600)
        .ok()
        .expect("O_TMPFILE");
    file.private = Some(private_name::give(file.target.dir(), &file.file).expect("a name"));
    killed(file);
    let lives = ImageFile::named(target(&path), 0o600).expect("a file");

    // Not ours, or not provably.
    let other = |name: &str| dir.path().join(format!(".uzram-save-{name}"));
    for theirs in ["notes", "sevente", "six.67", "linked"] {
        fs::write(other(theirs), "precious").expect("room");
    }
    fs::hard_link(other("linked"), other("twolin")).expect("a link");
    symlink("nowhere", other("symlnk")).expect("a link");
    fs::create_dir(other("direct")).expect("a directory");
    let stay = names(dir.path());

    write_whole(&path, Links::Follow, b"whole", 0o600).expect("written");
    let now = names(dir.path());
    assert_eq!(stay.len() - 2 + 1, now.len(), "{stay:?} {now:?}");
    let living = lives.private.clone().expect("a name");
    for name in [
        "notes", "sevente", "six.67", "linked", "twolin", "symlnk", "direct",
    ] {
        assert!(now.contains(&format!(".uzram-save-{name}")), "{now:?}");
    }
    assert!(
        now.contains(&living) && now.contains(&"image".to_owned()),
        "{now:?}"
    );
    lives.commit().expect("in place");
}

#[test]
fn a_link_stays_and_what_it_leads_to_is_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let (there, link) = (dir.path().join("there"), dir.path().join("link"));
    fs::create_dir(&there).expect("a directory");
    fs::write(there.join("image"), "old").expect("room");
    symlink("first", &link).expect("a link");
    symlink("there/image", dir.path().join("first")).expect("a link");
    write_whole(&link, Links::Follow, b"new", 0o600).expect("written");
    assert_eq!(names(&there), ["image"]);
    assert_eq!(fs::read(there.join("image")).expect("there"), b"new");
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());

    let error = write_whole(&link, Links::Refuse, b"newer", 0o600).expect_err("a link");
    assert!(error.to_string().contains("symbolic link"), "{error}");
    fs::remove_file(there.join("image")).expect("there");
    let error = ImageFile::create(&link).err().expect("it leads nowhere");
    assert!(error.to_string().contains("leads nowhere"), "{error}");
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    assert!(names(&there).is_empty());
}

#[test]
fn a_whole_file_takes_the_place_of_a_regular_one_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("list");
    for text in ["one", "another, longer", "last"] {
        write_whole(&path, Links::Refuse, text.as_bytes(), 0o640).expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), text);
    }
    let mode = fs::metadata(&path).expect("there").permissions().mode();
    // The umask may take some away.
    assert!(
        mode & 0o777 & !0o640 == 0 && mode & 0o600 == 0o600,
        "{mode:o}"
    );
    for links in [Links::Follow, Links::Refuse] {
        let error = write_whole(dir.path(), links, b"", 0o600).expect_err("a directory");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
    assert_eq!(names(dir.path()), ["list"]);
}
