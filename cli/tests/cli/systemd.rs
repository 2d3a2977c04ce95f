//! The systemd units, as far as systemd can tell without being in charge.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};

use crate::recompress::fill;
use crate::up_down::configure;
use support::{HANG, Serve, World, can_mount, finish, one_line, signal};

#[test]
fn systemd_has_no_objection_to_the_units() {
    let world = World::new();
    let units = world.dir("units");
    for (name, unit) in [
        (
            "uzram@device.service",
            include_str!("../../systemd/uzram@.service"),
        ),
        (
            "uzram-mount@device.service",
            include_str!("../../systemd/uzram-mount@.service"),
        ),
        // After the service, which it starts.
        (
            "uzram@device.socket",
            include_str!("../../systemd/uzram@.socket"),
        ),
    ] {
        let installed = "/usr/local/bin/uzram";
        assert_eq!(unit.contains(installed), name.ends_with(".service"));
        let path = units.join(name);
        fs::write(&path, unit.replace(installed, env!("CARGO_BIN_EXE_uzram"))).unwrap();
        let verified = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output();
        let Ok(verified) = verified else {
            // Straight to the descriptor: the harness keeps what a passing test prints to itself.
            let why = "systemd_has_no_objection_to_the_units: there is no systemd-analyze";
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            return;
        };
        let said = String::from_utf8_lossy(&verified.stderr);
        let about_it = said.lines().filter(|line| line.contains("uzram"));
        assert_eq!(about_it.count(), 0, "{said}");
        assert!(verified.status.success(), "{said}");
    }
}

/// What a service manager does: the socket is descriptor 3 of the process that the variables name.
fn with_socket(world: &World, socket: OwnedFd, args: &str) -> Command {
    let start = format!(
        "LISTEN_PID=$$ LISTEN_FDS=1 exec {} {args} 3<&0 0</dev/null",
        env!("CARGO_BIN_EXE_uzram")
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &start])
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .env_remove("UZRAM_LOG")
        .stdin(socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Starts a server with a socket, and waits until it tells the service manager that it is ready: on stdout
/// it says nothing.
fn start_with(world: &World, socket: OwnedFd, args: &str) -> Serve {
    let path = world.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(HANG)).unwrap();
    let mut command = with_socket(world, socket, args);
    let child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let server = Serve { child };
    let mut message = [0; 64];
    let len = manager.recv(&mut message).expect("it becomes ready");
    assert_eq!(message[..len].trim_ascii(), b"READY=1");
    fs::remove_file(path).unwrap();
    server
}

/// Whether an NBD server answers there.
fn greets(mut client: impl Read) -> bool {
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).is_ok() && &greeting == b"NBDMAGIC"
}

#[test]
fn an_inherited_socket_is_served_and_left_where_it_is() {
    let world = World::new();
    let table = "[vm]\nsize = \"64M\"\nnbd = \"unix:s\"\n";
    configure(&world, table);
    for args in [
        "serve vm --size=64M --nbd=unix:s",
        "serve vm --size=64M --nbd=unix:other",
        "up --foreground vm --config=uzram.toml",
    ] {
        let socket = UnixListener::bind(world.path("s")).unwrap();
        let kept = socket.try_clone().unwrap();
        let mut server = start_with(&world, socket.into(), args);
        fill(&world);
        let listed = world.ok(&["list"]);
        let address = format!("unix:{}", world.path("s").display());
        assert_eq!(listed.matches(&address).count(), 1, "{listed}");
        signal(server.pid(), "TERM");
        assert_eq!(server.ended(HANG), Some(0));
        let mut said = String::new();
        server
            .child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said, "", "stdout is its starter's");
        assert!(world.path("s").exists());
        drop(kept);
        fs::remove_file(world.path("s")).unwrap();
        assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    }
}

