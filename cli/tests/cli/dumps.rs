//! What a core dump of a server holds: none is made, and where developers have one made it has neither
//! pages nor the TLS key's file in it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use crate::export::{certificates, nbdsh_at};
use support::{HANG, Serve, World, ended, finish, signal};

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
    let key = Key::of(&world);
    for piece in &key.text {
        let shown = String::from_utf8_lossy(piece);
        assert_eq!(count(&core, piece), 0, "{shown}: of the key's text");
    }
    for half in key.secret.chunks(16) {
        assert_eq!(count(&core, half), 0, "{half:x?}: of the key as decoded");
        // As the library that signs with it keeps it, once.
        let reversed: Vec<_> = half.iter().rev().copied().collect();
        assert!(count(&core, &reversed) <= 1, "{reversed:x?}");
    }
}

/// What nobody but the server may know of its key. The rest of the file is no secret: the public key is
/// in the certificate too, in the same letters where it begins at the same place of three.
struct Key {
    /// The private number.
    secret: Vec<u8>,
    /// Parts of the file's lines that hold nothing but parts of it.
    text: Vec<Vec<u8>>,
}

impl Key {
    fn of(world: &World) -> Self {
        /// Ahead of the private number on this curve: a version, then its tag and length.
        const AHEAD: [u8; 5] = [2, 1, 1, 4, 32];
        /// Letters of a part: too many to be there by chance.
        const PART: usize = 16;
        let file = world.path("certs/server-key.pem");
        let mut openssl = Command::new("openssl");
        openssl.args(["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"]);
        let openssl = openssl.arg(&file).stdout(Stdio::piped());
        let der = finish(openssl.stderr(Stdio::piped())).stdout;
        let ahead = der.windows(AHEAD.len()).position(|at| at == AHEAD);
        let begin = ahead.expect("an EC key") + AHEAD.len();
        let secret = begin..begin + 32;
        let text = fs::read_to_string(file).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('-'));
        let mut parts = Vec::new();
        let mut at = 0;
        for line in lines {
            // Four letters are three bytes, and a line is so many fours.
            for (four, part) in line.as_bytes().windows(PART).step_by(4).enumerate() {
                let from = at + four * 3;
                if secret.contains(&from) && secret.contains(&(from + PART / 4 * 3 - 1)) {
                    parts.push(part.to_owned());
                }
            }
            at += line.len() / 4 * 3;
        }
        assert!(parts.len() > 1, "{text}");
        Self {
            secret: der[secret].to_owned(),
            text: parts,
        }
    }
}
