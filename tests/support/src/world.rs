//! A world of its own for each test: a temporary directory with a RUNDIR, and the certainty that
//! nothing mounted, attached or running in it survives the test, however it ends.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::HANG;

/// The `uzram` command that was built with the tests: it lies beside the directory of their programs.
///
/// # Panics
/// If it is not there: build it with the tests, by `cargo test --workspace`.
pub fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("a test has a program");
    let built = tests.parent().and_then(Path::parent);
    let program = built.expect("it is in a directory").join("uzram");
    assert!(program.exists(), "{} is not built", program.display());
    program
}

/// A directory with a RUNDIR.
pub struct World {
    temp: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("uz").tempdir().unwrap();
        Self { temp }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().canonicalize().unwrap().join(name)
    }

    pub fn rundir(&self) -> PathBuf {
        self.path("run")
    }

    /// Makes a directory.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        dir
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(args)
            .current_dir(self.temp.path())
            .env("UZRAM_RUNDIR", self.rundir())
            .env_remove("UZRAM_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a verb to its end, which must come.
    pub fn run(&self, args: &[&str]) -> Output {
        finish(&mut self.command(args))
    }

    /// Runs a verb that must succeed; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a verb that must fail with `code` and one line on stderr, which is returned.
    pub fn refused(&self, code: i32, args: &[&str]) -> String {
        one_line(&self.run(args), code, args)
    }

    /// Runs a verb again while it is refused for users that are there, at most [`HANG`]: a connection or file
    /// that was closed is in use until the server has seen that, which takes a busy machine any time.
    pub fn once_unused(&self, args: &[&str]) -> Output {
        let begun = Instant::now();
        loop {
            let output = self.run(args);
            let is_used = String::from_utf8_lossy(&output.stderr).contains(" is in use by ");
            if output.status.success() || !is_used || begun.elapsed() > HANG {
                return output;
            }
        }
    }

    /// Such a verb must succeed.
    pub fn ok_once_unused(&self, args: &[&str]) {
        let output = self.once_unused(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Starts `uzram serve` and waits until it is ready.
    pub fn serve(&self, args: &[&str]) -> Serve {
        let mut words = vec!["serve"];
        words.extend(args);
        Serve::start(&mut self.command(&words))
    }

    /// What is left: devices in RUNDIR, mounts and loop devices below the directory.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<_> = fs::read_dir(self.rundir())
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path().display().to_string())
            .collect();
        left.extend(self.mounts());
        left.extend(self.loops().into_iter().map(|(device, _)| device));
        left
    }

    /// Mountpoints below the directory, the topmost first.
    pub fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut mounts: Vec<_> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|at| Path::new(at).starts_with(self.path("")))
            .map(str::to_owned)
            .collect();
        mounts.reverse();
        mounts
    }

    /// Loop devices over files below the directory, with those files.
    pub fn loops(&self) -> Vec<(String, String)> {
        let mut loops = Vec::new();
        for entry in fs::read_dir("/sys/block").unwrap() {
            let entry = entry.unwrap();
            let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
                continue;
            };
            if Path::new(&file).starts_with(self.path("")) {
                let device = format!("/dev/{}", entry.file_name().to_str().unwrap());
                loops.push((device, file.trim_end().to_owned()));
            }
        }
        loops
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let quietly = |program: &str, args: &[&str]| {
            let _ = Command::new(program).args(args).output();
        };
        // Found first: once the mount below them is gone nothing tells whose they are.
        let loops = self.loops();
        for mount in self.mounts() {
            quietly("umount", &["--lazy", &mount]);
        }
        for (device, _) in loops {
            quietly("swapoff", &[&device]);
            quietly("losetup", &["--detach", &device]);
        }
        for entry in fs::read_dir(self.rundir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let _ = self
                .command(&["stop", "--force", &name.to_string_lossy()])
                .output();
        }
    }
}

/// Checks a refusal and returns its line.
pub fn one_line(output: &Output, code: i32, args: &[&str]) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    assert!(stderr.starts_with("uzram: "), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    stderr
}

/// Runs `command` to its end, at most [`HANG`].
pub fn finish(command: &mut Command) -> Output {
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    };
    thread::scope(|scope| {
        let stdout = scope.spawn(|| read(&mut stdout));
        let stderr = scope.spawn(|| read(&mut stderr));
        let status = ended(&mut child, HANG).unwrap_or_else(|| {
            child.kill().unwrap();
            panic!("{command:?} hangs");
        });
        Output {
            status,
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    })
}

/// Waits for `child`'s end, at most `timeout`.
pub fn ended(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > deadline {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// Whether a process has been sent a signal that it has not taken yet.
pub fn is_pending(pid: u32, signal: Signal) -> bool {
    let status = status(pid);
    ["SigPnd:", "ShdPnd:"]
        .iter()
        .any(|mask| has(&status, mask, signal))
}

/// Whether a process that handles a signal waits for something.
pub fn waits_handling(pid: u32, signal: Signal) -> bool {
    let status = status(pid);
    has(&status, "SigCgt:", signal)
        && ["State:\tS", "State:\tD"]
            .iter()
            .any(|at| status.contains(at))
}

fn status(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default()
}

/// Whether a signal is in a mask of a process's status.
fn has(status: &str, mask: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix(mask));
    let mask = mask.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// A server in the foreground; killed when dropped.
pub struct Serve {
    pub child: Child,
}

impl Serve {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut stderr = String::new();
            let _ = child.stderr.take().unwrap().read_to_string(&mut stderr);
            let _ = child.wait();
            panic!("{command:?}: {line:?}, {stderr}");
        }
        Self { child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; the exit code.
    pub fn ended(&mut self, timeout: Duration) -> Option<i32> {
        ended(&mut self.child, timeout)
            .expect("the server goes on")
            .code()
    }

    pub fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether FUSE and loop devices can be had here; says loudly if not.
pub fn can_mount(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt;
        meta.uid() == 0
    });
    let there = root && Path::new("/dev/fuse").exists() && Path::new("/dev/loop-control").exists();
    if !there {
        eprintln!("SKIPPED: {test} needs root, /dev/fuse and /dev/loop-control");
    }
    there
}

/// A pipe that takes no more, and its other end, which is to be kept.
pub fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // What the kernel gives a pipe (pipe(7)).
    writer.write_all(&[b' '; 64 << 10]).unwrap();
    (reader, writer)
}

/// Whether a process, which must be dumpable unless we are root, writes a file in a directory, with a name or without one.
pub fn is_saving(server: u32, dir: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{server}/fd"));
    let open = open.into_iter().flatten();
    let mut files = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    files.any(|file| file != dir && file.starts_with(dir))
}
