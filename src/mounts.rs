//! What is mounted where, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Locks nothing; what
//! it says may have changed by the time it is read.
//!
//! The crate procfs reads the table as text: one mount point of any user's that is not UTF-8 and no command would find its mounts.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Its number, which statx(2) gives for its files.
    pub id: u64,
    /// The device number of its file system, `major:minor`: what stat(2) gives for its files.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The file system's type, for example `ext4`.
    pub fs_type: String,
    /// What is mounted, for example `/dev/loop0`.
    pub source: PathBuf,
    /// The directories that it shows, of an overlay.
    pub layers: Vec<PathBuf>,
}

/// All mounts of this mount namespace, a later one on top of an earlier.
///
/// # Errors
/// [`Error::Io`] if `/proc` cannot be read.
pub fn all() -> Result<Vec<MountEntry>> {
    let table =
        fs::read(MOUNTINFO).map_err(|error| Error::io(format!("read {MOUNTINFO}"), error))?;
    Ok(table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// The mount one sees at `mountpoint`, a path as [`absolute`] gives it.
///
/// # Errors
/// Those of [`all`].
pub fn at(mountpoint: &Path) -> Result<Option<MountEntry>> {
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

/// `path` absolute and without symlinks, even if it is missing or its file system is dead.
///
/// # Errors
/// [`Error::Io`] if it is empty or there is no working directory.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let absolute = std::path::absolute(path)
        .map_err(|error| Error::io(format!("make sense of {}", path.display()), error))?;
    // Only the last component can be dead; symlinks before it are still to be followed.
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    Ok(match parent.canonicalize() {
        Ok(parent) => parent.join(name),
        Err(_) => absolute,
    })
}

/// `id parent major:minor root mountpoint options [tags...] - type source options`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let mountpoint = fields.nth(1)?;
    let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = fields.next()?;
    let source = fields.next()?;
    Some(MountEntry {
        id,
        device: String::from_utf8_lossy(device).into_owned(),
        mountpoint: unescape(mountpoint),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
        layers: fields.next().map(layers).unwrap_or_default(),
    })
}

/// What an overlay was mounted with, of the options of its file system.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let options = options.split(|&b| b == b',');
    let values = options.filter_map(|option| {
        let keys: [&[u8]; 3] = [b"lowerdir=", b"lowerdir+=", b"upperdir="];
        keys.iter().find_map(|key| option.strip_prefix(*key))
    });
    let paths = values.flat_map(|value| value.split(|&b| b == b':'));
    paths
        .filter(|path| !path.is_empty())
        .map(unescape)
        .collect()
}

/// Undoes the kernel's escapes of space, tab, newline, backslash and hash: a backslash and three
/// octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let (byte, after) = match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail),
            _ => (*first, tail),
        };
        bytes.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_with_and_without_tags() {
        for tags in ["", "shared:7 ", "shared:7 master:3 "] {
            let line =
                format!("36 25 0:42 / /mnt/a\\040b\\134 rw,noexec {tags}- fuse.uzram uz\\043 rw");
            let entry = parse_line(line.as_bytes()).expect("parses");
            assert_eq!((entry.id, entry.device.as_str()), (36, "0:42"));
            assert_eq!(entry.mountpoint, Path::new("/mnt/a b\\"));
            assert_eq!(entry.fs_type, "fuse.uzram");
            assert_eq!(entry.source, Path::new("uz#"));
            assert!(entry.layers.is_empty());
        }
        let overlay =
            b"7 1 0:9 / /m rw - overlay overlay rw,lowerdir=/a\\040b:/c,upperdir=/d,workdir=/w";
        let entry = parse_line(overlay).expect("parses");
        assert_eq!(entry.layers, ["/a b", "/c", "/d"].map(Path::new));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"36 25 0:42 / /mnt rw -"), None);
    }

    #[test]
    fn lone_backslashes_stay() {
        assert_eq!(unescape(b"a\\134\\012b\\"), Path::new("a\\\nb\\"));
        assert_eq!(unescape(b"\\9\\40\\777"), Path::new("\\9\\40\\777"));
    }

    #[test]
    fn the_kernel_shows_proc() {
        let proc = at(Path::new("/proc")).expect("reads").expect("mounted");
        assert_eq!(proc.fs_type, "proc");
        assert_eq!(at(Path::new("/proc/self/nothing")).expect("reads"), None);
    }

    #[test]
    fn missing_paths_are_absolute_too() {
        let dir = tempfile::tempdir().expect("a directory");
        let real = dir.path().canonicalize().expect("there");
        std::os::unix::fs::symlink(&real, real.join("link")).expect("links");
        let absolute = |path: &Path| absolute(path).expect("makes sense");
        assert_eq!(absolute(&real.join("link")), real);
        assert_eq!(absolute(&real.join("link/missing")), real.join("missing"));
        assert_eq!(absolute(Path::new("/")), Path::new("/"));
        let nowhere = Path::new("/missing/too");
        assert_eq!(absolute(nowhere), nowhere);
    }
}
