//! What the tests share: a directory for each, programs with a bound on their time, servers and
//! mounts that are taken down however a test ends, real data.

mod data;
mod mount;
mod serve;
mod tagged;
mod tools;

use std::path::{Path, PathBuf};

pub(crate) use data::RealFiles;
pub(crate) use mount::{MountPoint, loops_in, mounts_in, skip_without_mounts};
pub(crate) use serve::{MemoryWatch, Server, stat, uzram};
pub(crate) use tagged::TaggedDisk;
pub(crate) use tools::{Background, run, skipped, status_of, tool};

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// A directory of one test, removed with all that is in it. Its path is short, for the sockets, and
/// on a disk, for the backing files.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let parent = Some(PathBuf::from("/var/tmp"))
            .filter(|dir| dir.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let dir = tempfile::Builder::new()
            .prefix("uzram-e2e-")
            .tempdir_in(parent)
            .expect("a scratch directory");
        std::fs::create_dir(dir.path().join("run")).expect("a run directory");
        Self(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in here, as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        let path = self.path().join(name);
        path.to_str().expect("scratch paths are text").to_owned()
    }

    /// Where this test's servers keep their sockets, `UZRAM_RUNDIR`.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path().join("run")
    }
}
