//! Servers that run as another user, and their keepers (root).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::export::nbdsh_at;
use support::{HANG, Serve, World, can_mount, eventually, finish, one_line, signal};

/// Who is there on every machine.
const USER: &str = "daemon";
const UID: u32 = 1;

/// Whether a server can be had run as another user; says loudly if not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    if !root {
        eprintln!("SKIPPED: {test} needs root");
    }
    root
}

/// One that only root may enter.
pub(crate) fn closed_world() -> World {
    let world = World::new();
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(world.path(""), private).unwrap();
    world
}

/// A server of another user, and its keeper.
pub(crate) struct Pair {
    pub(crate) keeper: Serve,
    pub(crate) server: u32,
}

impl Pair {
    pub(crate) fn serve(world: &World, args: &[&str]) -> Self {
        let user = format!("--user={USER}");
        let keeper = world.serve(&[&["vm", &user], args].concat());
        let list: Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
        let pid = |key: &str| u32::try_from(list[0][key].as_u64().expect(key)).unwrap();
        assert_eq!(pid("keeper_pid"), keeper.pid());
        assert_ne!(pid("pid"), keeper.pid());
        Self {
            keeper,
            server: pid("pid"),
        }
    }

    fn is_gone(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server));
        // Or nobody has collected it.
        status.is_err() || status.is_ok_and(|status| status.contains("State:\tZ"))
    }

    /// What the keeper said until its end.
    pub(crate) fn said(&mut self) -> String {
        let mut said = String::new();
        let mut stderr = self.keeper.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        said
    }
}

fn uri(world: &World) -> String {
    let socket = world.rundir().join("vm/nbd.sock");
    format!("nbd+unix:///vm?socket={}", socket.display())
}

/// More than the memory limit of the tests, so that some is spilled; read back.
fn write_and_read(world: &World) {
    let script = "import os\nh.connect_uri(uri)\ndata = [os.urandom(1 << 20) for _ in range(8)]\n\
                  for i in range(8): h.pwrite(data[i], i << 20)\n\
                  for i in range(8): assert h.pread(1 << 20, i << 20) == data[i]";
    nbdsh_at(&uri(world), script);
}

/// What a thread may do, in `/proc/PID/status`.
fn rights(status: &str) -> [String; 6] {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let names = [
        "Uid:",
        "Groups:",
        "CapPrm:",
        "CapEff:",
        "CapAmb:",
        "NoNewPrivs:",
    ];
    names.map(field)
}

#[test]
fn a_server_of_another_user_has_no_right_of_root_s() {
    const TEST: &str = "a_server_of_another_user_has_no_right_of_root_s";
    if !is_root(TEST) {
        return;
    }
    let mut ways = vec![
        &["--size=64M", "--mem-limit=1M", "--backing=spill"][..],
        &["--size=64M", "--sandbox=strict", "--swap"],
    ];
    if can_mount(TEST) {
        ways.push(&["--size=64M", "--sandbox=strict", "--fuse=fuse"]);
    }
    for way in ways {
        let world = closed_world();
        world.dir("fuse");
        let over_fuse = way.contains(&"--fuse=fuse");
        let mut pair = Pair::serve(&world, way);
        // Where its limit does not do for --swap, the capability to lock memory (1 << 14).
        let swaps = way.contains(&"--swap");
        let none = |set: &str| {
            let zeroes = "0000000000000000";
            set == zeroes || swaps && set == "0000000000004000"
        };
        let user = [UID; 4].map(|uid| uid.to_string()).join(" ");
        let tasks = fs::read_dir(format!("/proc/{}/task", pair.server)).unwrap();
        for task in tasks {
            let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
                continue;
            };
            let [uid, groups, permitted, effective, ambient, confined] = rights(&status);
            let is_user = uid == user && groups.is_empty() && confined == "1";
            let is_bare = none(&permitted) && none(&effective) && !ambient.contains('4');
            assert!(is_user && is_bare, "{way:?}: {status}");
        }
        if over_fuse {
            let disk = world.path("fuse/disk");
            fs::write(&disk, [7; 8192]).unwrap();
            assert_eq!(fs::read(&disk).unwrap()[..8192], [7; 8192]);
        } else {
            write_and_read(&world);
        }
        if way.contains(&"--backing=spill") {
            let spill = fs::metadata(world.path("spill")).unwrap();
            assert_eq!((spill.uid(), spill.mode() & 0o777), (UID, 0o600));
            assert!(spill.blocks() > 0, "nothing is spilled");
        }
        signal(pair.keeper.pid(), "TERM");
        assert_eq!(pair.keeper.ended(HANG), Some(0), "{way:?}: {}", pair.said());
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("spill").exists());
    }
}

