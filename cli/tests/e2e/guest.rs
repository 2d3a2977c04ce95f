//! A real kernel's NBD client: a guest under QEMU attaches, makes ext4, fills, checks and trims it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::rig::{MIB, MemoryWatch, RealFiles, Scratch, Server, run, skipped, stat};

const LIMIT: u64 = 48 * MIB;

#[test]
fn a_guests_kernel_keeps_a_file_system_on_it() {
    if !cfg!(target_arch = "x86_64") {
        skipped("a guest under QEMU", "not an x86-64 machine");
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
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    // Beside cargo's own directories, where ./scripts/test.sh has put QEMU and the kernel already.
    let machine = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("guest");
    let output = run(Command::new(tests.join("run.sh"))
        .arg("--disk")
        .arg(&archive)
        .arg(machine)
        .arg(tests.join("nbd-ext4.sh"))
        .args([format!("HOST_PORT={port}"), "EXPORT=guest".to_owned()])
        .env("TMPDIR", scratch.path())
        .env("GUEST_TIMEOUT", "580"));
    println!("{output}");
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

/// A TCP port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).and_then(|socket| socket.local_addr());
    listener.expect("a port on the loopback").port()
}
