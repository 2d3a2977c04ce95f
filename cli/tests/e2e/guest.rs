//! A real kernel on a disk of ours: a guest under QEMU makes ext4, fills, checks and trims it. It gets
//! the disk through its own NBD driver, or from QEMU as a virtio disk.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::rig::{Background, MIB, MemoryWatch, RealFiles, Scratch, Server, run, skipped, stat};
use support::certificates::Certificates;
use support::within;

/// How long a guest may take.
const GUEST_TIME: Duration = Duration::from_secs(580);
const NAME: &str = "guest";
const EXPORT: &str = "EXPORT=guest";

#[test]
fn a_guests_kernel_keeps_a_file_system_on_it() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let archive = scratch.arg("files.tar");
    RealFiles::choose(&scratch, 160 * MIB).archive(Path::new(&archive));
    let port = free_port();
    let address = format!("tcp:127.0.0.1:{port}");
    keeps_ext4(&scratch, 48 * MIB, &["--nbd", &address], &|| {
        let guest = guest(&scratch, &["--disk", &archive], "ext4.sh");
        run_guest(guest, &["ATTACH=nbd", &host_port(port), EXPORT]);
    });
}

#[test]
fn a_guests_kernel_keeps_a_file_system_on_it_over_tls() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let archive = scratch.arg("files.tar");
    RealFiles::choose(&scratch, 64 * MIB).archive(Path::new(&archive));
    let certificates = Certificates::new();
    let client = certificates.client();
    run(Command::new("tar")
        .args(["-rf", &archive, "-C"])
        .arg(client.parent().expect("not the root"))
        .args(
            [
                client.clone(),
                certificates.anonymous(),
                certificates.stranger(),
            ]
            .map(|dir| dir.file_name().expect("a name").to_owned()),
        ));
    let server = certificates.server();
    let port = free_port();
    let address = format!("tcp:127.0.0.1:{port}");
    let args = [
        "--nbd",
        &address,
        "--tls=require",
        "--tls-verify-peer",
        "--tls-certificates",
        server.to_str().expect("UTF-8"),
    ];
    keeps_ext4(&scratch, 16 * MIB, &args, &|| {
        let guest = guest(&scratch, &["--disk", &archive], "ext4.sh");
        run_guest(guest, &["ATTACH=tls", &host_port(port), EXPORT]);
    });
}

#[test]
fn a_guest_keeps_a_file_system_on_its_virtio_disk() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let archive = scratch.arg("files.tar");
    RealFiles::choose(&scratch, 64 * MIB).archive(Path::new(&archive));
    let socket = scratch.arg("nbd");
    let address = format!("unix:{socket}");
    let uri = format!("nbd+unix:///{NAME}?socket={socket}");
    keeps_ext4(&scratch, 16 * MIB, &["--nbd", &address], &|| {
        let guest = guest(&scratch, &["--disk", &archive, "--nbd", &uri], "ext4.sh");
        run_guest(guest, &["ATTACH=virtio"]);
    });
}

/// Serves a disk with `args` while `guest` fills and empties it: it spills, stays within `limit`,
/// and has nothing left.
fn keeps_ext4(scratch: &Scratch, limit: u64, args: &[&str], guest: &dyn Fn()) {
    let (spill, limit_arg) = (scratch.arg("spill"), limit.to_string());
    let common = [
        "--size",
        "1G",
        "--mem-limit",
        &limit_arg,
        "--backing",
        &spill,
    ];
    let server = Server::start(scratch, NAME, &[&common, args].concat());
    let watch = MemoryWatch::start(scratch, server.name());
    guest();
    let samples = watch.finish();

    let most = samples.into_iter().max().unwrap_or(0);
    assert!(most <= limit, "mem_used_total reached {most}");
    let now = stat(scratch, server.name());
    assert!(now.get("bd_writes") > 0, "nothing was spilled");
    assert!(now.get("bd_reads") > 0, "nothing was read back");
    for key in [
        "failed_reads",
        "failed_writes",
        "orig_data_size",
        "mem_used_total",
        "written_back_pages",
    ] {
        assert_eq!(now.get(key), 0, "{key} after the guest discarded it all");
    }
}

#[test]
fn a_guest_gets_over_a_restart_of_its_server() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let port = free_port();
    let address = format!("tcp:127.0.0.1:{port}");
    let start = || Server::start(&scratch, NAME, &["--size", "64M", "--nbd", &address]);
    let mut server = start();
    with_a_bell(&scratch, "nbd-restart.sh", port, || {
        let status = server.terminate();
        assert!(status.success(), "{status}\n{}", server.log());
        server = start();
        assert_eq!(stat(&scratch, NAME).get("orig_data_size"), 0);
    });
    assert!(stat(&scratch, NAME).get("orig_data_size") > MIB);
    drop(server);
}

#[test]
fn a_guest_that_swaps_to_it_outlives_it() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let (port, spill) = (free_port(), scratch.arg("spill"));
    let address = format!("tcp:127.0.0.1:{port}");
    let args = [
        "--size",
        "256M",
        "--mem-limit",
        "24M",
        "--backing",
        &spill,
        "--nbd",
        &address,
    ];
    let start = || Server::start(&scratch, NAME, &args);
    let mut server = start();
    with_a_bell(&scratch, "nbd-swap.sh", port, || {
        let now = stat(&scratch, NAME);
        assert!(now.get("bd_writes") > 0, "nothing was spilled");
        assert!(now.get("bd_reads") > 0, "nothing was read back");
        assert_eq!(now.get("failed_reads") + now.get("failed_writes"), 0);
        server.kill();
        server = start();
    });
    let now = stat(&scratch, NAME);
    assert_eq!(now.get("failed_reads") + now.get("failed_writes"), 0);
    drop(server);
}

