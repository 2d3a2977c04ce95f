//! `uzram mount`, and what of it the kernel still knows.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Scratch, run, skipped, status_of, tool, uzram};

/// Says loudly, and returns, that this machine cannot mount; tests that need it then end.
pub(crate) fn skip_without_mounts(test: &str) -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !Path::new("/dev/fuse").exists() {
        "no /dev/fuse"
    } else if !Path::new("/dev/loop-control").exists() {
        "no /dev/loop-control"
    } else {
        return false;
    };
    skipped(test, reason);
    true
}

/// A file system on a device, put up by `uzram mount`.
pub(crate) struct MountPoint<'a> {
    scratch: &'a Scratch,
    name: String,
    dir: PathBuf,
    up: bool,
}

impl<'a> MountPoint<'a> {
    /// Mounts a new device called `name`.
    pub(crate) fn new(scratch: &'a Scratch, name: &str, args: &[&str]) -> Self {
        let dir = scratch.path().join(name);
        fs::create_dir(&dir).expect("a mountpoint");
        // Whatever a failing mount leaves behind is this value's to take down.
        let mount = Self {
            scratch,
            name: name.to_owned(),
            dir,
            up: true,
        };
        run(uzram(scratch)
            .args(["mount", "--name", name])
            .args(args)
            .arg(&mount.dir));
        mount
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The block device under the file system.
    pub(crate) fn device(&self) -> PathBuf {
        let out = run(tool("findmnt")
            .args(["-n", "-o", "SOURCE", "--mountpoint"])
            .arg(&self.dir));
        PathBuf::from(out.trim_end())
    }

    /// Takes it all down with `uzram umount`; nothing of it may be left.
    pub(crate) fn umount(mut self) {
        run(uzram(self.scratch).arg("umount").arg(&self.dir));
        self.up = false;
        let mut left = String::new();
        for line in mounts_in(self.scratch.path()) {
            let _infallible = writeln!(left, "mounted: {line}");
        }
        for line in loops_in(self.scratch.path()) {
            let _infallible = writeln!(left, "attached: {line}");
        }
        for entry in fs::read_dir(self.scratch.run_dir()).expect("the run directory") {
            let _infallible = writeln!(left, "lying about: {entry:?}");
        }
        assert!(left.is_empty(), "uzram umount left\n{left}");
    }
}

impl Drop for MountPoint<'_> {
    fn drop(&mut self) {
        if !self.up {
            return;
        }
        let (status, _, _) = status_of(uzram(self.scratch).arg("umount").arg(&self.dir));
        if status.success() {
            return;
        }
        // The test has failed already; this leaves the machine as it was found, by other means.
        for mountpoint in mounts_in(self.scratch.path()).iter().rev() {
            status_of(tool("umount").args(["-l", mountpoint]));
        }
        for device in loops_in(self.scratch.path()) {
            status_of(tool("losetup").args(["-d", &device]));
        }
        status_of(uzram(self.scratch).args(["stop", &self.name]));
    }
}

/// The mountpoints at and below `dir`, in the order they were mounted.
pub(crate) fn mounts_in(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mountpoints = table.lines().filter_map(|line| line.split(' ').nth(4));
    mountpoints
        .filter(|mountpoint| Path::new(mountpoint).starts_with(dir))
        .map(str::to_owned)
        .collect()
}

/// The loop devices whose file is below `dir`.
pub(crate) fn loops_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")
        .expect("/sys is mounted")
        .flatten()
    {
        let file = fs::read_to_string(entry.path().join("loop/backing_file"));
        if file.is_ok_and(|file| Path::new(&file).starts_with(dir)) {
            found.push(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    found
}
