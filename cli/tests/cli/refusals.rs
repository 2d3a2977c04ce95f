//! What is refused: nonsense, names that are not served, and what no server can be started with. Each time that
//! is one line, and nothing is left behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use support::{World, can_mount, finish, one_line};

#[test]
fn nonsense_exits_2_with_one_line() {
    let world = World::new();
    let long_name = "x".repeat(65);
    let long_socket = format!("--nbd=unix:/{}", "x".repeat(120));
    let cases: &[(&[&str], &str)] = &[
        (&["serve", "a"], "--size"),
        (&["serve", "--size=1M"], "NAME"),
        (&["serve", "a", "--size=0"], "--size"),
        (&["serve", "a", "--size=4097"], "4096"),
        (&["serve", "a", "--size=17T"], "16T"),
        (&["serve", "a", "--size=99999999T"], "--size"),
        (&["serve", "a", "--size=big"], "--size"),
        (&["serve", "a", "--size=-1"], "--size"),
        (&["serve", "a", "--size", "-1"], "-1"),
        (
            &["serve", "a", "--size=1M", "--mem-limit=4K"],
            "--mem-limit",
        ),
        (&["serve", "a", "--size=1M", "--mem-limit=x"], "--mem-limit"),
        (
            &["serve", "a", "--size=1M", "--backing-size=1M"],
            "--backing",
        ),
        (&["serve", "a", "--size=1M", "--backing="], "--backing"),
        (&["serve", "a", "--size=1M", "--algorithm=lzo"], "lz4"),
        (&["serve", "a", "--size=1M", "--algorithm=zstd:99"], "22"),
        (&["serve", "a", "--size=1M", "--pool=slab"], "zsmalloc"),
        (&["serve", "a", "--size=1M", "--shards=0"], "--shards"),
        (&["serve", "a", "--size=1M", "--nbd=/tmp/x"], "unix:"),
        (&["serve", "a", "--size=1M", "--nbd=tcp:host:port"], "--nbd"),
        (&["serve", "a", "--size=1M", &long_socket], "107"),
        (&["serve", "a", "--size=1M", "--what"], "--what"),
        (&["serve", "a/b", "--size=1M"], "'/'"),
        (&["serve", "", "--size=1M"], "empty"),
        (&["serve", "..", "--size=1M"], ".."),
        (&["serve", "a\nb", "--size=1M"], "control characters"),
        (&["serve", &long_name, "--size=1M"], "64"),
        (&["mount", "--size=0", "mnt"], "--size"),
        (&["mount", "mnt"], "--size"),
        (&["mount", "--size=1G", "--fs=ntfs", "mnt"], "ext4"),
        (&["mount", "--size=1G"], "MOUNTPOINT"),
        (&["mount", "--size=299M", "--fs=xfs", "mnt"], "300M"),
        (&["mount", "--size=16M", "--fs=btrfs", "mnt"], "45M"),
        (&["mount", "--size=64K", "mnt"], "224K"),
        (&["attach", "a", "--nbd", "--fuse"], "--nbd"),
        (&["set", "a"], "KEY=VALUE"),
        (&["set", "a", "mem_limit"], "KEY=VALUE"),
        (&["set", "a", "colour=red"], "mem_limit"),
        (&["set", "a", "mm_stat=1"], "read-only"),
        (&["stat"], "NAME"),
        (&["stat", "a", "colour"], "mm_stat"),
        (&["stat", "a", "compact"], "only be set"),
        (&["stat", "a", "mm_stat", "--json"], "--json"),
        (&["idle", "a", "some"], "seconds"),
        (
            &["serve", "a", "--size=1M", "--writeback-daily-limit=4K"],
            "--writeback-daily-limit",
        ),
        (&["writeback", "a"], "PAGES"),
        (&["writeback", "a", "cold"], "page_index"),
        (&["writeback", "a", "page_indexes=2-1"], "page_indexes"),
        (&["frobnicate"], "frobnicate"),
        (&["serve", "a", "--size=1M", "--pidfile=x"], "--background"),
        (&["serve", "a", "--size=5%%"], "50%"),
        (&["serve", "a", "--size=1M", "--slow=0"], "--slow"),
        (
            &["serve", "a", "--size=1M", "--metrics=tcp:host"],
            "tcp:HOST:PORT",
        ),
        (&["serve", "a", "--size=1M", "--after=5"], "--recompress"),
        (&["serve", "a", "--size=1M", "--snapshot"], "--origin"),
        (&["list", "--output=colour"], "algorithm"),
        (&["stop"], "NAME"),
        (&["umount"], "MOUNTPOINT"),
        (&["map", "a", "a.gif"], ".svg"),
        (&["top", "--interval=0"], "--interval"),
        (&["recompress", "a", "type=warm"], "idle"),
        (&["train-dict", "dict"], "FILES"),
        (
            &["mount", "--rootless", "--size=1G", "--fs=xfs", "mnt"],
            "ext4",
        ),
        (
            &["mount", "--rootless", "--size=1G", "--user=x", "mnt"],
            "--user",
        ),
        (&["completions", "tcsh"], "bash"),
        (&["up", "--check", "--foreground"], "--foreground"),
        (&["up", "a.toml", "b.toml"], "one file"),
    ];
    for (args, says) in cases {
        let line = world.refused(2, args);
        assert!(line.contains(says), "{args:?}: {line}");
        assert!(!line.contains("tip:"), "{args:?}: {line}");
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn names_that_are_not_served_exit_1_with_one_line() {
    let world = World::new();
    for args in [
        &["stat", "a"][..],
        &["set", "a", "mem_limit=1M"],
        &["compact", "a"],
        &["scrub", "a"],
        &["idle", "a"],
        &["writeback", "a", "type=idle"],
        &["reset", "a"],
        &["stop", "a"],
        &["detach", "a"],
    ] {
        let line = world.refused(1, args);
        assert!(line.contains("uzram list"), "{args:?}: {line}");
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

/// `serve` with `options` must fail; returns what it says, with nothing left behind.
pub(crate) fn serve_refused(world: &World, options: &[&str]) -> String {
    let mut args = vec!["serve", "a", "--size=1M"];
    args.extend(options);
    let line = world.refused(1, &args);
    assert_eq!(world.leftovers(), [""; 0], "{args:?}: {line}");
    line
}

#[test]
fn addresses_that_cannot_be_had() {
    let world = World::new();
    let socket = world.path("live.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let address = format!("--nbd=unix:{}", socket.display());
    let line = serve_refused(&world, &[&address]);
    assert!(line.contains("live.sock"), "{line}");
    assert!(UnixStream::connect(&socket).is_ok());

    let plain = world.path("plain");
    fs::write(&plain, "precious").unwrap();
    let address = format!("--nbd=unix:{}", plain.display());
    let line = serve_refused(&world, &[&address]);
    assert!(line.contains("plain"), "{line}");
    assert_eq!(fs::read_to_string(&plain).unwrap(), "precious");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("--nbd=tcp:{}", listener.local_addr().unwrap());
    let line = serve_refused(&world, &[&address]);
    assert!(line.contains("in use"), "{line}");

    let line = serve_refused(&world, &["--nbd=unix:missing/nbd.sock"]);
    assert!(line.contains("mkdir") && line.contains("missing"), "{line}");
}

#[test]
fn fuse_directories_that_will_not_do() {
    if !can_mount("fuse_directories_that_will_not_do") {
        return;
    }
    let world = World::new();
    fs::write(world.path("file"), "").unwrap();
    fs::write(world.dir("full").join("file"), "").unwrap();
    for (dir, says) in [
        ("missing", "mkdir"),
        ("file", "directory"),
        ("full", "empty"),
    ] {
        let line = serve_refused(&world, &["--fuse", dir]);
        assert!(line.contains(says), "{line}");
    }
}

#[test]
fn backings_that_will_not_do() {
    let world = World::new();
    let data = world.path("data");
    fs::write(&data, "precious").unwrap();
    world.dir("directory");
    std::os::unix::fs::symlink("nowhere", world.path("link")).unwrap();
    for (backing, says) in [
        ("missing/spill", "directory"),
        ("directory", "directory"),
        ("link", "symbolic link"),
        ("data", "data"),
        ("/dev/null", "block device"),
    ] {
        let line = serve_refused(&world, &["--mem-limit=1M", "--backing", backing]);
        assert!(line.contains(backing) && line.contains(says), "{line}");
    }
    assert_eq!(fs::read_to_string(&data).unwrap(), "precious");
    assert!(!world.path("nowhere").exists());

    let _user = world.serve(&["user", "--size=1M", "--backing=spill"]);
    let line = world.refused(1, &["serve", "b", "--size=1M", "--backing=spill"]);
    assert!(line.contains("in use"), "{line}");
    assert!(world.path("spill").exists());
}

#[test]
fn run_directories_that_will_not_do() {
    let world = World::new();
    let open = world.dir("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let deep = world.path(&"d".repeat(100));
    let file = world.path("file");
    fs::write(&file, "").unwrap();
    for (dir, says) in [
        (open.as_path(), "only you"),
        (&world.path("missing/run"), "UZRAM_RUNDIR"),
        (&file, "directory"),
        (&deep, "too long"),
    ] {
        let args = ["serve", "a", "--size=1M"];
        let output = finish(world.command(&args).env("UZRAM_RUNDIR", dir));
        let line = one_line(&output, 1, &args);
        assert!(line.contains(says), "{}: {line}", dir.display());
    }
    assert!(fs::read_dir(&open).unwrap().next().is_none());
    assert!(!deep.exists());
}

#[test]
fn a_log_filter_that_makes_no_sense() {
    let world = World::new();
    let args = ["list"];
    let output = finish(world.command(&args).env("UZRAM_LOG", "uzram=loudly"));
    assert!(one_line(&output, 2, &args).contains("UZRAM_LOG"));
}
