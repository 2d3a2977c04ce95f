//! The directory to mount on: what it must be like, and what a killed server left there.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::SOURCE;
use crate::error::{Error, Result};

const DEV_FUSE: &str = "/dev/fuse";
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// A mount, as far as it matters here.
struct MountEntry {
    fs_type: String,
    source: String,
}

/// Makes sure that `dir` can be mounted on, detaching a dead mount of ours first; returns it
/// absolute and without symlinks.
///
/// # Errors
/// [`Error::Unusable`] with what would do.
pub(super) fn prepare(dir: &Path) -> Result<PathBuf> {
    detach_stale(dir)?;
    let unusable = |reason: &str| Error::Unusable {
        path: dir.to_owned(),
        reason: reason.to_owned(),
    };
    let look = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => unusable("no such directory; make it first, with mkdir"),
        ErrorKind::NotADirectory => unusable("is not a directory"),
        _ if is_dead(&error) => {
            unusable("holds the dead mount of another program; unmount it with umount -l")
        }
        _ => Error::io(format!("look at {}", dir.display()), error),
    };
    if !fs::metadata(dir).map_err(look)?.is_dir() {
        return Err(unusable("is not a directory"));
    }
    let absolute = dir.canonicalize().map_err(look)?;
    if let Some(mount) = top_mount(&absolute)? {
        let reason = format!("{} is already mounted there", mount.source);
        return Err(unusable(&reason));
    }
    if fs::read_dir(&absolute).map_err(look)?.next().is_some() {
        return Err(unusable("is not empty; mount on an empty directory"));
    }
    Ok(absolute)
}

/// Makes sure that FUSE is there for this user.
///
/// # Errors
/// [`Error::Unusable`] if `/dev/fuse` is missing or closed to this user.
pub(super) fn check_dev_fuse() -> Result<()> {
    let unusable = |reason: &str| Error::Unusable {
        path: DEV_FUSE.into(),
        reason: reason.to_owned(),
    };
    match OpenOptions::new().read(true).write(true).open(DEV_FUSE) {
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            ErrorKind::NotFound => {
                unusable("is not there; load the module with modprobe fuse, or serve NBD instead")
            }
            ErrorKind::PermissionDenied => {
                unusable("this user may not open it; be root, or serve NBD instead")
            }
            // A device node whose driver is missing, or which the container forbids.
            _ => Error::io(format!("open {DEV_FUSE}; serve NBD instead"), error),
        }),
    }
}

/// Detaches what a killed server left mounted on `dir`; says whether there was anything. A mount
/// that is alive, or of another program, is left alone.
///
/// # Errors
/// [`Error::Io`] if the mounts cannot be listed or the dead one cannot be detached.
pub fn detach_stale(dir: &Path) -> Result<bool> {
    let Some(absolute) = absolute(dir) else {
        return Ok(false);
    };
    let mut detached = false;
    // A server that was killed twice may have left two, one over the other.
    while let Some(mount) = top_mount(&absolute)? {
        let ours = mount.fs_type.starts_with("fuse") && mount.source == SOURCE;
        // Cached attributes outlive the server, so only statfs tells.
        let dead = || {
            rustix::fs::statfs(&absolute)
                .err()
                .is_some_and(|errno| is_dead(&errno.into()))
        };
        if !ours || !dead() {
            break;
        }
        detach(&absolute)?;
        detached = true;
    }
    Ok(detached)
}

fn detach(dir: &Path) -> Result<()> {
    let action = || format!("detach the dead mount on {}", dir.display());
    match unmount(dir, UnmountFlags::DETACH) {
        Err(Errno::PERM) => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .map_err(|error| Error::io(action(), error))?;
            if status.success() {
                Ok(())
            } else {
                Err(Error::io(action(), Errno::PERM))
            }
        }
        other => other.map_err(|errno| Error::io(action(), errno)),
    }
}

fn is_dead(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOTCONN | Errno::CONNABORTED)
    )
}

/// `dir` without symlinks, even if it is a dead mount itself; `None` if it is not there.
fn absolute(dir: &Path) -> Option<PathBuf> {
    if let Ok(path) = dir.canonicalize() {
        return Some(path);
    }
    let parent = match dir.parent()? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    Some(parent.canonicalize().ok()?.join(dir.file_name()?))
}

/// The mount that covers the others on `dir`, which is absolute and without symlinks.
fn top_mount(dir: &Path) -> Result<Option<MountEntry>> {
    let table =
        fs::read(MOUNTINFO).map_err(|error| Error::io(format!("read {MOUNTINFO}"), error))?;
    Ok(table
        .split(|&b| b == b'\n')
        .filter_map(parse_mountinfo)
        .filter(|(mounted_on, _)| mounted_on == dir)
        .map(|(_, entry)| entry)
        .next_back())
}

/// One line of mountinfo: the mount point is its fifth word, and after a lone "-" stand type and
/// source (proc_pid_mountinfo(5)).
fn parse_mountinfo(line: &[u8]) -> Option<(PathBuf, MountEntry)> {
    let mut words = line.split(|&b| b == b' ');
    let mounted_on = unescape(words.nth(4)?);
    let mut tail = words.skip_while(|&word| word != b"-").skip(1);
    let mut text = || Some(String::from_utf8_lossy(&unescape(tail.next()?)).into_owned());
    let entry = MountEntry {
        fs_type: text()?,
        source: text()?,
    };
    Some((
        PathBuf::from(std::ffi::OsString::from_vec(mounted_on)),
        entry,
    ))
}

/// Undoes the kernel's escapes: a backslash and three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                tail @ ..,
            ] => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_parsed_with_and_without_optional_fields() {
        for optional in ["", "shared:7 ", "shared:7 master:3 "] {
            let line = format!("36 25 0:42 / /mnt/a\\040b rw,noexec {optional}- fuse uzram rw");
            let (dir, entry) = parse_mountinfo(line.as_bytes()).expect("parses");
            assert_eq!(dir, Path::new("/mnt/a b"));
            assert_eq!(
                (entry.fs_type.as_str(), entry.source.as_str()),
                ("fuse", "uzram")
            );
        }
        assert!(parse_mountinfo(b"").is_none());
        assert!(parse_mountinfo(b"36 25 0:42 / /mnt rw -").is_none());
    }

    #[test]
    fn escapes_are_undone_and_lone_backslashes_stay() {
        assert_eq!(unescape(b"a\\134\\012b\\"), b"a\\\nb\\");
        assert_eq!(unescape(b"\\9\\40"), b"\\9\\40");
    }

    #[test]
    fn an_unfit_directory_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let refusal = |path: &Path| prepare(path).expect_err("refused").to_string();
        assert!(refusal(&dir.path().join("missing")).contains("mkdir"));
        let file = dir.path().join("file");
        fs::write(&file, "").expect("writes");
        assert!(refusal(&file).contains("not a directory"));
        assert!(refusal(dir.path()).contains("not empty"));
        assert!(refusal(Path::new("/proc")).contains("already mounted"));
        fs::remove_file(&file).expect("removes");
        assert_eq!(
            prepare(dir.path()).expect("fit"),
            dir.path().canonicalize().expect("there")
        );
    }
}