/// systemd would start a server again for whoever comes to look at it.
#[test]
fn the_inherited_socket_of_a_killed_server_is_left_alone() {
    let world = World::new();
    let path = world.path("s");
    let socket = UnixListener::bind(&path).unwrap();
    let kept = socket.try_clone().unwrap();
    kept.set_nonblocking(true).unwrap();
    let args = "serve vm --size=8M --nbd=unix:s --nbd=unix:own";
    start_with(&world, socket.into(), args).kill_9();
    assert!(world.path("own").exists());
    world.ok(&["detach", "vm"]);
    assert_eq!(kept.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(path.exists() && !world.path("own").exists());
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Clients of libnbd run a server of their own, and talk to it over a socket that they hand to it.
#[test]
fn a_captive_server_leaves_stdout_to_its_client() {
    let world = World::new();
    let captive = [
        "[",
        env!("CARGO_BIN_EXE_uzram"),
        "serve",
        "c",
        "--size=4M",
        "]",
    ];
    let run = |tool: &str, before: &[&str], after: &[&str]| {
        let mut command = Command::new(tool);
        command
            .args([before, &captive, after].concat())
            .env("UZRAM_RUNDIR", world.rundir())
            .env_remove("UZRAM_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = finish(&mut command);
        assert!(output.status.success(), "{tool}: {output:?}");
        output.stdout
    };
    assert!(run("nbdcopy", &["--"], &["-"]) == vec![0; 4 << 20]);
    let info = run("nbdinfo", &["--json", "--"], &[]);
    let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
    assert_eq!(info["exports"][0]["export-size"], 4 << 20);
}

/// Connects before the server is there, and leaves perhaps before it has said that it is ready.
#[test]
fn a_server_that_has_answered_a_client_has_been_ready() {
    let world = World::new();
    let path = world.path("s");
    for _ in 0..20 {
        let socket = UnixListener::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(HANG)).unwrap();
        let mut command = with_socket(&world, socket.into(), "serve vm --size=8M --nbd=unix:s");
        let mut server = Serve {
            child: command.spawn().unwrap(),
        };
        write_a_byte(&mut client);
        drop(client);
        signal(server.pid(), "TERM");
        let code = server.ended(HANG);
        let mut said = String::new();
        server
            .child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(code, Some(0), "{said}");
        fs::remove_file(&path).unwrap();
    }
}

/// Writes a byte over NBD, and waits for the answer.
fn write_a_byte(client: &mut UnixStream) {
    let mut greeting = [0; 18];
    client.read_exact(&mut greeting).unwrap();
    // Client flags, then EXPORT_NAME of the empty name.
    client
        .write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0")
        .unwrap();
    let mut export = [0; 10];
    client.read_exact(&mut export).unwrap();
    let mut write = [0; 29];
    write[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
    write[7] = 1;
    write[27] = 1;
    client.write_all(&write).unwrap();
    let mut reply = [0; 16];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);
}

#[test]
fn an_inherited_port_is_served_beside_the_default_socket() {
    let world = World::new();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let _server = start_with(&world, socket.into(), "serve vm --size=64M");
    let listed = world.ok(&["list"]);
    assert!(
        listed.contains(&format!("tcp:127.0.0.1:{port}")),
        "{listed}"
    );
    assert!(listed.contains("nbd.sock"), "{listed}");
    assert!(greets(TcpStream::connect(("127.0.0.1", port)).unwrap()));
}

/// Clients would wait for ever on a socket that is open and that nobody serves.
#[test]
fn a_server_in_the_background_serves_what_its_starter_inherits() {
    let world = World::new();
    let table = "[vm]\nsize = \"8M\"\n[other]\nsize = \"8M\"\n";
    configure(&world, table);
    let mnt = world.dir("mnt");
    let path = world.path("s");
    let listen = || UnixListener::bind(&path).unwrap();
    let mut ways = vec![("up vm --config=uzram.toml", ["stop", "vm"])];
    if can_mount("the mounted half of a_server_in_the_background_serves_what_its_starter_inherits")
    {
        let way = ("mount --size=8M --name=vm mnt", ["umount", "mnt"]);
        ways.push(way);
    }
    for (start, end) in ways {
        let output = finish(&mut with_socket(&world, listen().into(), start));
        assert!(output.status.success(), "{start}: {output:?}");
        let client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(HANG)).unwrap();
        assert!(greets(client), "{start}");
        assert!(
            world
                .ok(&["list", "--json"])
                .contains(path.to_str().unwrap())
        );
        world.ok(&end);
        let refused = UnixStream::connect(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{start}");
        fs::remove_file(&path).unwrap();
    }
    assert!(fs::read_dir(mnt).unwrap().next().is_none());

    let all = "up --config=uzram.toml";
    let line = one_line(
        &finish(&mut with_socket(&world, listen().into(), all)),
        2,
        &[all],
    );
    assert!(
        line.contains("LISTEN_FDS") && line.contains("name the one"),
        "{line}"
    );
    assert_eq!(world.leftovers(), [""; 0]);
}

/// Those of another process are nothing to us, and what does not listen is no socket of a unit.
#[test]
fn descriptors_that_make_no_sense_are_refused() {
    let world = World::new();
    let serve = "serve vm --size=1M";
    let program = env!("CARGO_BIN_EXE_uzram");
    for (sets, says) in [
        ("LISTEN_PID=$$ LISTEN_FDS=1", Some("LISTEN_FDS")),
        ("LISTEN_PID=1 LISTEN_FDS=1", None),
    ] {
        let start = format!("{sets} exec {program} {serve} 3</dev/null");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &start])
            .env("UZRAM_RUNDIR", world.rundir())
            .env_remove("UZRAM_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        match says {
            Some(words) => {
                let line = one_line(&finish(&mut shell), 2, &[serve]);
                assert!(line.contains(words), "{line}");
            }
            None => drop(Serve::start(&mut shell)),
        }
    }
}

