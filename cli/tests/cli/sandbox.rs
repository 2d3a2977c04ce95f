//! The rights that a server gives up.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::export::nbdsh_at;
use crate::up_down::configure;
use support::{HANG, Serve, World, can_mount, signal};

/// The capabilities that a server of root's may keep: those to override access to and ownership of files, to bind ports below
/// 1024, to lock memory, to unmount, and to use what is reserved.
const KEPT: u64 = 1 << 1 | 1 << 3 | 1 << 10 | 1 << 14 | 1 << 21 | 1 << 24;

/// What `/proc/PID/status` says of a thread.
struct Status(String);

impl Status {
    fn own() -> Self {
        Self(fs::read_to_string("/proc/thread-self/status").unwrap())
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.0.lines();
        let found = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found
            .unwrap_or_else(|| panic!("{name} in {}", self.0))
            .trim()
    }

    fn filters(&self) -> u32 {
        self.field("Seccomp_filters").parse().unwrap()
    }

    fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.field(set), 16).unwrap()
    }
}

/// The threads of a server that do not end meanwhile.
fn threads(server: &Serve) -> Vec<Status> {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status"));
    let found: Vec<_> = tasks
        .filter_map(|task| status(task.unwrap()).ok())
        .map(Status)
        .collect();
    assert!(found.len() > 2, "{} threads", found.len());
    found
}

/// What a thread has that it is to have given up.
fn too_much(thread: &Status) -> Option<String> {
    let confined = thread.field("NoNewPrivs") == "1" && thread.filters() > Status::own().filters();
    let sets = ["CapEff", "CapPrm", "CapInh"];
    let kept = sets.iter().any(|set| thread.capabilities(set) & !KEPT != 0);
    (kept || !confined).then(|| thread.0.clone())
}

#[test]
fn every_thread_of_a_server_has_given_up_what_it_never_needs() {
    const TEST: &str = "every_thread_of_a_server_has_given_up_what_it_never_needs";
    let world = World::new();
    world.dir("fuse");
    let mut ways = vec![&["a", "--size=1M"][..], &["a", "--size=1M", "--swap"]];
    if can_mount(TEST) {
        ways.push(&["a", "--size=1M", "--fuse=fuse"]);
    } else {
        // It needs root, too.
        ways.pop();
    }
    for args in ways {
        let mut server = world.serve(args);
        // Those that only wait or write the log may get to it after the server is ready.
        let begun = Instant::now();
        while let Some(kept) = threads(&server).iter().find_map(too_much) {
            assert!(begun.elapsed() < HANG, "{args:?}: {kept}");
            thread::sleep(Duration::from_millis(10));
        }
        signal(server.pid(), "TERM");
        assert_eq!(server.ended(HANG), Some(0));
        assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    }
}

#[test]
fn a_server_without_a_sandbox_keeps_its_rights() {
    let world = World::new();
    let server = world.serve(&["a", "--size=1M", "--sandbox=off"]);
    let own = Status::own();
    let threads = threads(&server);
    for thread in &threads {
        for name in ["NoNewPrivs", "Seccomp_filters"] {
            assert_eq!(thread.field(name), own.field(name), "{name}");
        }
    }
    // But for those that only wait, or write the log.
    let keep_all = |thread: &&Status| thread.field("CapEff") == own.field("CapEff");
    assert!(threads.iter().filter(keep_all).count() + 2 >= threads.len());
}

/// A server with `--sandbox strict`, if the kernel has what that needs.
fn strict_server(world: &World, args: &[&str]) -> Option<Serve> {
    let mut child = world.command(args).spawn().unwrap();
    let mut said = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut said).unwrap();
    if said == "ready\n" {
        return Some(Serve { child });
    }
    let mut complaint = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut complaint).unwrap();
    child.wait().unwrap();
    assert!(complaint.contains("Linux 6.2 or newer"), "{complaint}");
    eprintln!("SKIPPED: a test of --sandbox strict: {complaint}");
    None
}

/// It could not unmount it, nor free the kernel's device.
#[test]
fn a_strict_server_is_not_attached() {
    if !can_mount("a_strict_server_is_not_attached") {
        return;
    }
    let world = World::new();
    let args = ["serve", "kept", "--size=64M", "--sandbox=strict"];
    let Some(_server) = strict_server(&world, &args) else {
        return;
    };
    for more in [&[][..], &["--nbd"]] {
        let line = world.refused(1, &[&["attach", "kept"], more].concat());
        assert!(line.contains("serve it with --sandbox on"), "{line}");
    }
    let config = configure(
        &world,
        "[m]\nsize = \"64M\"\nmountpoint = \"m\"\nsandbox = \"strict\"\n",
    );
    let line = world.refused(2, &["up", config]);
    assert!(line.contains("use --sandbox on"), "{line}");
}

#[test]
fn a_strict_server_reaches_no_files_but_those_of_its_options() {
    let world = World::new();
    for dir in ["spills", "elsewhere"] {
        world.dir(dir);
    }
    let args = [
        "serve",
        "kept",
        "--size=64M",
        "--mem-limit=1M",
        "--backing=spills/spill",
        "--sandbox=strict",
    ];
    let Some(mut server) = strict_server(&world, &args) else {
        return;
    };
    let socket = world.rundir().join("kept/nbd.sock");
    nbdsh_at(
        &format!("nbd+unix:///kept?socket={}", socket.display()),
        "import os\nh.connect_uri(uri)\nfor i in range(8): h.pwrite(os.urandom(1 << 20), i << 20)",
    );
    world.ok(&["save", "kept", "spills/image"]);
    world.ok(&["set", "kept", "backing_dev=spills/other"]);
    let elsewhere = || fs::read_dir(world.path("elsewhere")).unwrap().count();
    for request in [
        "\"op\":\"save\",\"last\":false,\"path\":",
        "\"op\":\"set\",\"attribute\":\"backing_dev\",\"value\":",
    ] {
        let mut client = UnixStream::connect(world.rundir().join("kept/control.sock")).unwrap();
        let path = world.path("elsewhere/file");
        writeln!(client, "{{{request}\"{}\"}}", path.display()).unwrap();
        let mut answer = String::new();
        BufReader::new(client).read_line(&mut answer).unwrap();
        assert!(answer.contains("Permission denied"), "{answer}");
    }
    assert_eq!(elsewhere(), 0);
    fs::write(world.path("elsewhere/dictionary"), "words").unwrap();
    let dictionary = "algorithm_params=dict=elsewhere/dictionary";
    let line = world.refused(1, &["set", "kept", "comp_algorithm=zstd", dictionary]);
    assert!(line.contains("--sandbox strict: name a file in"), "{line}");
    // What a command opens for it is no file that it reaches.
    world.ok(&["save", "kept", "elsewhere/image"]);
    world.ok(&["set", "kept", "backing_dev=elsewhere/spill"]);
    assert_eq!(elsewhere(), 3);
    world.ok(&["stop", "kept"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    assert_eq!(elsewhere(), 2);
    let left: Vec<_> = fs::read_dir(world.path("spills")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");

    let line = world.refused(
        2,
        &[
            "serve",
            "f",
            "--size=1M",
            "--fuse=spills",
            "--sandbox=strict",
        ],
    );
    assert!(line.contains("--sandbox strict"), "{line}");
}
