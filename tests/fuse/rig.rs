//! What the tests stand on, each piece taken down when dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::io::Errno;
use tempfile::TempDir;
use uzram::fuse::{Mount, MountOptions, detach_stale};
use uzram::{Attribute, BackingConfig, Device, DeviceConfig, OriginConfig, OriginUse, SyncPolicy};

use support::HANG;
use support::offered::OVER_IO_URING;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const MIB: u64 = 1 << 20;

/// Whether mounts can be made here; says so if not.
pub(crate) fn can_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    if root && fuse.is_ok() {
        return true;
    }
    // Straight to the descriptor: the harness keeps what a passing test prints to itself.
    let _ = writeln!(io::stderr(), "SKIPPED: {test}: needs root and /dev/fuse");
    false
}

/// A served device. Fields drop in order: the mount goes before its directory.
pub(crate) struct Served {
    pub(crate) mount: Mount,
    pub(crate) device: Arc<Device>,
    pub(crate) dir: TempDir,
}

impl Served {
    pub(crate) fn start(bytes: u64) -> Self {
        Self::with(&DeviceConfig::new(bytes))
    }

    /// With a backing at `spill`: a request may have to wait for that.
    pub(crate) fn start_spilling(bytes: u64, spill: PathBuf) -> Self {
        let mut config = DeviceConfig::new(bytes);
        config.mem_limit = Some(bytes / 4);
        config.backing = Some(BackingConfig::new(spill));
        Self::with(&config)
    }

    /// Over an image that flushes reach.
    pub(crate) fn over(image: PathBuf) -> Self {
        let origin = OriginConfig::new(image, OriginUse::WriteBack(SyncPolicy::Flush));
        Self::with(&DeviceConfig::over(origin).expect("an image"))
    }

    pub(crate) fn with(config: &DeviceConfig) -> Self {
        let device = Arc::new(Device::new(config).expect("a device"));
        let dir = tempfile::tempdir().expect("a directory");
        let options = MountOptions::default();
        let mount = Mount::start(device.clone(), dir.path(), options).expect("mounts");
        if std::env::var_os(OVER_IO_URING).is_some() {
            assert!(mount.is_over_io_uring());
        }
        Self { mount, device, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn open_disk(&self, flags: OFlags) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.mount.disk_path())
            .expect("opens disk")
    }

    /// Waits until nobody uses it: the kernel says that a file is closed after it is.
    pub(crate) fn is_left(&self) {
        let begun = Instant::now();
        while !self.device.users().is_empty() {
            assert!(begun.elapsed() < HANG, "{:?}", self.device.users());
        }
    }

    pub(crate) fn show(&self, attribute: Attribute) -> String {
        attribute.show(&self.device).expect("shows")
    }
}

/// A loop device on `disk`, detached when dropped.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn attach(disk: &Path) -> Self {
        let output = Command::new("losetup")
            .args([
                "--direct-io=on",
                "--sector-size",
                "4096",
                "--find",
                "--show",
            ])
            .arg(disk)
            .output()
            .expect("losetup runs");
        assert!(output.status.success(), "losetup: {output:?}");
        let path = String::from_utf8(output.stdout).expect("a path");
        Self(path.trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// A mounted file system, unmounted when dropped.
pub(crate) struct Mounted(pub(crate) TempDir);

impl Mounted {
    pub(crate) fn mount(device: &Path) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        run(Command::new("mount")
            .args(["-o", "discard"])
            .arg(device)
            .arg(dir.path()));
        Self(dir)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let umount = |lazy: &[&str]| {
            let status = Command::new("umount")
                .args(lazy)
                .arg(self.0.path())
                .status();
            status.is_ok_and(|status| status.success())
        };
        if !umount(&[]) {
            umount(&["-l"]);
        }
    }
}

/// A server in a process of its own, killed when dropped; what it leaves mounted is detached.
pub(crate) struct Server {
    child: Child,
    pub(crate) dir: TempDir,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "rig::serve_for_another_test", "--nocapture"])
            .env(SERVE_DIR, dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut server = Self { child, dir };
        let stdout = server.child.stdout.take().expect("piped");
        let served = BufReader::new(stdout)
            .lines()
            .any(|line| line.expect("reads").contains("served"));
        assert!(served, "the server did not come up");
        server
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = detach_stale(self.dir.path());
    }
}

const SERVE_DIR: &str = "UZRAM_TEST_SERVE_DIR";

/// Not a test of its own: the process behind [`Server`].
#[test]
fn serve_for_another_test() {
    let Some(dir) = std::env::var_os(SERVE_DIR) else {
        return;
    };
    let device = Arc::new(Device::new(&DeviceConfig::new(16 * MIB)).expect("a device"));
    let mount = Mount::start(device, Path::new(&dir), MountOptions::default()).expect("mounts");
    if std::env::var_os(OVER_IO_URING).is_some() {
        assert!(mount.is_over_io_uring());
    }
    println!("served");
    // Until the other test kills this process or goes away.
    let _ = io::stdin().read(&mut [0]);
    drop(mount);
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

pub(crate) fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<Errno> {
    Errno::from_io_error(&result.expect_err("an error"))
}
