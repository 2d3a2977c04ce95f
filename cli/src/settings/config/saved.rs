//! What `save` means: a device that `uzram down` saves to an image, and that begins with it once it is
//! there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Config, Entry, Key, SAVE, SWAP_PRIORITY, Value};
use crate::args::parse;
use crate::base::failure::Usage;
use crate::base::old_image;
use uzram::mounts;

/// The key of the image that a device begins with.
const RESTORE: &str = "restore";

impl Entry {
    /// What `uzram down` saves it to.
    pub(crate) fn save(&self) -> Option<PathBuf> {
        Some(self.dir.join(self.key(SAVE)?.value.word()?))
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
        let image = self.save();
        let parent = image.as_deref().and_then(Path::parent);
        match parent.filter(|parent| !parent.is_dir()) {
            Some(dir) => bail!(
                "save: there is no directory {0}: mkdir {0} first",
                dir.display()
            ),
            None => Ok(()),
        }
    }

    /// Its keys, of which those about its beginning give way to the image that it was saved to.
    ///
    /// # Errors
    /// If it cannot be found out whether that is there: an empty device would take its place.
    pub(super) fn keys_now(&self) -> Result<Vec<Key>> {
        let mut keys = self.keys.clone();
        let Some((key, image)) = self.key(SAVE).zip(self.save()) else {
            return Ok(keys);
        };
        if old_image::metadata(&image).context("save")?.is_none() {
            // There is nothing to verify the first time.
            let verifies = self.key(RESTORE).is_some();
            keys.retain(|key| verifies || key.name != "verify-image");
            return Ok(keys);
        }
        keys.retain(|key| key.name != RESTORE && !(key.name == "size" && is_outgrown(key, &image)));
        keys.push(Key {
            name: RESTORE.to_owned(),
            ..key.clone()
        });
        Ok(keys)
    }
}

/// A key of a device, and where it stands.
type Held<'a> = (&'a Config, &'a Entry, &'a Key);

/// Fails if a device would be saved over what another has, or over what it lies on itself.
pub(super) fn check_images(configs: &[Config]) -> Result<()> {
    let held = held(configs);
    for config in configs {
        for entry in &config.entries {
            let Some((save, image)) = entry.key(SAVE).zip(entry.save()) else {
                continue;
            };
            let mut holders = held.get(&config.place(&image)).into_iter().flatten();
            let is_taken = |(_, other, key): &&Held<'_>| {
                other.name != entry.name || !matches!(key.name.as_str(), SAVE | RESTORE)
            };
            if let Some((there, other, key)) = holders.find(is_taken) {
                let file = match there.path == config.path {
                    true => String::new(),
                    false => format!(" of {}", there.path.display()),
                };
                return Err(Usage::error(format!(
                    "{}:{}: save: it is the {} of {}, in line {}{file}: use another file",
                    config.path.display(),
                    save.line,
                    key.name,
                    other.name,
                    key.line,
                )));
            }
        }
    }
    Ok(())
}

/// The files that devices have something in, and the keys that say so.
fn held(configs: &[Config]) -> HashMap<PathBuf, Vec<Held<'_>>> {
    let mut held: HashMap<_, Vec<_>> = HashMap::new();
    for config in configs {
        for entry in &config.entries {
            for key in &entry.keys {
                if matches!(key.name.as_str(), SAVE | RESTORE | "backing" | "origin")
                    && let Some(word) = key.value.word()
                {
                    let place = config.place(Path::new(word));
                    held.entry(place).or_default().push((config, entry, key));
                }
            }
        }
    }
    held
}

impl Config {
    /// Where a path of the file leads, from wherever one reads it.
    fn place(&self, path: &Path) -> PathBuf {
        let path = self
            .path
            .parent()
            .map_or(path.to_owned(), |dir| dir.join(path));
        mounts::absolute(&path).unwrap_or(path)
    }
}

/// Whether the device has been made larger than its table says, by the time it was saved.
fn is_outgrown(size: &Key, image: &Path) -> bool {
    let size = size.value.word().map(parse::device_size);
    match (size, uzram::saved_size(image)) {
        (Some(Ok(size)), Ok(saved)) => size < saved,
        // Whoever reads them next says what is wrong.
        _ => false,
    }
}
