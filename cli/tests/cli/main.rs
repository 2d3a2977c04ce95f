//! The command line from outside: the life of a server here, the rest in modules.

mod algorithms;
mod backing;
mod backing_keep;
mod complete;
mod deputy;
mod dumps;
mod export;
mod keeper;
mod messages;
mod metrics;
mod paths;
mod recompress;
mod refusals;
mod resources;
mod rundir;
mod sandbox;
mod save;
mod scrub;
mod shortage;
mod spills;
mod stopping;
mod swap;
mod systemd;
mod terminal;
mod up_down;
mod users;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use refusals::serve_refused;
use serde_json::Value;
use support::{HANG, Serve, World, can_mount, finish, one_line, signal};

/// What the contract gives a stop.
const STOP: Duration = Duration::from_secs(5);

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
        "slot_table_bytes",
        "dictionary_bytes",
        "table_limit",
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
        support::ended(child, HANG).expect("each one ends");
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
        let status = support::ended(&mut child, HANG).expect("it ends");
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
