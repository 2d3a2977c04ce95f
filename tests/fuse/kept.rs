//! Servers that are killed, over a connection and a memory that outlive them.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::fs::OFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use support::{HANG, Random, eventually};
use tempfile::TempDir;
use uzram::fuse::{Mount, MountOptions, Mounted};
use uzram::{Device, DeviceMemory};

use crate::rig::{MIB, PAGE, can_mount};

/// What a server is told: whether another has served before it, and the directory.
const TOLD: &str = "UZRAM_TEST_KEPT";

/// What a user is told: the directory.
const USED: &str = "UZRAM_TEST_USED";

const SIZE: u64 = 64 * MIB;

/// Threads that use it.
const USERS: u64 = 3;

/// The server of the tests below, in a process of its own. Over its stdin come a memory's descriptors and a
/// connection.
#[test]
#[ignore = "the others start it"]
fn server() {
    let Ok(told) = std::env::var(TOLD) else {
        return;
    };
    let (begun, dir) = told.split_once(' ').expect("two words");
    let [memory, key, connection] = receive(std::io::stdin().as_fd());
    let memory = DeviceMemory::open(memory, key).expect("nobody else has it");
    let device = Device::builder(SIZE)
        .mem_limit(SIZE)
        .shards(2)
        .memory(memory)
        .build();
    let device = Arc::new(device.expect("a device"));
    let options = MountOptions::default();
    let _mount = Mount::start_kept(connection, begun == "true", device, dir.as_ref(), options)
        .expect("a connection");
    loop {
        thread::park();
    }
}

fn send(socket: BorrowedFd<'_>, files: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    assert!(rights.push(SendAncillaryMessage::ScmRights(files)));
    sendmsg(
        socket,
        &[IoSlice::new(b"3")],
        &mut rights,
        SendFlags::empty(),
    )
    .expect("sent");
}

fn receive(socket: BorrowedFd<'_>) -> [OwnedFd; 3] {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut rights, flags).expect("received");
    let files = rights.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let files: Vec<OwnedFd> = files.collect();
    files.try_into().expect("three")
}

/// A keeper of servers.
struct Keeper {
    memory: [OwnedFd; 2],
    connection: OwnedFd,
    mounted: Mounted,
    server: Option<Child>,
    dir: TempDir,
}

impl Keeper {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (mounted, connection) = Mounted::new(dir.path()).expect("mounts");
        let memory = DeviceMemory::new().expect("memory");
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor");
        let mut keeper = Self {
            memory: memory.as_fds().map(own),
            connection,
            mounted,
            server: None,
            dir,
        };
        drop(memory);
        keeper.start();
        keeper
    }

    fn start(&mut self) {
        let begun = self.server.is_some();
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let [memory, key] = &self.memory;
        send(
            ours.as_fd(),
            &[memory.as_fd(), key.as_fd(), self.connection.as_fd()],
        );
        let server = Command::new(std::env::current_exe().expect("a program"))
            .args(["--exact", "kept::server", "--ignored", "--nocapture"])
            .env(TOLD, format!("{begun} {}", self.dir.path().display()))
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn();
        self.server = Some(server.expect("a process"));
    }

    fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill().expect("it is ours");
            server.wait().expect("it is ours");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = self.mounted.unmount() {
            eprintln!("{error}");
        }
    }
}

/// Whether the kernel gives requests again, as it does from Linux 6.9 on.
fn can_resend() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 9))
}

/// What is written and read at a time.
const BLOCK: usize = 16 * PAGE as usize;

/// As direct I/O wants it.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

impl Aligned {
    fn fill(&mut self, block: u64, version: u8) {
        let mut noise = Random(block << 8 | u64::from(version));
        for piece in self.0.chunks_exact_mut(32) {
            piece.fill(version);
            piece[..8].copy_from_slice(&noise.next().to_le_bytes());
        }
    }
}