/// Asked by a client of its control socket who opens nothing for it.
#[test]
fn a_server_of_another_user_reaches_no_file_of_root_s() {
    if !is_root("a_server_of_another_user_reaches_no_file_of_root_s") {
        return;
    }
    for sandbox in ["off", "on"] {
        let world = closed_world();
        let _pair = Pair::serve(&world, &["--size=8M", &format!("--sandbox={sandbox}")]);
        fs::write(world.path("precious"), "").unwrap();
        for (name, request) in [
            (
                "precious",
                "\"op\":\"set\",\"attribute\":\"backing_dev\",\"value\":",
            ),
            ("image", "\"op\":\"save\",\"last\":false,\"path\":"),
        ] {
            let mut client = UnixStream::connect(world.rundir().join("vm/control.sock")).unwrap();
            let path = world.path(name);
            writeln!(client, "{{{request}\"{}\"}}", path.display()).unwrap();
            let mut answer = String::new();
            BufReader::new(client).read_line(&mut answer).unwrap();
            assert!(answer.contains("Permission denied"), "{sandbox}: {answer}");
        }
        assert_eq!(fs::read_dir(world.path("")).unwrap().count(), 2);
    }
}

#[test]
fn whichever_of_the_two_is_told_to_end_both_do() {
    if !is_root("whichever_of_the_two_is_told_to_end_both_do") {
        return;
    }
    for (is_keeper, twice) in [(true, false), (false, false), (true, true), (false, true)] {
        let world = closed_world();
        let mut pair = Pair::serve(&world, &["--size=8M", "--backing=spill"]);
        let told = match is_keeper {
            true => pair.keeper.pid(),
            false => pair.server,
        };
        if twice {
            // Held up until both have come.
            signal(told, "STOP");
            signal(told, "TERM");
            signal(told, "INT");
            signal(told, "CONT");
        } else {
            signal(told, "TERM");
        }
        let code = pair.keeper.ended(HANG);
        match twice {
            true => assert!(matches!(code, Some(0 | 1)), "{code:?}: {}", pair.said()),
            false => assert_eq!(code, Some(0), "{}", pair.said()),
        }
        eventually("gone", || pair.is_gone());
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("spill").exists());
    }
}

/// As systemd does where nothing else is said, and a shell with a job.
#[test]
fn a_signal_to_each_of_the_two_is_one() {
    if !is_root("a_signal_to_each_of_the_two_is_one") {
        return;
    }
    let world = closed_world();
    fs::write(world.path("image"), vec![0; 8 << 20]).unwrap();
    let args = ["--origin=image", "--sync=never"];
    let mut pair = Pair::serve(&world, &args);
    nbdsh_at(
        &uri(&world),
        "h.connect_uri(uri)\nh.pwrite(b'\\x07' * 4096, 1 << 20)",
    );
    for pid in [pair.server, pair.keeper.pid()] {
        signal(pid, "TERM");
    }
    assert_eq!(pair.keeper.ended(HANG), Some(0), "{}", pair.said());
    let image = fs::read(world.path("image")).unwrap();
    assert_eq!(image[1 << 20..][..4096], [7; 4096]);
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn what_a_killed_server_leaves_its_keeper_clears() {
    const TEST: &str = "what_a_killed_server_leaves_its_keeper_clears";
    if !is_root(TEST) || !can_mount(TEST) {
        return;
    }
    let world = closed_world();
    world.dir("fuse");
    let socket = format!("--nbd=unix:{}", world.path("s").display());
    let args = ["--size=8M", "--backing=spill", "--fuse=fuse", &socket];
    let mut pair = Pair::serve(&world, &args);
    signal(pair.server, "KILL");
    assert_eq!(pair.keeper.ended(HANG), Some(1));
    let said = pair.said();
    assert!(said.contains("vm was killed by signal 9"), "{said}");
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!world.path("spill").exists() && !world.path("s").exists());
}

