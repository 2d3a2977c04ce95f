//! Every way a server ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::STOP;
use support::full_pipe;
use support::{HANG, Serve, World, can_mount, eventually, signal};

#[test]
fn either_signal_stops_an_idle_server() {
    for name in ["TERM", "INT"] {
        let world = World::new();
        let mut server =
            world.serve(&["idle", "--size=1M", "--nbd=unix:s", "--nbd=tcp:127.0.0.1:0"]);
        signal(server.pid(), "HUP");
        assert!(world.path("s").exists());
        world.ok(&["stat", "idle"]);
        signal(server.pid(), name);
        assert_eq!(server.ended(STOP), Some(0), "{name}");
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("s").exists());
    }
}

/// Neither whoever started it nor the service manager need read what it says.
#[test]
fn a_server_whose_output_is_full_starts_serves_and_stops() {
    let world = World::new();
    let manager = UnixDatagram::bind(world.path("notify")).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"x", world.path("notify")).is_ok() {}
    let (unread, full) = full_pipe();
    let mut command = world.command(&["serve", "full", "--size=1M", "-vv"]);
    command
        .env("NOTIFY_SOCKET", world.path("notify"))
        .stderr(full.try_clone().unwrap())
        .stdout(full);
    let mut server = Serve {
        child: command.spawn().unwrap(),
    };
    let begun = Instant::now();
    while !world.run(&["stat", "full"]).status.success() {
        assert!(begun.elapsed() < HANG, "it serves");
    }
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
    drop((manager, unread));
}

#[test]
fn the_last_line_is_written_before_the_end() {
    let world = World::new();
    let mut command = world.command(&["serve", "last", "--size=1M"]);
    command.stderr(Stdio::piped());
    let mut server = Serve::start(&mut command);
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    let mut said = String::new();
    let mut stderr = server.child.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert!(said.trim_end().ends_with("stopping last"), "{said}");
}

#[test]
fn sigterm_under_load_leaves_nothing() {
    let fuse = can_mount("the FUSE half of sigterm_under_load_leaves_nothing");
    let world = World::new();
    let mut args = vec!["load", "--size=256M", "--nbd=unix:s"];
    if fuse {
        world.dir("fuse");
        args.push("--fuse=fuse");
    }
    let mut server = world.serve(&args);
    // Clients that say nothing, that say half of something, and that never stop.
    let silent: Vec<_> = (0..20)
        .map(|_| UnixStream::connect(world.path("s")).unwrap())
        .collect();
    let mut half = UnixStream::connect(world.rundir().join("load/control.sock")).unwrap();
    half.write_all(b"{\"op\":").unwrap();
    let uri = format!("nbd+unix:///load?socket={}", world.path("s").display());
    let writer = |script: String| {
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stderr(Stdio::null());
        command.spawn().unwrap()
    };
    let random = world.path("random");
    let fill = format!("head -c 128M /dev/urandom > {0}", random.display());
    assert!(
        Command::new("sh")
            .args(["-c", &fill])
            .status()
            .unwrap()
            .success()
    );
    let mut writers = vec![writer(format!(
        "while nbdcopy --synchronous {} '{uri}'; do :; done",
        random.display()
    ))];
    if fuse {
        writers.push(writer(format!(
            "while dd if={} of={}/disk bs=1M conv=notrunc,nocreat oflag=direct; do :; done",
            random.display(),
            world.path("fuse").display(),
        )));
    }
    eventually("written to", || {
        let stats: serde_json::Value =
            serde_json::from_str(&world.ok(&["stat", "load", "--json"])).unwrap();
        stats["orig_data_size"].as_u64().unwrap() > 0
    });
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!world.path("s").exists());
    for writer in &mut writers {
        support::ended(writer, HANG).expect("writers end with their server");
    }
    drop((silent, half));
}

