//! A loop device for tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device over a file; both go with this, or with the process.
pub(crate) struct LoopDisk {
    pub(crate) path: PathBuf,
    _open: File,
}

impl LoopDisk {
    /// `None`, said loudly, where there can be none.
    pub(crate) fn of(bytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            eprintln!("SKIPPED: needs root and /dev/loop-control");
            return None;
        }
        let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
        file.as_file().set_len(bytes).expect("room");
        let losetup = |args: &[&str], path: &Path| {
            let output = Command::new("losetup").args(args).arg(path).output();
            let output = output.expect("losetup");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("a path")
        };
        let said = losetup(&["--find", "--show"], file.path());
        let path = PathBuf::from(said.trim_end());
        let open = File::open(&path).expect("there");
        // It is gone once nobody has it open.
        losetup(&["--detach"], &path);
        Some(Self { path, _open: open })
    }

    /// All that is on it.
    pub(crate) fn contents(&self) -> Vec<u8> {
        fs::read(&self.path).expect("readable")
    }

    pub(crate) fn holds_data(&self) -> bool {
        self.contents().iter().any(|&byte| byte != 0)
    }
}
