//! Running other programs: found or named with their package, bounded in time, loud when they fail.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use support::within;

/// How long a program may take that should take seconds: a bound on hangs, not a measure of speed.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Where programs are, root's included whoever asks.
const PATHS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the machine's.
///
/// # Panics
/// If it is not installed, naming the Debian package that has it.
pub(crate) fn tool(name: &str) -> Command {
    let found = PATHS.split(':').map(|dir| Path::new(dir).join(name));
    match found.into_iter().find(|path| path.exists()) {
        Some(path) => {
            let mut command = Command::new(path);
            // Tools find the system's own interpreters, whatever else this shell has.
            command.env("PATH", PATHS);
            command
        }
        None => panic!(
            "{name} is missing: apt-get install {} (./scripts/test.sh does it)",
            package_of(name)
        ),
    }
}

fn package_of(tool: &str) -> &str {
    match tool {
        "blkdiscard" | "fallocate" | "findmnt" | "fstrim" | "losetup" | "prlimit" | "setpriv" => {
            "util-linux"
        }
        "btrfs" => "btrfs-progs",
        "e2fsck" | "mkfs.ext4" => "e2fsprogs",
        "fusermount3" => "fuse3",
        "fs_mark" => "fsmark",
        "nbdcopy" | "nbdfuse" | "nbdinfo" => "libnbd-bin",
        "nbdsh" => "python3-libnbd",
        "qemu-io" => "qemu-utils",
        "umount" => "mount",
        "xfs_repair" => "xfsprogs",
        same => same,
    }
}

/// Says loudly that a test does not run, and why.
pub(crate) fn skipped(test: &str, reason: &str) {
    // Past the test harness, which hides what a passing test prints.
    let _closed = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
}

/// Runs `command` to its end and returns what it wrote to stdout.
///
/// # Panics
/// If it fails or does not end, with all it wrote.
pub(crate) fn run(command: &mut Command) -> String {
    let (status, out, err) = status_of(command);
    assert!(
        status.success(),
        "{command:?}: {status}\n--- stdout\n{out}\n--- stderr\n{err}"
    );
    out
}

/// Runs `command` to its end and returns its status, stdout and stderr.
///
/// # Panics
/// If it does not end.
pub(crate) fn status_of(command: &mut Command) -> (ExitStatus, String, String) {
    // Files, not pipes: what the command leaves running in the background may keep them.
    let mut out = tempfile::tempfile().expect("a file for stdout");
    let mut err = tempfile::tempfile().expect("a file for stderr");
    command.stdout(out.try_clone().expect("another handle"));
    command.stderr(err.try_clone().expect("another handle"));
    let mut background = Background::start(command);
    let status = background.wait(TIMEOUT);
    drop(background);
    let status = status.unwrap_or_else(|| {
        panic!(
            "{command:?} still runs after {TIMEOUT:?}\n{}{}",
            contents(&mut out),
            contents(&mut err)
        )
    });
    (status, contents(&mut out), contents(&mut err))
}

fn contents(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut bytes))
        .expect("reading back what was written");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A program in a process group of its own, which is killed when this is dropped.
pub(crate) struct Background {
    child: Child,
    done: Option<ExitStatus>,
}

impl Background {
    pub(crate) fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, done: None }
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        if self.done.is_none() {
            self.done = self.child.try_wait().expect("waiting for a child");
        }
        self.done.is_none()
    }

    /// Waits for the program itself, `None` if it still runs after `bound`.
    pub(crate) fn wait(&mut self, bound: Duration) -> Option<ExitStatus> {
        within(bound, || !self.is_running());
        self.done
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.done.is_none() {
            let group = Pid::from_child(&self.child);
            // It may have ended a moment ago.
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::KILL);
            let _reaped = self.child.wait();
        }
    }
}