#[test]
fn a_server_whose_keeper_is_killed_stops_and_the_next_command_clears() {
    const TEST: &str = "a_server_whose_keeper_is_killed_stops_and_the_next_command_clears";
    if !is_root(TEST) || !can_mount(TEST) {
        return;
    }
    for both in [false, true] {
        let world = closed_world();
        world.dir("fuse");
        let args = ["--size=8M", "--backing=spill", "--fuse=fuse"];
        let mut pair = Pair::serve(&world, &args);
        if both {
            signal(pair.server, "STOP");
        }
        pair.keeper.kill_9();
        if both {
            signal(pair.server, "KILL");
        }
        eventually("gone", || pair.is_gone());
        world.ok(&["detach", "vm"]);
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("spill").exists());
    }
}

/// With its keeper frozen, or frozen itself.
#[test]
fn one_that_is_frozen_is_stopped_by_force() {
    if !is_root("one_that_is_frozen_is_stopped_by_force") {
        return;
    }
    for is_keeper in [true, false] {
        let world = closed_world();
        let pair = Pair::serve(&world, &["--size=8M", "--backing=spill"]);
        let frozen = match is_keeper {
            true => pair.keeper.pid(),
            false => pair.server,
        };
        signal(frozen, "STOP");
        world.ok(&["stop", "--force", "vm"]);
        assert!(pair.is_gone());
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("spill").exists());
    }
}

