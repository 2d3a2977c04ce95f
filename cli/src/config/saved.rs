//! What `save` means: a device that `uzram down` saves to an image, and that begins with it once it is
//! there.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Entry, Key, SAVE, SWAP_PRIORITY, Value};

/// The key of the image that a device begins with.
const RESTORE: &str = "restore";

impl Entry {
    /// What `uzram down` saves it to. A path that is relative is so to the file.
    pub(crate) fn save(&self) -> Option<&Path> {
        self.key(SAVE)?.value.word().map(Path::new)
    }

    /// Whether the key `save` makes sense; says why not.
    pub(super) fn check_save(&self) -> Result<(), &'static str> {
        if self.key(SWAP_PRIORITY).is_some() {
            return Err("what is swapped to is no use to anybody afterwards");
        }
        if self.key("origin").is_some() {
            return Err("what is on a device with an origin is there, not in an image of its own");
        }
        match &self.key(SAVE).map(|key| &key.value) {
            Some(Value::Words(words)) if words.len() == 1 && !words[0].is_empty() => Ok(()),
            _ => Err("use the path of a file"),
        }
    }

    /// Fails now if saving would for want of a directory.
    ///
    /// # Errors
    /// If it is not there: then the image may be, where it is only to be mounted yet.
    pub(super) fn check_image(&self) -> Result<()> {
        let parent = self.save().and_then(Path::parent);
        match parent.filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
            Some(dir) => bail!(
                "save: there is no directory {0}: mkdir {0} first",
                dir.display()
            ),
            None => Ok(()),
        }
    }

    /// Its keys, of which those about its beginning give way to the image that it was saved to.
    pub(super) fn keys_now(&self) -> Vec<Key> {
        let mut keys = self.keys.clone();
        let Some((key, image)) = self.key(SAVE).zip(self.save()) else {
            return keys;
        };
        if fs::symlink_metadata(image).is_err() {
            // There is nothing to verify the first time.
            let verifies = self.key(RESTORE).is_some();
            keys.retain(|key| verifies || key.name != "verify-image");
            return keys;
        }
        keys.retain(|key| key.name != RESTORE && !(key.name == "size" && is_outgrown(key, image)));
        keys.push(Key {
            name: RESTORE.to_owned(),
            ..key.clone()
        });
        keys
    }
}

/// Whether the device has been made larger than its table says, by the time it was saved.
fn is_outgrown(size: &Key, image: &Path) -> bool {
    let size = size.value.word().map(uzram::parse_size);
    match (size, uzram::saved_size(image)) {
        (Some(Ok(size)), Ok(saved)) => size < saved,
        // Whoever reads them next says what is wrong.
        _ => false,
    }
}
