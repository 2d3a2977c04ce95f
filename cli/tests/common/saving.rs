//! Whether a server is at its save, of which there may be no file to be seen.

use std::fs;
use std::path::Path;

/// Whether a process, which must be dumpable unless we are root, writes a file in a directory, with a name or without one.
pub(crate) fn is_saving(server: u32, dir: &Path) -> bool {
    let open = fs::read_dir(format!("/proc/{server}/fd"));
    let open = open.into_iter().flatten();
    let mut files = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    files.any(|file| file != dir && file.starts_with(dir))
}
