//! Files that a user names, read whole: certificates, keys, dictionaries, configuration.
//!
//! Such a path may lead anywhere. A FIFO or a device must not hold up whoever opens it, and what never ends must
//! not take all memory: only a regular file is read, and only to a bound.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use crate::error::{Error, Result};

/// Reads the regular file at `path`, at most `most` bytes of it.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened or read; [`Error::Unusable`] if it is not a regular file, or longer.
pub fn read_named_file(path: &Path, most: usize) -> Result<Vec<u8>> {
    let file = open_named_file(path)?;
    let length = file.metadata().map_or(0, |file| file.len());
    // As much as it needs, so that nothing of it is left where a smaller one was: it may be a key.
    let mut bytes = Vec::with_capacity(usize::try_from(length).map_or(most, |n| n.min(most)) + 1);
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("read", path, error))?;
    if bytes.len() > most {
        return Err(unusable(
            path,
            format!("longer than {most} bytes, the most that is read of such a file"),
        ));
    }
    Ok(bytes)
}

/// Opens the regular file at `path` to read it, and waits for nobody.
///
/// # Errors
/// Those of [`read_named_file`].
pub fn open_named_file(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|error| failed("open", path, error))?;
    let stat = fstat(&file).map_err(|error| failed("look at", path, error))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(File::from(file)),
        FileType::Directory => "a directory",
        FileType::Fifo => "a FIFO",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else",
    };
    Err(unusable(path, format!("{kind}, not a regular file")))
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
        assert!(
            error.contains("file") && error.contains("99 bytes"),
            "{error}"
        );
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert_eq!(read_named_file(&link, 100).expect("it fits").len(), 100);
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