#[test]
fn a_second_signal_exits_at_once() {
    if !can_mount("a_second_signal_exits_at_once") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    // A stop in order may be over before the second signal on a machine that is busy.
    let is_cut_short = (0..10).any(|_| {
        let metrics = world.path("m.prom");
        let _ = fs::remove_file(&metrics);
        let args = ["two", "--size=1M", "--fuse=fuse", "--metrics=file:m.prom"];
        let mut server = world.serve(&args);
        // By then another's.
        fs::write(&metrics, "precious").unwrap();
        // An open file holds up an orderly unmount for half a second.
        let open = fs::File::open(world.path("fuse/disk")).unwrap();
        let mut log = BufReader::new(server.child.stderr.take().unwrap()).lines();
        signal(server.pid(), "TERM");
        let stopping = log.find(|line| line.as_ref().unwrap().contains("stopping"));
        assert!(stopping.is_some());
        signal(server.pid(), "TERM");
        let code = server.ended(STOP);
        drop(open);
        assert_eq!(world.leftovers(), [""; 0]);
        assert!([Some(0), Some(1)].contains(&code), "{code:?}");
        assert_eq!(fs::read_to_string(&metrics).unwrap(), "precious");
        code == Some(1)
    });
    assert!(is_cut_short);
}

#[test]
fn a_small_stack_will_do() {
    let world = World::new();
    let with_little = |args: &[&str]| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -s 64; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_uzram"))
            .args(args)
            .env("UZRAM_RUNDIR", world.rundir())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let mut server = Serve::start(&mut with_little(&["serve", "small", "--size=1M"]));
    for args in [&["list"][..], &["map", "small"], &["completions", "bash"]] {
        let output = support::finish(&mut with_little(args));
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
}

#[test]
fn a_frozen_server_is_killed() {
    let world = World::new();
    let mut server = world.serve(&["frozen", "--size=1M"]);
    signal(server.pid(), "STOP");
    world.ok(&["stop", "frozen"]);
    assert_eq!(server.ended(HANG), None);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn strange_things_in_the_run_directory_do_not_fail_a_stop() {
    let world = World::new();
    let mut server = world.serve(&["odd", "--size=1M", "--nbd=unix:s"]);
    let odd = world.rundir().join("odd");
    fs::create_dir(odd.join("sub")).unwrap();
    fs::write(odd.join("file"), "").unwrap();
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    assert!(!world.path("s").exists());
    assert!(world.ok(&["list"]).contains("no devices"));
    let mut server = world.serve(&["odd", "--size=1M"]);
    fs::remove_dir(odd.join("sub")).unwrap();
    fs::remove_file(odd.join("file")).unwrap();
    world.ok(&["stop", "odd"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_frozen_backing_does_not_hold_up_a_stop() {
    if !can_mount("a_frozen_backing_does_not_hold_up_a_stop") {
        return;
    }
    let world = World::new();
    let (image, slow) = (world.path("image"), world.dir("slow"));
    world.dir("fuse");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    tool(&["mkfs.ext4", "-q", image.to_str().unwrap()]);
    tool(&[
        "mount",
        "-o",
        "loop",
        image.to_str().unwrap(),
        slow.to_str().unwrap(),
    ]);
    let mut server = world.serve(&[
        "cold",
        "--size=8M",
        "--backing=slow/spill",
        "--mem-limit=1M",
        "--fuse=fuse",
        "--nbd=unix:s",
    ]);
    tool(&["fsfreeze", "-f", slow.to_str().unwrap()]);
    let frozen = Frozen(slow.clone());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(STOP), Some(0));
    assert!(!world.path("s").exists());
    assert_eq!(world.mounts(), [slow.to_str().unwrap()]);
    drop(frozen);
    world.ok(&["detach", "cold"]);
    assert!(!slow.join("spill").exists());
    assert!(fs::read_dir(world.rundir()).unwrap().next().is_none());
    tool(&["umount", slow.to_str().unwrap()]);
}

/// A frozen file system, which nothing gets rid of until it is thawed.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

fn tool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

#[test]
fn who_watches_is_told_of_the_end() {
    let world = World::new();
    let mut server = world.serve(&["seen", "--size=1M"]);
    let mut command = world.command(&["stat", "seen", "initstate", "--watch"]);
    let mut watch = command.spawn().unwrap();
    let mut shown = BufReader::new(watch.stdout.take().unwrap());
    let mut line = String::new();
    shown.read_line(&mut line).unwrap();
    assert_eq!(line, "1\n");
    world.ok(&["stop", "seen"]);
    assert_eq!(server.ended(STOP), Some(0));
    let output = watch.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("control.sock") && said.contains("ended"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}
