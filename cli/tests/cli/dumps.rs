//! What a core dump of a server holds: none is made, and where developers have one made it has neither
//! pages nor the TLS key's file in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use crate::common::{HANG, Serve, World, ended, finish, signal};
use crate::export::{certificates, nbdsh_at};

/// Pages that are written: more than the server has memory for.
const PAGES: usize = 4096;

/// What each of them begins with.
const MARK: &[u8] = b"uzram-plain-text";

/// A server with a key of either kind, and pages in memory and in the backing, which may leave a core
/// dump of any size for all that its limits say.
fn filled(world: &World, dumpable: bool) -> Serve {
    let certificates = format!("--tls-certificates={}", certificates(world));
    let args = [
        "serve",
        "dumped",
        "--size=64M",
        "--mem-limit=8M",
        "--backing=spill",
        "--backing-encrypt",
        "--nbd=unix:s",
        &certificates,
    ];
    let uzram = world.command(&args);
    let mut command = Command::new("prlimit");
    command
        .arg("--core=unlimited")
        .arg(uzram.get_program())
        .args(uzram.get_args())
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .env_remove("UZRAM_LOG")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if dumpable {
        command.env("UZRAM_DUMPABLE", "1");
    } else {
        command.env_remove("UZRAM_DUMPABLE");
    }
    let server = Serve::start(&mut command);
    let uri = format!("nbd+unix:///dumped?socket={}", world.path("s").display());
    // Half of each page does not compress, so none is stored as a reference to another part of itself.
    nbdsh_at(
        &uri,
        &format!(
            "import os\n\
             h.connect_uri(uri)\n\
             mark = {mark:?}.encode()\n\
             for page in range({PAGES}):\n\
             \x20   h.pwrite(mark + os.urandom(2032) + bytes(2048), page * 4096)\n\
             for page in range(0, {PAGES}, 3):\n\
             \x20   assert h.pread(16, page * 4096) == mark",
            mark = std::str::from_utf8(MARK).unwrap()
        ),
    );
    let stats = world.ok(&["stat", "dumped", "bd_stat"]);
    assert!(
        !stats.trim_start().starts_with("0 "),
        "nothing was spilled: {stats}"
    );
    server
}

/// Ends a server as a fault would.
fn crash(server: &mut Serve) -> ExitStatus {
    signal(server.pid(), "ABRT");
    ended(&mut server.child, HANG).expect("it ends")
}

/// The core dumps in the directory that the server ran in.
fn cores(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.path("")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("core")
        })
        .collect()
}

fn count(memory: &[u8], what: &[u8]) -> usize {
    memory
        .windows(what.len())
        .filter(|window| *window == what)
        .count()
}

#[test]
fn a_server_that_crashes_leaves_no_core_dump() {
    let world = World::new();
    let mut server = filled(&world, false);
    let memory = fs::metadata(format!("/proc/{}/mem", server.pid())).unwrap();
    // How the kernel shows that its own user may not look at it.
    assert_eq!(memory.uid(), 0);
    let status = crash(&mut server);
    assert_eq!(status.signal(), Some(6));
    assert!(!status.core_dumped());
    let left = cores(&world);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_core_dump_that_a_developer_asks_for_holds_no_pages_and_no_keys_text() {
    let world = World::new();
    let mut server = filled(&world, true);
    let threads = fs::read_dir(format!("/proc/{}/task", server.pid()))
        .unwrap()
        .count();
    let status = crash(&mut server);
    let found = cores(&world);
    let ([core], true) = (&found[..], status.core_dumped()) else {
        let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
        eprintln!(
            "SKIPPED: the_core_dump_that_a_developer_asks_for_holds_no_pages_and_no_keys_text: this \
             machine leaves no core dump in the working directory: {pattern}"
        );
        return;
    };
    let core = fs::read(core).unwrap();
    // It is one of this server.
    assert_ne!(count(&core, b"backing-encrypt"), 0);
    // A thread may have the last page that it worked on, and that page compressed, on its stack;
    // one that has ended as well, so there may be more than there are threads.
    let (pages, most) = (count(&core, MARK), (PAGES / 64).max(4 * threads));
    assert!(
        pages < most,
        "{pages} pages in plain text, {threads} threads"
    );
    let key = fs::read_to_string(world.path("certs/server-key.pem")).unwrap();
    for line in key.lines().filter(|line| !line.starts_with('-')) {
        assert_eq!(count(&core, line.as_bytes()), 0, "{line}");
    }
    let mut openssl = Command::new("openssl");
    openssl.args(["pkey", "-outform", "DER", "-in"]);
    let der = finish(
        openssl
            .arg(world.path("certs/server-key.pem"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    assert!(der.stdout.len() > 100, "{der:?}");
    assert_eq!(count(&core, &der.stdout), 0);
}