/// What the unit starts, and what it says to systemd: that it is there, and that it is well.
#[test]
fn what_the_unit_starts_serves_and_feeds_the_watchdog() {
    let world = World::new();
    let table = "[device]\nsize = \"8M\"\nmem-limit = \"1M\"\nbacking = \"spill\"\n";
    configure(&world, table);
    let systemd = UnixDatagram::bind(world.path("notify")).unwrap();
    systemd.set_read_timeout(Some(HANG)).unwrap();
    let mut command = world.command(&["up", "--foreground", "device", "--config=uzram.toml"]);
    command
        .env("NOTIFY_SOCKET", world.path("notify"))
        .env("WATCHDOG_USEC", "300000")
        .env_remove("WATCHDOG_PID");
    let mut server = Serve::start(&mut command);
    let next = || {
        let mut message = [0; 64];
        let len = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    };
    let said: Vec<_> = std::iter::repeat_with(next).take(5).collect();
    assert_eq!(
        said.iter().filter(|said| *said == "READY=1").count(),
        1,
        "{said:?}"
    );
    assert_eq!(
        said.iter().filter(|said| *said == "WATCHDOG=1").count(),
        4,
        "{said:?}"
    );
    assert!(world.ok(&["list"]).contains("device"));
    assert!(world.path("spill").exists());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
}

/// systemd keeps no watchdog of 0, and neither are there signs of life without a pause.
#[test]
fn a_watchdog_of_no_time_is_none() {
    let world = World::new();
    let systemd = UnixDatagram::bind(world.path("notify")).unwrap();
    systemd.set_read_timeout(Some(HANG)).unwrap();
    let mut command = world.command(&["serve", "device", "--size=1M"]);
    command
        .env("NOTIFY_SOCKET", world.path("notify"))
        .env("WATCHDOG_USEC", "0")
        .env_remove("WATCHDOG_PID");
    let mut server = Serve::start(&mut command);
    signal(server.pid(), "TERM");
    let mut said = [(); 2].map(|()| {
        let mut message = [0; 64];
        let len = systemd.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..len]).into_owned()
    });
    // Two threads say them.
    said.sort();
    assert_eq!(said, ["READY=1\n", "STOPPING=1\n"]);
    assert_eq!(server.ended(HANG), Some(0));
}

/// By systemd's own count, from 0 to 100, which is each version's own. The mounts of the second have to be seen outside, so it can have no
/// mount namespace, and with that most of what is counted: 30 is the least that is left of it, without swap, the
/// network, and files of other users.
#[test]
fn the_units_leave_little_exposed() {
    const COUNTED_BY: &str = "systemd 252 ";
    let skipped = |why: &str| {
        // Straight to the descriptor: the harness keeps what a passing test prints to itself.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: the_units_leave_little_exposed: {why}"
        );
    };
    let version = match Command::new("systemd-analyze").arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return skipped("there is no systemd-analyze");
        }
        found => String::from_utf8(found.unwrap().stdout).unwrap(),
    };
    if !version.starts_with(COUNTED_BY) {
        let version = version.lines().next().unwrap_or_default();
        return skipped(&format!(
            "its numbers are those of {COUNTED_BY}, this is {version}"
        ));
    }
    for (unit, most) in [("uzram@.service", 29), ("uzram-mount@.service", 46)] {
        let path = format!("{}/systemd/{unit}", env!("CARGO_MANIFEST_DIR"));
        let threshold = format!("--threshold={most}");
        let mut analyze = Command::new("systemd-analyze");
        analyze
            .args([
                "security",
                "--offline=true",
                "--no-pager",
                &threshold,
                &path,
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let found = analyze.output().unwrap();
        let table = String::from_utf8_lossy(&found.stdout);
        let exposed: Vec<_> = table.lines().filter(|line| line.contains('✗')).collect();
        assert!(table.contains("exposure level"), "{unit}: {found:?}");
        assert!(found.status.success(), "{unit}: {}", exposed.join("\n"));
    }
}
