//! A server to try clients on, and the running of them.
//!
//! A missing tool fails the test and names the Debian package; `scripts/test.sh` installs them.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::Value;
use support::noise;
use tempfile::TempDir;
use uzram::nbd::{Address, Server, ServerConfig};
use uzram::{BlockDevice, Device, DeviceConfig};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const SIZE: u64 = 256 * MIB;

/// A server of a device on a Unix socket of its own.
pub(crate) struct Fixture {
    dir: TempDir,
    pub(crate) device: Arc<Device>,
    pub(crate) server: Server,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Arc::new(Device::new(&DeviceConfig::new(SIZE)).expect("a device"));
        let address = Address::Unix(dir.path().join("nbd.sock"));
        let served: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
        let mut config = ServerConfig::new("disk", vec![address]);
        configure(&mut config);
        let server = Server::start(config, served).expect("the server starts");
        Self {
            dir,
            device,
            server,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn uri(&self) -> String {
        format!(
            "nbd+unix:///disk?socket={}",
            self.path("nbd.sock").display()
        )
    }

    /// Three pages of data, two of them neighbours, and nothing else.
    pub(crate) fn write_a_little(&self) {
        let page = noise(1, 4096);
        for (offset, data) in [(0, &page), (MIB, &page), (MIB + 4096, &page)] {
            self.device.write(offset, data).expect("room");
        }
    }
}

/// Runs `tool`, which Debian has in `package`, and returns what it printed.
pub(crate) fn run<A: AsRef<OsStr>>(package: &str, tool: &str, arguments: &[A]) -> String {
    let output = output(package, tool, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{tool} failed: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// Runs `tool`, which must fail, and returns what it complained of.
pub(crate) fn fail<A: AsRef<OsStr>>(package: &str, tool: &str, arguments: &[A]) -> String {
    let output = output(package, tool, arguments);
    assert!(!output.status.success(), "{tool} did not fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn output<A: AsRef<OsStr>>(package: &str, tool: &str, arguments: &[A]) -> Output {
    // The system's own directories first: Debian's Python modules belong to Debian's Python.
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(tool)
        .args(arguments)
        .env("PATH", format!("/usr/bin:/bin:{path}"))
        .output()
        .unwrap_or_else(|error| {
            panic!("cannot run {tool}: {error}; it is in the Debian package {package}")
        })
}

pub(crate) fn libnbd(tool: &str, arguments: &[&str]) -> String {
    run("libnbd-bin", tool, arguments)
}

pub(crate) fn qemu(tool: &str, arguments: &[&str]) -> String {
    run("qemu-utils", tool, arguments)
}

pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// An image of the device's size with data here and there and holes between.
pub(crate) fn sparse_image(path: &Path) {
    let file = File::create(path).expect("a file");
    file.set_len(SIZE).expect("a sparse file");
    for (i, at) in [0, 3 * MIB + 512, 100 * MIB, 130 * MIB - 1000, SIZE - 70_000]
        .into_iter()
        .enumerate()
    {
        let data = noise(i as u64 + 10, if i == 2 { 20 << 20 } else { 70_000 });
        file.write_all_at(&data, at).expect("room");
    }
}

pub(crate) fn assert_same_files(one: &Path, other: &Path) {
    run("diffutils", "cmp", &[one, other]);
}
