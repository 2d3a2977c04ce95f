//! What `uzram down` does with an image that is where it saves a device to, and that this device did not
//! begin with: what is in it may be nowhere else, so it is kept under another name.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::base::failure;

/// An image, told from another one that came to stand in its place, also by an inode used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageId {
    dev: u64,
    ino: u64,
    bytes: u64,
    modified: SystemTime,
}

impl ImageId {
    /// The image at `path`, if it can be told.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            dev: meta.dev(),
            ino: meta.ino(),
            bytes: meta.len(),
            modified: meta.modified().ok()?,
        })
    }
}

/// A file that has a second name, by which it outlives being replaced.
#[derive(Debug)]
pub(crate) struct OldImage<'a> {
    file: &'a Path,
    /// What it is if `file` is a symbolic link: that is what is replaced.
    real: PathBuf,
    old: PathBuf,
}

impl<'a> OldImage<'a> {
    /// Gives what is at `file` a second name, unless nothing is, or only the image that the device
    /// `began_with`.
    ///
    /// # Errors
    /// If that cannot be done, or not be found out: then nothing is to be saved there.
    pub(crate) fn keep(file: &'a Path, began_with: Option<&ImageId>) -> Result<Option<Self>> {
        let is_its_own = began_with.is_some() && ImageId::of(file).as_ref() == began_with;
        if is_its_own || metadata(file)?.is_none() {
            return Ok(None);
        }
        let real = uzram::follow_links(file)?;
        let mut number = 1;
        loop {
            let old = name_of_old(&real, number);
            // Never over what has that name, unlike a rename.
            match fs::hard_link(&real, &old) {
                Ok(()) => return Ok(Some(Self { file, real, old })),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
                Err(error) => {
                    let (file, old) = (file.display(), old.display());
                    return Err(error).context(format!(
                        "{file} is not what the device began with, and cannot be kept as {old}: move {file} \
                         away first"
                    ));
                }
            }
        }
    }

    /// Once the device was saved, or could not be: says where the old image is, or gives the second name
    /// up if the file still has its first.
    pub(crate) fn settle(self) {
        let (file, old) = (self.file.display(), self.old.display());
        let inode = |path: &Path| fs::symlink_metadata(path).map(|at| (at.dev(), at.ino()));
        match (inode(&self.real), inode(&self.old)) {
            (Ok(now), Ok(kept)) if now == kept => {
                // At worst the same file has two names.
                let _ = fs::remove_file(&self.old);
            }
            _ => failure::warn(&format!(
                "{file} was not what the device began with: what it was is kept as {old}"
            )),
        }
    }
}

/// What is at `path`, a symbolic link too; `None` if nothing is.
///
/// # Errors
/// If that cannot be found out.
pub(crate) fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot examine {}", path.display())),
    }
}

/// `FILE.old`, `FILE.old.2` and so on.
fn name_of_old(file: &Path, number: u64) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".old");
    if number > 1 {
        name.push(format!(".{number}"));
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_replaced_keeps_its_second_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        assert!(OldImage::keep(&file, None).unwrap().is_none());
        fs::write(&file, "first").unwrap();
        let first = ImageId::of(&file).unwrap();
        assert!(OldImage::keep(&file, Some(&first)).unwrap().is_none());

        OldImage::keep(&file, None).unwrap().expect("kept").settle();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        for (old, text) in [("image.old", "first"), ("image.old.2", "second")] {
            let other = ImageId {
                bytes: 1,
                ..first.clone()
            };
            let kept = OldImage::keep(&file, Some(&other)).unwrap().expect("kept");
            let new = dir.path().join("new");
            fs::write(&new, "second").unwrap();
            fs::rename(&new, &file).unwrap();
            kept.settle();
            assert_eq!(fs::read_to_string(dir.path().join(old)).unwrap(), text);
        }
    }

    #[test]
    fn of_a_link_the_image_that_it_leads_to_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("image"), dir.path().join("link"));
        fs::write(&file, "first").unwrap();
        std::os::unix::fs::symlink("image", &link).unwrap();
        let kept = OldImage::keep(&link, None).unwrap().expect("kept");
        uzram::write_whole(&link, uzram::Links::Follow, b"second", 0o600).unwrap();
        kept.settle();
        let old = dir.path().join("image.old");
        assert_eq!(fs::read_to_string(old).unwrap(), "first");
        assert_eq!(fs::read_to_string(link).unwrap(), "second");
    }

    #[test]
    fn what_cannot_be_examined_is_no_missing_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain"), "").unwrap();
        let below = dir.path().join("plain/image");
        assert!(metadata(&below).is_err());
        assert!(OldImage::keep(&below, None).is_err());
    }
}