/// Writes blocks of `disk`, and reads what it wrote, until stdin ends; says after each of them that it has, by a byte
/// on stderr. A process of its own: who has the file open waits for a server when it closes it.
#[test]
#[ignore = "the others start it"]
fn user() {
    let Ok(dir) = std::env::var(USED) else {
        return;
    };
    let ends = AtomicBool::new(false);
    let each = SIZE / BLOCK as u64 / USERS;
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    let file = options.open(Path::new(&dir).join("disk")).expect("served");
    thread::scope(|scope| {
        for number in 0..USERS {
            let (file, ends) = (&file, &ends);
            scope.spawn(move || use_blocks(file, number * each..(number + 1) * each, ends));
        }
        // Ends when the keeper wants it to.
        let _ = std::io::stdin().read(&mut [0]);
        ends.store(true, SeqCst);
    });
}

fn use_blocks(file: &File, blocks: Range<u64>, ends: &AtomicBool) {
    let mut versions = vec![0u8; (blocks.end - blocks.start) as usize];
    let mut random = Random(blocks.start);
    let (mut buffer, mut expected) = (Aligned([0; BLOCK]), Aligned([0; BLOCK]));
    while !ends.load(SeqCst) {
        let index = random.index(versions.len());
        let (block, version) = (blocks.start + index as u64, &mut versions[index]);
        let at = block * BLOCK as u64;
        let used = if random.below(2) == 0 {
            *version = 1 + random.below(255) as u8;
            buffer.fill(block, *version);
            file.write_all_at(&buffer.0, at)
        } else if *version != 0 {
            let read = file.read_exact_at(&mut buffer.0, at);
            expected.fill(block, *version);
            if read.is_ok() && buffer.0 != expected.0 {
                abort(&format!("block {block} is not what was written"));
            }
            read
        } else {
            Ok(())
        };
        if let Err(error) = used {
            abort(&format!("block {block}: {error}"));
        }
        std::io::stderr().write_all(b".").expect("somebody hears");
    }
}

/// Ends the process, whatever its threads wait for.
fn abort(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(1);
}

#[test]
fn who_reads_and_writes_notices_no_death_of_the_server() {
    const NAME: &str = "who_reads_and_writes_notices_no_death_of_the_server";
    const DEATHS: usize = 25;
    if !can_mount(NAME) {
        return;
    }
    if !can_resend() {
        eprintln!("SKIPPED: {NAME} needs Linux 6.9");
        return;
    }
    let mut keeper = Keeper::new();
    let mut user = Command::new(std::env::current_exe().expect("a program"))
        .args(["--exact", "kept::user", "--ignored", "--nocapture"])
        .env(USED, keeper.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let said = Said::new(user.stderr.take().expect("a pipe"));
    let mut random = Random(11);
    for _ in 0..DEATHS {
        said.await_dots(1 + random.below(300) as usize);
        keeper.kill();
        keeper.start();
    }
    said.await_dots(100);
    drop(user.stdin.take());
    let ended = support::ended(&mut user, HANG);
    assert!(
        ended.is_some_and(|status| status.success()),
        "{}",
        said.text()
    );
}

/// What a process says on its stderr.
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn new(mut stderr: ChildStderr) -> Self {
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stderr.read(&mut bytes) {
                heard.lock().expect("no panic").extend(&bytes[..len]);
            }
            // Its end.
            heard.lock().expect("no panic").push(b'\n');
        });
        Self(said)
    }

    /// What it said beside dots.
    fn text(&self) -> String {
        let said = self.0.lock().expect("no panic");
        let text = said.iter().copied().filter(|&byte| byte != b'.');
        String::from_utf8_lossy(&text.collect::<Vec<_>>()).into_owned()
    }

    /// Waits for so many more dots.
    fn await_dots(&self, more: usize) {
        let dots = || self.0.lock().expect("no panic").len();
        let until = dots() + more;
        eventually("something done", || {
            dots() >= until || !self.text().is_empty()
        });
        assert_eq!(self.text(), "", "the user has ended");
    }
}
