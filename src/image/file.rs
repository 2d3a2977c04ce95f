//! The file that an image is written to: there as a whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// A file beside the one that it is to become, gone unless it does. A server that is killed
/// meanwhile leaves it, under a name that starts with `.uzram-save-`.
pub(crate) struct ImageFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl ImageFile {
    /// Makes the file that is to become `path`.
    ///
    /// # Errors
    /// [`Error::Unusable`] if something other than a plain file is there; [`Error::Io`].
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::create_with_mode(path, 0o600)
    }

    fn create_with_mode(path: &Path, mode: u32) -> Result<Self> {
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(Error::Unusable {
                path: path.to_owned(),
                reason: "it is there and no plain file: an image is one".to_owned(),
            });
        }
        let file = tempfile::Builder::new()
            .prefix(".uzram-save-")
            .make_in(directory(path), |new| {
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(new)
            })
            .map_err(|error| failed(path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Has the file on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn sync(&self) -> Result<()> {
        let synced = self.file.as_file().sync_all();
        synced.map_err(|error| failed(&self.path, error))
    }

    /// Puts the file, which was synced, in place of what is there.
    ///
    /// # Errors
    /// [`Error::Io`]; what is there stays.
    pub(crate) fn commit(self) -> Result<()> {
        let path = self.path.clone();
        self.put_in_place()?;
        let committed = File::open(directory(&path)).and_then(|dir| dir.sync_all());
        committed.map_err(|error| failed(&path, error))
    }

    fn put_in_place(self) -> Result<()> {
        let Self { path, file } = self;
        let placed = file.persist(&path);
        placed.map_err(|error| failed(&path, error.error))?;
        Ok(())
    }
}

impl Write for ImageFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_file().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_file().flush()
    }
}

/// Makes a file at `path` of `bytes` with permissions `mode`, less the umask, or replaces one, as a
/// whole or not at all for whoever looks at it. Nothing waits for a disk.
///
/// # Errors
/// [`Error::Unusable`] if something other than a plain file is there; [`Error::Io`].
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = ImageFile::create_with_mode(path, mode)?;
    file.write_all(bytes).map_err(|error| failed(path, error))?;
    file.put_in_place()
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// That `path` cannot be written.
pub(super) fn failed(path: &Path, error: io::Error) -> Error {
    Error::io(format!("write {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("there").file_name();
        entries
            .map(|entry| name(entry).into_string().expect("text"))
            .collect()
    }

    #[test]
    fn a_file_is_beside_its_place_until_it_is_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let file = ImageFile::create(&path).expect("a file");
        let there = names(dir.path());
        assert!(there.len() == 1 && there[0].starts_with(".uzram-save-"));
        drop(file);
        assert!(names(dir.path()).is_empty());
        let mut file = ImageFile::create(&path).expect("a file");
        file.write_all(b"whole").expect("written");
        file.commit().expect("in place");
        assert_eq!(names(dir.path()), ["image"]);
        assert_eq!(fs::read(&path).expect("there"), b"whole");
        // Without a directory in it, a path is one of where we are.
        assert_eq!(directory(Path::new("image")), Path::new("."));
    }

    #[test]
    fn a_whole_file_takes_the_place_of_a_plain_one_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("list");
        for text in ["one", "another, longer", "last"] {
            write_whole(&path, text.as_bytes(), 0o640).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("there"), text);
        }
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        // The umask may take some away.
        assert!(
            mode & 0o777 & !0o640 == 0 && mode & 0o600 == 0o600,
            "{mode:o}"
        );
        let error = write_whole(dir.path(), b"", 0o600).expect_err("a directory");
        assert!(error.to_string().contains("no plain file"), "{error}");
        assert_eq!(names(dir.path()), ["list"]);
    }
}
