//! ext4 without root: fuse2fs(1) serves the file system on a server's `disk` from a process of the user's.
//!
//! It is found in the kernel's table of mounts, where the source is the path of `disk`; nothing here looks into either mount.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use uzram::mounts;

use crate::base::program;
use crate::runtime::rundir::Turn;

const TOOL: &str = "fuse2fs";

/// A file system that a program serves from the `disk` of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FuseFs {
    pub(crate) disk: PathBuf,
}

impl FuseFs {
    /// The one from the `disk` in a FUSE directory, if it is mounted.
    pub(crate) fn over(fuse_dir: &Path) -> Result<Option<Self>> {
        let disk = fuse_dir.join("disk");
        let mut mounts = mounts::all()?.into_iter();
        let is_there =
            mounts.any(|mount| mount.fs_type.starts_with("fuse") && mount.source == disk);
        Ok(is_there.then_some(Self { disk }))
    }

    /// Waits until what the program had not written yet at the unmount is written: it closes `disk` then.
    pub(crate) fn wait_until_closed(&self, timeout: Duration) -> Result<()> {
        const OFTEN: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + timeout;
        while is_open(&self.disk) {
            if Instant::now() >= deadline {
                let disk = self.disk.display();
                bail!("{TOOL} still writes to {disk}: try again when it has ended");
            }
            thread::sleep(OFTEN);
        }
        Ok(())
    }
}

/// Whether a fuse2fs that we may look at has the file open.
fn is_open(disk: &Path) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let tools = processes
        .map(|process| process.path())
        .filter(|process| fs::read(process.join("comm")).is_ok_and(|comm| comm == b"fuse2fs\n"));
    let mut files = tools
        .filter_map(|process| fs::read_dir(process.join("fd")).ok())
        .flatten()
        .flatten();
    files.any(|file| fs::read_link(file.path()).is_ok_and(|target| target == disk))
}

/// An installed fuse2fs.
#[derive(Debug)]
pub(crate) struct Fuse2fs(PathBuf);

impl Fuse2fs {
    /// Found before anything is made for it.
    pub(crate) fn find() -> Result<Self> {
        let tool = program::find(TOOL, TOOL).context("--rootless")?;
        // It does not say what is missing.
        program::find("fusermount3", "fuse3").context("--rootless")?;
        Ok(Self(tool))
    }

    /// Mounts what is on `disk`.
    pub(crate) fn mount(
        &self,
        turn: &Turn,
        disk: &Path,
        options: &str,
        mountpoint: &Path,
    ) -> Result<()> {
        // Without it, what belongs to root in the file system is closed to the user.
        let options = match options {
            "" => "fakeroot".to_owned(),
            more => format!("fakeroot,{more}"),
        };
        let args = [
            "-o".into(),
            OsString::from(options),
            disk.into(),
            mountpoint.into(),
        ];
        let ended = program::finish_in(turn.stdin()?, &self.0, args)?;
        // Its exit status is 0 after some failures, too.
        let mount = mounts::at(mountpoint)?;
        match mount.is_some_and(|mount| mount.source == disk) {
            true => Ok(()),
            false => Err(ended.complaint()),
        }
    }
}