/// Runs a guest's script with HOST_PORT and EXPORT; when it calls BELL_PORT, `answer` is called, and
/// the call is ended once that is done.
fn with_a_bell(scratch: &Scratch, script: &str, port: u16, answer: impl FnOnce()) {
    let bell = TcpListener::bind(("127.0.0.1", 0)).expect("a port on the loopback");
    bell.set_nonblocking(true).expect("a mode");
    let bell_port = bell.local_addr().expect("it is bound").port();
    let said = File::create(scratch.path().join("guest")).expect("a file");
    let mut command = guest(scratch, &[], script);
    command
        .args([&host_port(port), EXPORT, &format!("BELL_PORT={bell_port}")])
        .stdout(said.try_clone().expect("another handle"))
        .stderr(said);
    let mut guest = Background::start(&mut command);
    let mut rung = None;
    within(GUEST_TIME, || {
        rung = bell.accept().ok();
        rung.is_some() || !guest.is_running()
    });
    if let Some(caller) = rung {
        answer();
        drop(caller);
    }
    let status = guest.wait(GUEST_TIME);
    let said = fs::read_to_string(scratch.path().join("guest")).expect("a file");
    assert!(status.is_some_and(|status| status.success()), "{said}");
    println!("{said}");
}

#[test]
fn attached_through_the_kernels_nbd_driver() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    let bin = root.join("usr/bin");
    fs::create_dir_all(&bin).expect("a directory");
    let program = Path::new(env!("CARGO_BIN_EXE_uzram"));
    fs::copy(program, bin.join("uzram")).expect("a copy of the program");
    for library in libraries(program) {
        let copy = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("an absolute path")).expect("a directory");
        fs::copy(library, copy).expect("a copy of a library");
    }
    let archive = scratch.arg("program.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["-cf", &archive, "."]));
    run_guest(guest(&scratch, &["--disk", &archive], "nbd-attach.sh"), &[]);
}

/// The libraries `program` is linked to, as ldd names them.
fn libraries(program: &Path) -> Vec<String> {
    let lines = run(Command::new("ldd").arg(program));
    let words = lines
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    words.map(str::to_owned).collect()
}

/// Which packages are fetched, on a machine that has `installed`, each as name=version.
fn planned(scratch: &Scratch, installed: &str) -> String {
    let status: String = installed
        .lines()
        .filter_map(|package| package.split_once('='))
        .map(|(name, version)| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
            )
        })
        .collect();
    fs::write(scratch.arg("status"), status).expect("room");
    let config = format!(
        "Dir::State::status \"{}\";\nDir::Cache::pkgcache \"\";\n",
        scratch.arg("status")
    );
    fs::write(scratch.arg("apt.conf"), config).expect("room");
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/fetch.sh");
    let mut fetch = Command::new(fetch);
    run(fetch
        .args(["--plan", &scratch.arg("plan")])
        .env("APT_CONFIG", scratch.arg("apt.conf")))
}

/// What this machine has may go, and its firmware is where a QEMU that was only unpacked does not look.
#[test]
fn the_guests_qemu_is_fetched_whole_whatever_the_machine_has() {
    const TEST: &str = "the_guests_qemu_is_fetched_whole_whatever_the_machine_has";
    if skip_without_guests() {
        return;
    }
    let known = Command::new("apt-cache")
        .args(["show", "qemu-system-x86"])
        .output();
    if !known.is_ok_and(|known| known.status.success()) {
        skipped(TEST, "apt knows no qemu-system-x86");
        return;
    }
    let scratch = Scratch::new();
    let with_nothing = planned(&scratch, "");
    for firmware in ["seabios=", "qemu-system-data=", "qemu-system-x86="] {
        let is_there = with_nothing.lines().any(|line| line.starts_with(firmware));
        assert!(is_there, "{firmware} in {with_nothing}");
    }
    let left_behind = ["seabios=", "qemu-system-data="];
    let is_left = |line: &&str| left_behind.iter().any(|name| line.starts_with(name));
    let some: Vec<_> = with_nothing.lines().filter(is_left).collect();
    assert_eq!(planned(&scratch, &some.join("\n")), with_nothing);
    assert_eq!(planned(&scratch, &with_nothing), with_nothing);
}

fn skip_without_guests() -> bool {
    let cannot = !cfg!(target_arch = "x86_64");
    if cannot {
        skipped("a guest under QEMU", "not an x86-64 machine");
    }
    cannot
}

/// A guest that runs a script of `tests/guest`; `options` are run.sh's, and what is added to the
/// command is in the script's environment.
fn guest(scratch: &Scratch, options: &[&str], script: &str) -> Command {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    // Beside cargo's own directories, where ./scripts/test.sh has put QEMU and the kernel already.
    let machine = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    let mut command = Command::new(tests.join("run.sh"));
    command
        .args(options)
        .arg(machine)
        .arg(tests.join(script))
        .env("TMPDIR", scratch.path())
        .env("GUEST_TIMEOUT", GUEST_TIME.as_secs().to_string());
    command
}

/// Runs it to its end; its script must succeed.
fn run_guest(mut guest: Command, variables: &[&str]) {
    println!("{}", run(guest.args(variables)));
}

fn host_port(port: u16) -> String {
    format!("HOST_PORT={port}")
}

/// A TCP port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
    listener.expect("a port on the loopback").port()
}
