//! Paths that users name, of what is no file: nothing waits, and nothing is read for ever.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, mkfifoat};

use support::World;

fn mkfifo(at: &Path) {
    mkfifoat(CWD, at, Mode::RUSR | Mode::WUSR).unwrap();
}

#[test]
fn a_fifo_or_a_device_holds_up_no_command_and_stays() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=4M", "--recompress=zstd:3"]);
    for name in ["fifo", "fifo.conf", "fifo.svg"] {
        mkfifo(&world.path(name));
    }
    for path in ["fifo", "/dev/zero"] {
        let line = world.refused(1, &["serve", "b", &format!("--restore={path}")]);
        assert!(line.contains("not a regular file"), "{line}");
        let line = world.refused(1, &["mount", "--name=b", &format!("--restore={path}"), "."]);
        assert!(
            line.contains("not a regular file") || line.contains("root"),
            "{line}"
        );
        for verb in ["up", "down"] {
            let line = world.refused(1, &[verb, "--config", path]);
            assert!(line.contains("not a regular file"), "{line}");
        }
        let dictionary = format!("algorithm_params=priority=1 level=3 dict={path}");
        let line = world.refused(1, &["set", "vm", &dictionary]);
        assert!(line.contains("not a regular file"), "{line}");
        for args in [["train-dict", "dict", path], ["save", "vm", path]] {
            let line = world.refused(1, &args);
            assert!(line.contains("not a regular file"), "{line}");
        }
        let (origin, backing) = (format!("--origin={path}"), format!("--backing={path}"));
        for options in [&[&*origin][..], &["--size=4M", "--mem-limit=1M", &backing]] {
            let line = world.refused(1, &[&["serve", "b"], options].concat());
            assert!(line.contains("neither a plain file"), "{line}");
        }
    }
    world.refused(1, &["up", "--config=fifo.conf"]);
    world.refused(1, &["map", "vm", "fifo.svg"]);
    for name in ["fifo", "fifo.conf", "fifo.svg"] {
        let kind = fs::symlink_metadata(world.path(name)).unwrap().file_type();
        assert!(kind.is_fifo(), "{name}");
    }
}

/// As large as it likes: it is not read.
#[test]
fn a_file_is_read_no_further_than_it_makes_sense() {
    let world = World::new();
    let file = fs::File::create(world.path("large.toml")).unwrap();
    file.set_len(1 << 40).unwrap();
    let line = world.refused(1, &["up", "--config=large.toml"]);
    assert!(line.contains("longer than 16 MiB"), "{line}");
    let _server = world.serve(&["vm", "--size=4M", "--recompress=zstd:3"]);
    let dictionary = "algorithm_params=priority=1 level=3 dict=large.toml";
    let line = world.refused(1, &["set", "vm", dictionary]);
    assert!(line.contains("longer than 1 MiB"), "{line}");
}
