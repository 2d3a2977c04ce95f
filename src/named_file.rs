//! Files that a user names: certificates, keys, dictionaries, configuration, images.
//!
//! Such a path may lead anywhere. A FIFO or a device must not hold up whoever opens it, and what never ends must
//! not take all memory: only a regular file is read, and only to a bound.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fd::AsRawFd;
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, lstat, open, readlink};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::size::human_size;

/// Reads the regular file at `path`, at most `most` bytes of it.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened or read; [`Error::Unusable`] if it is not a regular file, or longer.
pub fn read_named_file(path: &Path, most: usize) -> Result<Vec<u8>> {
    let file = open_named_file(path, Links::Follow)?;
    let length = file.metadata().map_or(0, |file| file.len());
    let bytes = read_whole(&file, length, most).map_err(|error| failed("read", path, error))?;
    if bytes.len() > most {
        return Err(unusable(
            path,
            format!(
                "longer than {}, the most that is read of such a file",
                human_size(most as u64)
            ),
        ));
    }
    Ok(bytes)
}

/// All of a file that was `length` bytes long, or of a longer one one byte more than `most`.
fn read_whole(mut file: &File, length: u64, most: usize) -> io::Result<Vec<u8>> {
    let mut room = usize::try_from(length).map_or(most, |n| n.min(most)) + 1;
    loop {
        // Once, as much as it needs, so that nothing of it is left where a smaller one was: it may be a key.
        let mut bytes = Vec::with_capacity(room);
        file.rewind()?;
        file.take(room as u64).read_to_end(&mut bytes)?;
        if bytes.len() < room || room > most {
            return Ok(bytes);
        }
        // It has grown.
        #[cfg(feature = "tls")]
        zeroize::Zeroize::zeroize(&mut bytes);
        room = room.saturating_mul(2).min(most + 1);
    }
}

/// What becomes of a symbolic link in the place that a user names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// What it leads to is meant.
    Follow,
    /// Somebody else may have put it there.
    Refuse,
}

/// Opens the regular file at `path` to read it, and waits for nobody.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::Unusable`] if it is not a regular file.
pub fn open_named_file(path: &Path, links: Links) -> Result<File> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    flags.set(OFlags::NOFOLLOW, links == Links::Refuse);
    let file = match open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) if links == Links::Refuse => return Err(no_file(path, FileType::Symlink)),
        Err(Errno::NXIO) => return Err(no_file(path, FileType::Socket)),
        Err(error) => return Err(failed("open", path, error)),
    };
    check_kind(path, fstat(&file))?;
    Ok(file)
}

/// Where a file that is to be at `path` goes: what a symbolic link there leads to takes the place of the link.
///
/// # Errors
/// [`Error::Unusable`] if anything but a regular file is there, or a link that leads nowhere; [`Error::Io`].
pub fn follow_links(path: &Path) -> Result<PathBuf> {
    let there = match lstat(path) {
        Err(Errno::NOENT) => return Ok(path.to_owned()),
        there => there.map_err(|error| failed("look at", path, error))?,
    };
    if FileType::from_raw_mode(there.st_mode) != FileType::Symlink {
        return check_kind(path, Ok(there)).map(|_| path.to_owned());
    }
    // The kernel follows it, which refuses a link that another user has planted in /tmp.
    let end = match open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => {
            let reason =
                "is a symbolic link that leads nowhere: remove it, or make the file it leads to";
            return Err(unusable(path, reason.to_owned()));
        }
        end => end.map_err(|error| failed("open", path, error))?,
    };
    let there = check_kind(path, fstat(&end))?;
    let target = readlink(format!("/proc/self/fd/{}", end.as_raw_fd()), Vec::new())
        .map_err(|error| failed("look at", path, error))?;
    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
    let id = |stat: Stat| (stat.st_dev, stat.st_ino);
    match lstat(&target).map(id) == Ok(id(there)) {
        true => Ok(target),
        false => Err(unusable(
            path,
            "what it leads to has just been changed".to_owned(),
        )),
    }
}

/// Where a file that is to be at `path` goes, if no symbolic link is there.
///
/// # Errors
/// Those of [`follow_links`].
pub(crate) fn no_link(path: &Path) -> Result<PathBuf> {
    match lstat(path) {
        Err(Errno::NOENT) => Ok(path.to_owned()),
        there => check_kind(path, there).map(|_| path.to_owned()),
    }
}

/// Fails if that is not what a regular file is.
fn check_kind(path: &Path, stat: rustix::io::Result<Stat>) -> Result<Stat> {
    let stat = stat.map_err(|error| failed("look at", path, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        kind => Err(no_file(path, kind)),
    }
}

fn no_file(path: &Path, kind: FileType) -> Error {
    let kind = match kind {
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    unusable(path, format!("{kind}, not a regular file"))
}

fn failed(verb: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    Error::io(format!("{verb} {}", path.display()), error)
}

fn unusable(path: &Path, reason: String) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    #[test]
    fn a_file_is_read_to_the_bound_and_no_further() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, [7; 100]).expect("room");
        assert_eq!(read_named_file(&path, 100).expect("it fits"), [7; 100]);
        let error = read_named_file(&path, 99)
            .expect_err("too long")
            .to_string();
        assert!(error.contains("file") && error.contains("99 B"), "{error}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert_eq!(read_named_file(&link, 100).expect("it fits").len(), 100);
    }

    #[test]
    fn a_file_that_has_grown_since_it_was_looked_at_is_read_whole() {
        let mut file = tempfile::tempfile().expect("a file");
        io::Write::write_all(&mut file, &[7; 100]).expect("room");
        for (length, most, read) in [
            (10, 1000, 100),
            (99, 1000, 100),
            (10, 99, 100),
            (10, 50, 51),
        ] {
            let bytes = read_whole(&file, length, most).expect("it is there");
            assert_eq!(bytes, vec![7; read], "{length} to {most}");
            assert!(bytes.capacity() <= most + 1);
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        for (path, kind) in [
            (&*fifo, "a FIFO"),
            (Path::new("/dev/zero"), "a device"),
            (dir.path(), "a directory"),
        ] {
            let error = read_named_file(path, 1).expect_err(kind).to_string();
            assert!(error.contains(kind), "{error}");
        }
        let missing = read_named_file(&dir.path().join("none"), 1);
        assert!(
            matches!(missing, Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
        );
    }
}
