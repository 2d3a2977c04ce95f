//! A real kernel's NBD client: a guest under QEMU attaches, makes ext4, fills, checks and trims it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::rig::{MIB, MemoryWatch, RealFiles, Scratch, Server, run, skipped, stat};

const LIMIT: u64 = 48 * MIB;

#[test]
fn a_guests_kernel_keeps_a_file_system_on_it() {
    if skip_without_guests() {
        return;
    }
    let scratch = Scratch::new();
    let archive = scratch.path().join("files.tar");
    RealFiles::choose(&scratch, 160 * MIB).archive(&archive);
    let (spill, port) = (scratch.arg("spill"), free_port());
    let server = Server::start(
        &scratch,
        "guest",
        &[
            "--size",
            "1G",
            "--mem-limit",
            "48M",
            "--backing",
            &spill,
            "--nbd",
            &format!("tcp:127.0.0.1:{port}"),
        ],
    );

    let watch = MemoryWatch::start(&scratch, server.name());
    let variables = [format!("HOST_PORT={port}"), "EXPORT=guest".to_owned()];
    run_in_guest(&scratch, &archive, "nbd-ext4.sh", &variables);
    let samples = watch.finish();

    let most = samples.into_iter().max().unwrap_or(0);
    assert!(most <= LIMIT, "mem_used_total reached {most}");
    let now = stat(&scratch, server.name());
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
    let archive = scratch.path().join("program.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    run_in_guest(&scratch, &archive, "nbd-attach.sh", &[]);
}

/// The libraries `program` is linked to, as ldd names them.
fn libraries(program: &Path) -> Vec<String> {
    let lines = run(Command::new("ldd").arg(program));
    let words = lines
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    words.map(str::to_owned).collect()
}

fn skip_without_guests() -> bool {
    let cannot = !cfg!(target_arch = "x86_64");
    if cannot {
        skipped("a guest under QEMU", "not an x86-64 machine");
    }
    cannot
}

/// Runs a script of `tests/guest` in a guest with `disk` as its `/dev/vda`; it must succeed.
fn run_in_guest(scratch: &Scratch, disk: &Path, script: &str, variables: &[String]) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    // Beside cargo's own directories, where ./scripts/test.sh has put QEMU and the kernel already.
    let machine = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    let output = run(Command::new(tests.join("run.sh"))
        .arg("--disk")
        .arg(disk)
        .arg(machine)
        .arg(tests.join(script))
        .args(variables)
        .env("TMPDIR", scratch.path())
        .env("GUEST_TIMEOUT", "580"));
    println!("{output}");
}

/// A TCP port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
    listener.expect("a port on the loopback").port()
}
