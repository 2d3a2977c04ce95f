//! Real data: the files of this machine, a third of them sources, the rest programs.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Scratch, run, tool};

/// Some files of this machine: a list of them and their hashes, kept in a test's scratch directory.
pub(crate) struct RealFiles {
    list: PathBuf,
    sums: PathBuf,
}

impl RealFiles {
    /// At most `bytes` of files, and nearly as much.
    ///
    /// # Panics
    /// If this machine has much less.
    pub(crate) fn choose(scratch: &Scratch, bytes: u64) -> Self {
        let mut chosen = Chosen {
            left: bytes / 3,
            seen: HashSet::new(),
            list: Vec::new(),
        };
        for dir in sources() {
            chosen.add(&dir);
        }
        chosen.left += bytes - bytes / 3;
        for dir in programs() {
            chosen.add(&dir);
        }
        assert!(
            chosen.left < bytes / 10,
            "this machine lacks {} bytes of files to test with",
            chosen.left
        );
        let list = scratch.path().join("files");
        fs::write(&list, &chosen.list).expect("the list of files");
        let sums = scratch.path().join("sums");
        run(Command::new("sh")
            .args(["-euc", r#"cd /; xargs -0 sha256sum <"$1" >"$2""#, "sh"])
            .args([&list, &sums]));
        Self { list, sums }
    }

    /// Copies them into `dir`, which must be there.
    pub(crate) fn copy_to(&self, dir: &Path) {
        run(Command::new("bash")
            .args(["-euo", "pipefail", "-c"])
            .args([
                r#"tar -C / --null -T "$1" -cf - | tar -C "$2" -xf - && sync -f "$2""#,
                "bash",
            ])
            .args([&*self.list, dir]));
    }

    /// Compares the copies in `dir` by hash.
    pub(crate) fn compare(&self, dir: &Path) {
        run(Command::new("sha256sum")
            .args(["--check", "--quiet", "--strict"])
            .arg(&self.sums)
            .current_dir(dir));
    }

    /// Makes an archive of them.
    pub(crate) fn archive(&self, to: &Path) {
        run(tool("tar")
            .args(["-C", "/", "--null", "-T"])
            .arg(&self.list)
            .arg("-cf")
            .arg(to));
    }
}

/// Where there are sources: those that this program was built from, and the system's headers.
fn sources() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let mut places = vec![PathBuf::from("/usr/include")];
    places.extend(home.map(|home| home.join("registry/src")));
    places
}

/// Where there are programs: the toolchain that built this one, and the system.
fn programs() -> Vec<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let sysroot = run(Command::new(rustc).args(["--print", "sysroot"]));
    let mut places = vec![Path::new(sysroot.trim_end()).join("lib")];
    places.extend(["/usr/lib", "/usr/bin", "/usr/share"].map(PathBuf::from));
    places
}

struct Chosen {
    left: u64,
    seen: HashSet<PathBuf>,
    /// NUL-terminated paths, relative to `/`.
    list: Vec<u8>,
}

impl Chosen {
    fn add(&mut self, dir: &Path) {
        // A place that is not there, or not ours to read, has no files to offer.
        let Ok(entries) = fs::read_dir(dir) else {
            return;
        };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(meta) = entry.metadata() else { continue };
            let path = entry.path();
            if meta.is_dir() {
                self.add(&path);
            } else if meta.is_file() && meta.len() <= self.left && fs::File::open(&path).is_ok() {
                self.take(path, meta.len());
            }
        }
    }

    fn take(&mut self, path: PathBuf, len: u64) {
        let relative = path.as_os_str().as_bytes().strip_prefix(b"/");
        let Some(relative) = relative.map(<[u8]>::to_vec) else {
            return;
        };
        if self.seen.insert(path) {
            self.left -= len;
            self.list.extend(OsString::from_vec(relative).into_vec());
            self.list.push(0);
        }
    }
}
