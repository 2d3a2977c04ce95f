//! SIGTERM in the middle of the work: gone within 5 s, with nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::rig::{
    Background, MIB, MountPoint, Scratch, Server, loops_in, mounts_in, skip_without_mounts, stat,
    tool, uzram,
};
use support::{HANG, within};

#[test]
fn a_server_under_nbd_load_stops() {
    let scratch = Scratch::new();
    let (spill, socket) = (scratch.arg("spill"), scratch.arg("nbd"));
    let mut server = Server::start(
        &scratch,
        "load",
        &[
            "--size",
            "1G",
            "--mem-limit",
            "32M",
            "--backing",
            &spill,
            "--nbd",
            &format!("unix:{socket}"),
        ],
    );
    let mut load = Background::start(
        tool("fio")
            .args(["--name=load", "--ioengine=nbd", "--rw=randrw", "--bs=64k"])
            .arg("--thread")
            .args(["--iodepth=16", "--time_based", "--runtime=120", "--size=1G"])
            .args(["--buffer_compress_percentage=40", "--refill_buffers"])
            .arg(format!("--uri=nbd+unix:///load?socket={socket}"))
            .current_dir(scratch.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    await_spilling(&scratch, "load");
    assert!(load.is_running(), "the load ended by itself");
    let status = server.terminate();
    assert!(status.success(), "{status}\n{}", server.log());
    assert!(!Path::new(&socket).exists(), "{socket} is left");
    assert_nothing_left(&scratch);
}

#[test]
fn a_server_under_a_busy_file_system_stops() {
    if skip_without_mounts("SIGTERM under a mounted file system") {
        return;
    }
    let scratch = Scratch::new();
    let spill = scratch.arg("spill");
    let mount = MountPoint::new(
        &scratch,
        "busy",
        &["--size", "1G", "--mem-limit", "32M", "--backing", &spill],
    );
    let mut load = Background::start(
        tool("fio")
            .args(["--name=load", "--rw=randrw", "--bs=64k", "--numjobs=2"])
            .args(["--ioengine=psync", "--direct=1", "--size=256M", "--thread"])
            .args(["--time_based", "--runtime=120"])
            .args(["--buffer_compress_percentage=40", "--refill_buffers"])
            .arg(format!("--directory={}", mount.dir().display()))
            .current_dir(scratch.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    await_spilling(&scratch, mount.name());
    assert!(load.is_running(), "the load ended by itself");
    let server = server_of(&scratch);
    kill_process(server, Signal::TERM).expect("the server runs");
    let gone = within(Duration::from_secs(5), || {
        test_kill_process(server).is_err()
    });
    assert!(gone, "the server still runs 5 s after SIGTERM");
    // The load holds files open on the file system until it notices that its device is gone.
    drop(load);
    assert_nothing_left(&scratch);
}

/// Waits until the load has gone past the limit.
fn await_spilling(scratch: &Scratch, name: &str) {
    let spills = within(HANG, || {
        stat(scratch, name).get("written_back_pages") > 1000
    });
    let now = stat(scratch, name);
    assert!(spills, "{} MiB stored", now.get("orig_data_size") / MIB);
}

/// The one server that was started with `scratch`'s run directory.
fn server_of(scratch: &Scratch) -> Pid {
    let run_dir = format!("UZRAM_RUNDIR={}", scratch.run_dir().display());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let holds = |file: &str, wanted: &str| {
            // A process may end while it is looked at.
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            bytes.split(|b| *b == 0).any(|s| s == wanted.as_bytes())
        };
        if holds("environ", &run_dir) && holds("cmdline", "serve-detached") {
            let pid = entry.file_name().to_string_lossy().parse();
            found.extend(pid.ok().and_then(Pid::from_raw));
        }
    }
    assert_eq!(found.len(), 1, "servers in {run_dir}: {found:?}");
    found[0]
}

fn assert_nothing_left(scratch: &Scratch) {
    let mut left = Vec::new();
    let nothing = within(HANG, || {
        left = mounts_in(scratch.path());
        left.extend(loops_in(scratch.path()));
        let entries = fs::read_dir(scratch.run_dir()).expect("the run directory");
        left.extend(
            entries
                .flatten()
                .map(|entry| entry.path().display().to_string()),
        );
        left.is_empty()
    });
    assert!(nothing, "left behind: {left:?}");
    let listed = crate::rig::run(uzram(scratch).arg("list").stderr(Stdio::null()));
    assert!(
        !listed.contains("busy") && !listed.contains("load"),
        "{listed}"
    );
}
