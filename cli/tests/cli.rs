//! The command line from outside: refusals, a server's life, and every way it ends.

#[path = "cli/algorithms.rs"]
mod algorithms;
mod common;
#[path = "cli/complete.rs"]
mod complete;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/ends.rs"]
mod ends;
#[path = "cli/export.rs"]
mod export;
#[path = "cli/keep.rs"]
mod keep;
#[path = "cli/metrics.rs"]
mod metrics;
#[path = "cli/recompress.rs"]
mod recompress;
#[path = "cli/save.rs"]
mod save;
#[path = "cli/scrub.rs"]
mod scrub;
#[path = "cli/swap.rs"]
mod swap;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/unit.rs"]
mod unit;
#[path = "cli/words.rs"]
mod words;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{HANG, Serve, World, can_mount, finish, one_line, signal};
use serde_json::Value;

/// What the contract gives a stop.
const STOP: Duration = Duration::from_secs(5);

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
        (&["serve", "a", "--size=1M", "--nbd=tcp:host"], "--nbd"),
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
fn serve_refused(world: &World, options: &[&str]) -> String {
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
fn a_backing_file_goes_with_its_server() {
    let world = World::new();
    let spill = world.path("spill");
    let args = ["spills", "--size=64M", "--mem-limit=1M", "--backing=spill"];
    let is_private = || spill.metadata().unwrap().permissions().mode() & 0o777 == 0o600;

    let mut server = world.serve(&args);
    assert!(is_private());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    assert!(!spill.exists());

    world.serve(&args).kill_9();
    assert!(is_private());
    world.ok(&["detach", "spills"]);
    assert!(!spill.exists());

    // What stands in its place later is somebody else's.
    world.serve(&args).kill_9();
    fs::remove_file(&spill).unwrap();
    fs::write(world.path("other"), "precious").unwrap();
    fs::rename(world.path("other"), &spill).unwrap();
    world.ok(&["detach", "spills"]);
    assert_eq!(fs::read_to_string(&spill).unwrap(), "precious");

    // A start that fails late leaves none either.
    fs::remove_file(&spill).unwrap();
    let _listener = UnixListener::bind(world.path("taken")).unwrap();
    let line = serve_refused(&world, &["--backing=spill", "--nbd=unix:taken"]);
    assert!(line.contains("taken"), "{line}");
    assert!(!spill.exists());
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

#[test]
fn a_servers_life() {
    let world = World::new();
    let mut server = world.serve(&["life", "--size=64M", "--mem-limit=16M"]);
    let dir = world.rundir().join("life");
    for (file, mode) in [("", 0o700), ("nbd.sock", 0o600), ("control.sock", 0o600)] {
        let meta = dir.join(file).metadata().unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{file}");
    }

    let stats: Value = serde_json::from_str(&world.ok(&["stat", "life", "--json"])).unwrap();
    for key in [
        "orig_data_size",
        "compr_data_size",
        "mem_used_total",
        "mem_limit",
        "mem_used_max",
        "same_pages",
        "pages_compacted",
        "huge_pages",
        "huge_pages_since",
        "resident_pages",
        "written_back_pages",
        "backing_bytes_used",
        "backing_bytes_live",
        "backing_bytes_written",
        "backing_bytes_day",
        "bd_reads",
        "bd_writes",
        "damaged_records",
        "failed_reads",
        "failed_writes",
        "rss_bytes",
    ] {
        assert!(stats[key].is_u64(), "{key}: {stats}");
    }
    assert_eq!(stats["disksize"], 64 << 20);
    assert!(world.ok(&["stat", "life"]).contains("64 MiB"));

    assert_eq!(
        world.ok(&["set", "life", "mem_limit=32M", "mem_used_max=0"]),
        ""
    );
    let line = world.refused(2, &["set", "life", "mem_limit=32M", "mem_used_max=7"]);
    assert!(line.contains("mem_used_max"), "{line}");
    let line = world.refused(2, &["set", "life", "mem_limit=4K"]);
    assert!(
        line.contains("32K") && !line.contains("--mem-limit"),
        "{line}"
    );
    assert_eq!(
        world.ok(&["stat", "life", "mem_limit", "comp_algorithm"]),
        "33554432\n[lz4] lz4hc zstd deflate\n"
    );
    let mm_stat = world.ok(&["stat", "life", "mm_stat"]);
    assert_eq!(mm_stat.split_whitespace().count(), 9, "{mm_stat}");
    world.ok(&["set", "life", "mem_limit=0"]);
    assert_eq!(world.ok(&["stat", "life", "mem_limit"]), "0\n");
    assert!(world.ok(&["compact", "life"]).contains("freed"));
    let line = world.refused(1, &["writeback", "life", "type=idle"]);
    assert!(line.contains("no backing"), "{line}");
    let line = world.refused(1, &["writeback", "life", "page_index=16384"]);
    assert!(line.contains("0-16383"), "{line}");
    world.ok(&[
        "set",
        "life",
        "writeback_limit=100",
        "writeback_limit_enable=1",
    ]);
    let limit = world.ok(&["stat", "life", "writeback_limit", "writeback_limit_enable"]);
    assert_eq!(limit, "100\n1\n");
    assert_eq!(world.ok(&["idle", "life"]), "0 pages marked as idle\n");
    assert_eq!(
        world.ok(&["idle", "life", "60"]),
        "0 pages marked as idle\n"
    );
    let line = world.refused(1, &["sync", "life"]);
    assert!(line.contains("no image"), "{line}");
    world.ok(&["reset", "life"]);

    let table = world.ok(&["list"]);
    let row = table.lines().nth(1).unwrap();
    assert!(
        row.starts_with("life ") && row.contains("nbd.sock"),
        "{table}"
    );
    assert!(row.contains(&server.pid().to_string()), "{table}");
    let list: Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    assert_eq!(list[0]["name"], "life");
    assert_eq!(list[0]["pid"], server.pid());

    world.ok(&["stop", "life"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(world.ok(&["list"]).contains("no devices"));
}

#[test]
fn a_backing_is_attached_replaced_and_detached_in_use() {
    let world = World::new();
    let _server = world.serve(&["moves", "--size=64M"]);
    // Where the command runs, not where the server does.
    world.ok(&[
        "set",
        "moves",
        "backing_dev=first.spill",
        "backing_size=32M",
    ]);
    let shown = world.ok(&["stat", "moves", "backing_dev", "backing_size"]);
    let (path, size) = shown.split_once('\n').unwrap();
    assert!(
        path.starts_with('/') && path.ends_with("/first.spill"),
        "{path}"
    );
    assert_eq!(size, "33554432\n");
    let first = std::path::PathBuf::from(path);
    assert!(first.exists());
    world.ok(&["set", "moves", "backing_dev=second.spill"]);
    assert!(!first.exists() && first.with_file_name("second.spill").exists());
    let taken = world.refused(1, &["set", "moves", "backing_dev=second.spill"]);
    assert!(taken.contains("in use"), "{taken}");
    world.ok(&["set", "moves", "backing_dev=none"]);
    assert_eq!(world.ok(&["stat", "moves", "backing_dev"]), "none\n");
    assert!(!first.with_file_name("second.spill").exists());
}

#[test]
fn no_limit_and_no_json() {
    let world = World::new();
    let _server = world.serve(&["free", "--size=1M", "--mem-limit=0"]);
    assert_eq!(world.ok(&["stat", "free", "mem_limit"]), "0\n");
    let line = world.refused(
        2,
        &[
            "serve",
            "b",
            "--size=1M",
            "--backing=b",
            "--backing-size=1M",
        ],
    );
    assert!(line.contains("4M"), "{line}");
}

#[test]
fn a_device_with_an_nbd_client_is_not_reset() {
    let world = World::new();
    let _server = world.serve(&["used", "--size=1M", "--nbd=unix:s"]);
    let uri = format!("nbd+unix:///used?socket={}", world.path("s").display());
    // Connected from the moment it says so to the end of its stdin.
    let mut client = Command::new("nbdsh")
        .args(["-u", &uri, "-c", "h.pwrite(b'x' * 4096, 0)"])
        .args(["-c", "print('up', flush=True)"])
        .args(["-c", "import sys; sys.stdin.read()"])
        // The system's own Python, for which its package is.
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = client.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let line = world.refused(1, &["reset", "used"]);
    assert!(line.contains("in use"), "{line}");
    assert!(world.ok(&["stat", "used", "mm_stat"]).contains(" 4096 "));
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    world.ok(&["reset", "used"]);
    assert!(!world.ok(&["stat", "used", "mm_stat"]).contains(" 4096 "));
}

#[test]
fn idle_control_clients_lock_nobody_out() {
    let world = World::new();
    let _server = world.serve(&["idle", "--size=1M"]);
    let socket = world.rundir().join("idle/control.sock");
    let idle: Vec<_> = (0..100)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    world.ok(&["stat", "idle"]);
    drop(idle);
}

#[test]
fn a_served_name_is_refused_and_goes_on() {
    let world = World::new();
    let server = world.serve(&["one", "--size=1M"]);
    let line = world.refused(1, &["serve", "one", "--size=1M"]);
    assert!(line.contains("already"), "{line}");
    assert!(world.ok(&["list"]).contains(&server.pid().to_string()));
    let _other = world.serve(&["two", "--size=1M"]);
    assert_eq!(world.ok(&["list"]).lines().count(), 3);
}

#[test]
fn many_at_once_get_a_name_once() {
    let world = World::new();
    let mut children: Vec<_> = (0..8)
        .map(|_| {
            let mut command = world.command(&["serve", "race", "--size=1M"]);
            command.stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut ready = 0;
    for child in &mut children {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        ready += usize::from(line == "ready\n");
    }
    world.ok(&["stop", "race"]);
    for child in &mut children {
        common::ended(child, HANG).expect("each one ends");
    }
    assert_eq!(ready, 1);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_a_killed_server_left_is_cleared() {
    let world = World::new();
    let socket = world.path("nbd.sock");
    let address = format!("--nbd=unix:{}", socket.display());
    for verb in ["serve", "stop", "detach"] {
        let mut server = world.serve(&["dead", "--size=1M", &address]);
        server.kill_9();
        assert!(world.ok(&["list"]).contains("dead "), "{verb}");
        let line = world.refused(1, &["stat", "dead"]);
        assert!(line.contains("uzram detach dead"), "{line}");
        assert!(socket.exists());
        if verb == "serve" {
            let mut server = world.serve(&["dead", "--size=1M"]);
            assert!(!socket.exists());
            world.ok(&["stop", "dead"]);
            assert_eq!(server.ended(HANG), Some(0));
        } else {
            world.ok(&[verb, "dead"]);
        }
        assert!(!socket.exists(), "{verb}");
        assert_eq!(world.leftovers(), [""; 0], "{verb}");
    }
}

#[test]
fn a_dead_mount_is_cleared() {
    if !can_mount("a_dead_mount_is_cleared") {
        return;
    }
    let world = World::new();
    let dir = world.dir("fuse");
    let args = ["dead", "--size=1M", "--fuse=fuse"];
    world.serve(&args).kill_9();
    assert!(fs::metadata(dir.join("disk")).is_err());
    let mut server = world.serve(&args);
    assert_eq!(fs::metadata(dir.join("disk")).unwrap().len(), 1 << 20);
    server.kill_9();
    world.ok(&["detach", "dead"]);
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(fs::read_dir(&dir).unwrap().next().is_none());
}

#[test]
fn a_server_of_another_pid_namespace_hides_no_other() {
    let world = World::new();
    let _server = world.serve(&["there", "--size=1M"]);
    let elsewhere = |args: &[&str]| {
        let uzram = world.command(args);
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork"])
            .arg(uzram.get_program())
            .args(uzram.get_args())
            .env("UZRAM_RUNDIR", world.rundir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(&mut command)
    };
    let list = elsewhere(&["list"]);
    let complaint = String::from_utf8(list.stderr).unwrap();
    if complaint.starts_with("unshare:") {
        eprintln!("SKIPPED: a_server_of_another_pid_namespace_hides_no_other: {complaint}");
        return;
    }
    let table = String::from_utf8(list.stdout).unwrap();
    let row = table
        .lines()
        .nth(1)
        .unwrap_or_else(|| panic!("{complaint}"));
    assert!(
        row.starts_with("there ") && row.contains(" ?  unix:"),
        "{row}"
    );
    let list = elsewhere(&["list", "--json"]);
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(
        (&list[0]["pid"], &list[0]["alive"]),
        (&Value::Null, &true.into())
    );
    assert!(elsewhere(&["stat", "there"]).status.success());
    let args = ["stop", "there"];
    let line = one_line(&elsewhere(&args), 1, &args);
    assert!(line.contains("stop it from there"), "{line}");
    world.ok(&["stop", "there"]);
}

#[test]
fn systemd_is_told() {
    let world = World::new();
    let path = world.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(HANG)).unwrap();
    let mut command = world.command(&["serve", "unit", "--size=1M"]);
    let mut server = Serve::start(command.env("NOTIFY_SOCKET", &path));
    let next = || {
        let mut message = [0; 256];
        let len = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    assert_eq!(next(), "READY=1");
    signal(server.pid(), "TERM");
    assert_eq!(next(), "STOPPING=1");
    assert_eq!(server.ended(STOP), Some(0));
}

#[test]
fn help_teaches_and_survives_a_closed_pipe() {
    let world = World::new();
    let verbs = [
        "serve",
        "mount",
        "umount",
        "attach",
        "detach",
        "list",
        "stat",
        "metrics",
        "top",
        "map",
        "up",
        "down",
        "set",
        "compact",
        "scrub",
        "idle",
        "writeback",
        "recompress",
        "reset",
        "completions",
        "man",
        "stop",
    ];
    for verb in verbs {
        assert!(world.ok(&[verb, "--help"]).contains("EXAMPLES"), "{verb}");
    }
    assert!(world.ok(&["--version"]).starts_with("uzram "));
    let pages = world.dir("man");
    world.ok(&["man", pages.to_str().unwrap()]);
    for verb in verbs {
        let page = fs::read_to_string(pages.join(format!("uzram-{verb}.1"))).unwrap();
        assert!(page.contains("EXAMPLES"), "{verb}");
    }
    let line = world.refused(1, &["man", "/dev/full"]);
    assert!(line.contains("/dev/full"), "{line}");
    let full = Path::new("/dev/full");
    for args in [&["--help"][..], &["list"], &["list", "--json"]] {
        let mut child = world.command(args).spawn().unwrap();
        drop(child.stdout.take());
        let status = common::ended(&mut child, HANG).expect("it ends");
        assert!(status.success(), "{args:?}: {status}");
    }
    let mut list = world.command(&["list"]);
    list.stdout(fs::File::options().write(true).open(full).unwrap());
    let output = list.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("No space left")
    );
}
