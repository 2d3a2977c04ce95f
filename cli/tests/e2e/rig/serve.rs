//! `uzram serve` as a child of the test, and what it says about itself.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{Background, Scratch, run};

/// A SIGTERM must have ended a server by then, whatever its clients do.
const STOP: Duration = Duration::from_secs(5);

/// The program under test, with the test's own run directory.
pub(crate) fn uzram(scratch: &Scratch) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uzram"));
    command.env("UZRAM_RUNDIR", scratch.run_dir());
    command
}

/// What `uzram stat NAME --json` says.
pub(crate) struct Stat(serde_json::Value);

impl Stat {
    /// An integer of it.
    ///
    /// # Panics
    /// If it is not there: the contract promises it.
    pub(crate) fn get(&self, key: &str) -> u64 {
        let value = self.0.get(key).and_then(serde_json::Value::as_u64);
        value.unwrap_or_else(|| panic!("no integer {key} in {}", self.0))
    }

    /// Asserts that some was spilled and came back, that the limit held, and that nothing failed.
    pub(crate) fn check_spilling(&self, limit: u64) {
        assert!(self.get("written_back_pages") > 0, "nothing was spilled");
        assert!(self.get("bd_reads") > 0, "nothing was read back");
        assert!(self.get("mem_used_max") <= limit);
        for key in ["failed_reads", "failed_writes"] {
            assert_eq!(self.get(key), 0, "{key}");
        }
    }
}

/// The statistics of a server in `scratch`'s run directory.
pub(crate) fn stat(scratch: &Scratch, name: &str) -> Stat {
    let json = run(uzram(scratch).args(["stat", name, "--json"]));
    Stat(serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e} in {json}")))
}

/// A running `uzram serve NAME`.
pub(crate) struct Server {
    process: Background,
    name: String,
    log: PathBuf,
}

impl Server {
    /// Starts one and waits until it says `ready`.
    pub(crate) fn start(scratch: &Scratch, name: &str, args: &[&str]) -> Self {
        let log = scratch.path().join(format!("{name}.log"));
        let mut process = Background::start(
            uzram(scratch)
                .args(["serve", name])
                .args(args)
                .stdout(Stdio::piped())
                .stderr(File::create(&log).expect("a log file")),
        );
        let stdout = process.child().stdout.take().expect("stdout is a pipe");
        let (tell, ready) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // The test may have given up.
            let _nobody_waits = tell.send(read.map(|_| line));
        });
        let server = Self {
            process,
            name: name.to_owned(),
            log,
        };
        match ready.recv_timeout(Duration::from_secs(60)) {
            Ok(Ok(line)) if line == "ready\n" => server,
            other => panic!("not ready: {other:?}\n{}", server.log()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it wrote to stderr so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends SIGTERM and returns how it ended.
    ///
    /// # Panics
    /// If it still runs after 5 s.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let began = Instant::now();
        self.process.signal(Signal::TERM);
        // A little more than the bound, to be able to say by how much it was missed.
        let status = self.process.wait(STOP * 3);
        let took = began.elapsed();
        match status {
            Some(status) if took <= STOP => status,
            other => panic!("{other:?} {took:?} after SIGTERM\n{}", self.log()),
        }
    }

    /// Sends SIGKILL and waits until it is gone, and its name free with it.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        let gone = self.process.wait(Duration::from_secs(60));
        assert!(gone.is_some(), "it outlives SIGKILL");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.signal(Signal::TERM);
        // Killed by `process` if that was not enough.
        let _status = self.process.wait(STOP);
    }
}

/// Asks a server for its memory over and over, from its own thread.
pub(crate) struct MemoryWatch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u64>>,
}

impl MemoryWatch {
    pub(crate) fn start(scratch: &Scratch, name: &str) -> Self {
        let (run_dir, name) = (scratch.run_dir(), name.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                samples.push(sample(&run_dir, &name));
                std::thread::sleep(Duration::from_millis(5));
            }
            samples
        });
        Self { stop, thread }
    }

    /// Ends it; every sample of `mem_used_total`, in order.
    pub(crate) fn finish(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(samples) => samples,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn sample(run_dir: &Path, name: &str) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uzram"));
    let json = run(command
        .env("UZRAM_RUNDIR", run_dir)
        .args(["stat", name, "--json"]));
    Stat(serde_json::from_str(&json).expect("stat prints JSON")).get("mem_used_total")
}
