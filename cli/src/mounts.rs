//! What is mounted where, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountEntry {
    /// The device number of its file system, `major:minor`: what stat(2) gives for its files.
    pub(crate) device: String,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
    /// The file system's type, for example `ext4`.
    pub(crate) fs_type: String,
    /// What is mounted, for example `/dev/loop0`.
    pub(crate) source: PathBuf,
}

/// All mounts of this mount namespace, a later one on top of an earlier.
pub(crate) fn all() -> Result<Vec<MountEntry>> {
    let table = fs::read("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(table
        .split(|&b| b == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// The mount one sees at `mountpoint`.
pub(crate) fn at(mountpoint: &Path) -> Result<Option<MountEntry>> {
    Ok(all()?.into_iter().rfind(|m| m.mountpoint == mountpoint))
}

/// `id parent major:minor root mountpoint options [tags...] - type source options`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
    let fs_type = fields.next()?;
    let source = fields.next()?;
    Some(MountEntry {
        device: String::from_utf8_lossy(device).into_owned(),
        mountpoint: unescape(mountpoint),
        fs_type: String::from_utf8_lossy(fs_type).into_owned(),
        source: unescape(source),
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match (first, octal(tail)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(text.get(..3)?).ok()?;
    u8::from_str_radix(digits, 8).ok()
}

/// The absolute form of a mountpoint a user typed, even one whose file system is dead.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let absolute = std::path::absolute(path)
        .with_context(|| format!("cannot make sense of {}", path.display()))?;
    // Only the last component can be dead; symlinks before it are still to be followed.
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    Ok(parent
        .canonicalize()
        .map_or_else(|_| absolute.clone(), |parent| parent.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line =
            b"41 25 7:0 / /mnt/a\\040b\\134 rw,relatime shared:1 master:2 - ext4 /dev/loop0 rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.device, "7:0");
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b\\"));
        assert_eq!(mount.fs_type, "ext4");
        assert_eq!(mount.source, Path::new("/dev/loop0"));
        let untagged = parse_line(b"41 25 7:0 / /mnt rw - btrfs /dev/loop0 rw").unwrap();
        assert_eq!(untagged.fs_type, "btrfs");
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"41 25 7:0 / /mnt rw"), None);
    }

    #[test]
    fn the_kernel_shows_proc() {
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().fs_type, "proc");
    }
}