/// What others may have put there is of no less worth to root because it is handed to somebody else.
#[test]
fn what_is_precious_is_left_alone_by_both() {
    if !is_root("what_is_precious_is_left_alone_by_both") {
        return;
    }
    let world = closed_world();
    let path = world.path("precious");
    fs::write(&path, "precious").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let user = format!("--user={USER}");
    let line = world.refused(
        1,
        &["serve", "vm", &user, "--size=8M", "--backing=precious"],
    );
    assert!(line.contains("not an old spill"), "{line}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    assert_eq!(fs::metadata(&path).unwrap().uid(), 0);
    fs::write(&path, "").unwrap();
    let mut pair = Pair::serve(
        &world,
        &["--size=64M", "--mem-limit=1M", "--backing=precious"],
    );
    write_and_read(&world);
    assert_ne!(fs::metadata(&path).unwrap().len(), 0);
    signal(pair.keeper.pid(), "TERM");
    assert_eq!(pair.keeper.ended(HANG), Some(0));
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        0,
        "it was there, and is emptied"
    );
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn images_that_only_root_may_read_are_restored() {
    if !is_root("images_that_only_root_may_read_are_restored") {
        return;
    }
    let world = closed_world();
    {
        let _server = world.serve(&["vm", "--size=8M"]);
        nbdsh_at(
            &uri(&world),
            "h.connect_uri(uri)\nh.pwrite(b'\\x07' * 4096, 1 << 20)",
        );
        world.ok(&["save", "vm", "image"]);
        world.ok(&["stop", "vm"]);
    }
    let _pair = Pair::serve(&world, &["--restore=image", "--verify-image"]);
    let script = "h.connect_uri(uri)\nassert h.pread(4096, 1 << 20) == b'\\x07' * 4096";
    nbdsh_at(&uri(&world), script);
}

/// With a key that only the server has, and wiped by the keeper at the end; in the background as well.
#[test]
fn what_is_spilled_for_another_user_is_encrypted_and_wiped() {
    if !is_root("what_is_spilled_for_another_user_is_encrypted_and_wiped") {
        return;
    }
    let world = closed_world();
    let spill = world.path("spill");
    let user = format!("--user={USER}");
    let how = ["--size=64M", "--mem-limit=1M", "--backing=spill"];
    let secret = ["--backing-encrypt", "--backing-keep=wipe", "--background"];
    world.ok(&[&["serve", "vm", &user], &how[..], &secret].concat());
    let script = "import os\nh.connect_uri(uri)\n\
                  pages = [b'of root' + os.urandom(4089) for _ in range(1024)]\n\
                  for i, page in enumerate(pages): h.pwrite(page, i * 4096)\n\
                  for i, page in enumerate(pages): assert h.pread(4096, i * 4096) == page";
    nbdsh_at(&uri(&world), script);
    // Wiped, it would be found empty by another name.
    let another = world.path("another");
    fs::hard_link(&spill, &another).unwrap();
    let spilled = fs::read(&spill).unwrap();
    assert!(spilled.len() > 1 << 20, "{} bytes", spilled.len());
    assert!(!spilled.windows(7).any(|part| part == b"of root"));
    world.ok(&["stop", "vm"]);
    assert!(!spill.exists());
    assert!(fs::read(&another).unwrap().iter().all(|&byte| byte == 0));
    assert_eq!(world.leftovers(), [""; 0]);
}

/// They are written, and read again, while it runs.
#[test]
fn what_the_user_has_to_reach_himself_is_said() {
    if !is_root("what_the_user_has_to_reach_himself_is_said") {
        return;
    }
    let world = closed_world();
    world.dir("metrics");
    world.dir("certificates");
    let user = format!("--user={USER}");
    let serve = ["serve", "vm", &user, "--size=8M"];
    for option in [
        "--metrics=file:metrics/m.prom",
        "--tls-certificates=certificates",
    ] {
        let line = world.refused(1, &[&serve[..], &[option]].concat());
        assert!(
            line.contains("Permission denied") && line.contains(USER),
            "{line}"
        );
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn the_user_has_to_be_there_and_root_has_to_ask() {
    const TEST: &str = "the_user_has_to_be_there_and_root_has_to_ask";
    let world = closed_world();
    let line = world.refused(2, &["serve", "vm", "--size=1M", "--user=no-such-user"]);
    assert!(line.contains("no user no-such-user"), "{line}");
    // Oneself is nobody else.
    let own = format!("--user={}", fs::metadata("/proc/self").unwrap().uid());
    let server = world.serve(&["vm", "--size=1M", &own]);
    let list: Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    assert_eq!(list[0]["pid"], server.pid());
    assert!(list[0]["keeper_pid"].is_null());
    if !is_root(&format!("a part of {TEST}")) {
        return;
    }
    let as_user = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args([&format!("--reuid={UID}"), "--clear-groups", "--"])
            .args(words)
            .env("UZRAM_RUNDIR", "/nonexistent")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(&mut command)
    };
    let program = env!("CARGO_BIN_EXE_uzram");
    if !as_user(&[program, "--version"]).status.success() {
        eprintln!("SKIPPED: a part of {TEST}: other users cannot run {program}");
        return;
    }
    let refused = as_user(&[program, "serve", "vm", "--size=1M", "--user=root"]);
    let line = one_line(&refused, 1, &["--user=root"]);
    assert!(line.contains("only root"), "{line}");
}

/// The keeper is who systemd has started, and hears from.
#[test]
fn systemd_hears_of_a_server_by_its_keeper() {
    if !is_root("systemd_hears_of_a_server_by_its_keeper") {
        return;
    }
    let world = closed_world();
    let systemd = UnixDatagram::bind(world.path("notify")).unwrap();
    systemd.set_read_timeout(Some(HANG)).unwrap();
    let user = format!("--user={USER}");
    let mut command = world.command(&["serve", "vm", &user, "--size=1M"]);
    command
        .env("NOTIFY_SOCKET", world.path("notify"))
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID");
    let mut keeper = Serve::start(&mut command);
    let next = || {
        let mut message = [0; 64];
        let len = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    let said: Vec<_> = std::iter::repeat_with(next).take(4).collect();
    let count = |wanted: &str| said.iter().filter(|said| *said == wanted).count();
    assert_eq!((count("READY=1"), count("WATCHDOG=1")), (1, 3), "{said:?}");
    signal(keeper.pid(), "TERM");
    assert_eq!(keeper.ended(HANG), Some(0));
}

/// Who asks opens it, with rights that the server has not.
#[test]
fn what_root_names_is_opened_by_root_s_command() {
    if !is_root("what_root_names_is_opened_by_root_s_command") {
        return;
    }
    let world = closed_world();
    for dir in ["spills", "images"] {
        world.dir(dir);
    }
    let mut pair = Pair::serve(&world, &["--size=64M", "--mem-limit=1M", "--backing=first"]);
    write_and_read(&world);
    world.ok(&["set", "vm", "backing_dev=spills/second"]);
    assert!(
        !world.path("first").exists(),
        "it is removed when nothing is on it any more"
    );
    let spill = fs::metadata(world.path("spills/second")).unwrap();
    assert_eq!((spill.uid(), spill.mode() & 0o777), (UID, 0o600));
    assert!(spill.blocks() > 0, "nothing is moved there");
    world.ok(&["save", "vm", "images/image"]);
    let image = fs::metadata(world.path("images/image")).unwrap();
    assert_eq!((image.uid(), image.mode() & 0o777), (0, 0o600));
    world.ok(&["train-dict", "--device=vm", "images/dictionary"]);
    let script = "h.connect_uri(uri)\nopen('data', 'wb').write(h.pread(8 << 20, 0))";
    let script = script.replace("data", world.path("data").to_str().unwrap());
    nbdsh_at(&uri(&world), &script);
    // What is refused leaves nothing.
    fs::write(world.path("precious"), "precious").unwrap();
    world.refused(1, &["set", "vm", "backing_dev=precious"]);
    world.refused(
        1,
        &["set", "vm", "mem_limit=2M", "backing_dev=nowhere/spill"],
    );
    let line = world.refused(1, &["save", "vm", "spills/second"]);
    assert!(line.contains("is the backing of the device"), "{line}");
    world.ok(&["set", "vm", "mem_limit=0", "backing_dev=none"]);
    assert_eq!(fs::read_dir(world.path("spills")).unwrap().count(), 0);
    world.ok(&["set", "vm", "mem_limit=1M", "backing_dev=spills/third"]);
    signal(pair.server, "KILL");
    assert_eq!(pair.keeper.ended(HANG), Some(1));
    assert_eq!(fs::read_dir(world.path("spills")).unwrap().count(), 0);
    assert_eq!(fs::read(world.path("precious")).unwrap(), b"precious");
    assert_eq!(world.leftovers(), [""; 0]);
    let _pair = Pair::serve(&world, &["--restore=images/image"]);
    let script = "h.connect_uri(uri)\nassert h.pread(8 << 20, 0) == open('data', 'rb').read()";
    let script = script.replace("data", world.path("data").to_str().unwrap());
    nbdsh_at(&uri(&world), &script);
}

/// Those of the unit and of its drop-in.
#[test]
fn the_capabilities_of_the_unit_do() {
    const TEST: &str = "the_capabilities_of_the_unit_do";
    if !is_root(TEST) {
        return;
    }
    let texts = [
        include_str!("../../systemd/uzram@.service"),
        include_str!("../../systemd/user.conf"),
    ];
    let lines = texts.iter().flat_map(|text| text.lines());
    let named = lines.filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let named = named.flat_map(str::split_whitespace);
    let bounded: String = named
        .map(|name| format!(",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
        .collect();
    let world = closed_world();
    let program = env!("CARGO_BIN_EXE_uzram");
    let user = format!("--user={USER}");
    let mut command = Command::new("setpriv");
    command
        .args([&format!("--bounding-set=-all{bounded}"), "--no-new-privs"])
        .args([program, "serve", "vm", "--size=64M", "--mem-limit=1M"])
        .args(["--backing=spill", &user])
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut keeper = Serve::start(&mut command);
    write_and_read(&world);
    signal(keeper.pid(), "TERM");
    assert_eq!(keeper.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
    assert!(!world.path("spill").exists());
}
