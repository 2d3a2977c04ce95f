//! Restoring: a new device whose slots point at the records of an image.
//!
//! Only where the pages are is read before the device is used. From then on the image is like a
//! backing that is to leave ([`crate::maintain`]): pages are read from it as they are wanted, each proved
//! to be what was saved, and the others follow in the background.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::Device;
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::image::{Entry, ImageReader, Part};
use crate::maintain::Command;
use crate::size::human_size;
use crate::spill::{Imported, RecordFormat, SegmentIndex, Store};
use crate::sync::channel;

/// Bytes in the device that was saved to the image at `path`.
///
/// # Errors
/// [`Error::Unusable`] if it is no image, or its start or its end are damaged; [`Error::Io`].
pub fn saved_size(path: &Path) -> Result<u64> {
    Ok(ImageReader::open(path)?.size())
}

impl Device {
    /// Has the device, which must be empty and not in use, hold what was saved to the image at `path`;
    /// returns how many pages those are. They are in the image still, which is read as they are
    /// wanted and in the background; until [`crate::Stats::restore_bytes_left`] is 0 that file must not
    /// be changed, but may be removed, or replaced as [`Device::save`] does. A page whose record is
    /// damaged is lost like one in a damaged backing; [`Device::scrub`] finds them.
    ///
    /// # Errors
    /// [`Error::Unusable`], what is damaged and where, or that the image is of a larger device;
    /// [`Error::Io`]; [`Error::Refused`]: EBUSY if the device is in use or not empty, EEXIST if it has another
    /// dictionary of a number that the image has one of, EROFS after [`Device::refuse_changes`]. It is as it was
    /// then, but for dictionaries.
    pub fn restore(&self, path: &Path) -> Result<u64> {
        self.restore_image(ImageReader::open(path)?)
    }

    /// The same, of an image that somebody else has opened, which is called `path`.
    ///
    /// # Errors
    /// Those of [`Device::restore`].
    pub fn restore_handed(&self, file: &HandedFile, path: &Path) -> Result<u64> {
        let failed = |error| Error::io(format!("open {}", path.display()), error);
        let file = file.open().map_err(failed)?;
        self.restore_image(ImageReader::of(file, path)?)
    }

    fn restore_image(&self, image: ImageReader) -> Result<u64> {
        let store = Arc::new(image.store()?);
        self.restore_from(image, store)
    }

    /// As [`Device::restore`], of an image whose records are read from `store`.
    pub(super) fn restore_from(&self, image: ImageReader, store: Arc<dyn Store>) -> Result<u64> {
        let restore = || {
            let _no_other_size = self.resizing.lock();
            self.check_restorable(&image)?;
            self.begin_restoring(image, store)
        };
        let in_use = || Err(refused("the device is in use".to_owned()));
        self.users.while_none(restore).unwrap_or_else(in_use)
    }

    fn check_restorable(&self, image: &ImageReader) -> Result<()> {
        self.check_not_final()?;
        let unusable = |reason: String| {
            Err(Error::Unusable {
                path: image.path().to_owned(),
                reason,
            })
        };
        if self.engine.origin.image().is_some() {
            return unusable(
                "what `DeviceConfig::origin` names is on the device already".to_owned(),
            );
        }
        if image.size() > self.size() {
            return unusable(format!(
                "the image is of a device of {}, and this one has {}",
                human_size(image.size()),
                human_size(self.size())
            ));
        }
        match self.pages_with_data() {
            0 => Ok(()),
            _ => Err(refused("there is data on the device already".to_owned())),
        }
    }

    fn begin_restoring(&self, image: ImageReader, store: Arc<dyn Store>) -> Result<u64> {
        let no_addresses = |error| Error::io("reserve address space for the image", error);
        self.engine.spilled.segments.make().map_err(no_addresses)?;
        let stores = &self.engine.spilled.stores;
        stores.add_image(store).map_err(refused)?;
        let (pages, sector_size) = (image.pages(), image.sector_size());
        let pointed = self
            .engine
            .set_importing(true)
            .and_then(|()| self.point_at(image));
        let restored = pointed.and_then(|image| {
            let (done, answer) = channel::bounded(1);
            self.command(Command::Restore { image, done });
            let answer = answer.recv();
            let begun = answer.unwrap_or_else(|_| Err("the device is stopping".to_owned()));
            begun.map_err(refused)
        });
        if restored.is_err() {
            self.writer.clear(0..self.engine.shards.layout.pages());
            self.engine.spilled.stores.remove_image();
        } else {
            self.set_sector_size(sector_size);
        }
        self.engine.set_importing(false)?;
        restored.map(|()| pages)
    }
}

fn refused(reason: String) -> Error {
    Error::Refused {
        what: "restore",
        reason,
        errno: Errno::BUSY.into(),
    }
}

fn left_out() -> Error {
    Error::Refused {
        what: "restore",
        reason: "the image may have pages of an algorithm that this build leaves out".to_owned(),
        errno: Errno::OPNOTSUPP.into(),
    }
}

impl Device {
    /// Points the slots of the image's pages there; returns where its records are.
    fn point_at(&self, mut image: ImageReader) -> Result<Imported> {
        let (mut records, mut buffer) = (Imported::default(), Vec::new());
        let mut dictionaries = BTreeMap::new();
        while let Some(part) = image.next(&mut buffer)? {
            let index = match part {
                Part::Dictionary(id, bytes) => {
                    if dictionaries.insert(id, bytes.to_vec()).is_some() {
                        return Err(image.twice(id));
                    }
                    continue;
                }
                Part::Pages(index) => index,
            };
            for (entry, _) in index.entries().flatten() {
                if let Entry::Record {
                    address,
                    len,
                    codec,
                    ..
                } = entry
                {
                    if !codec.is_readable() {
                        return Err(left_out());
                    }
                    let bytes = RecordFormat::Saved.record_len(len);
                    if records.add(address, bytes) {
                        let segment = SegmentIndex::of(address.in_image());
                        self.engine
                            .spilled
                            .segments
                            .set_sequence(segment, image.sequence());
                    }
                }
                if !self.point(entry)? {
                    return Err(image.wrong(entry.page(), "is in it twice"));
                }
            }
        }
        for (id, bytes) in dictionaries {
            self.engine.codecs.dictionaries.add_as(id, &bytes)?;
        }
        Ok(records)
    }

    /// Has a page's slot say what an image says; returns false if it says something already.
    ///
    /// # Errors
    /// [`Error::NoSpace`].
    fn point(&self, entry: Entry) -> Result<bool> {
        let run = self.engine.shards.layout.run_of(entry.page());
        self.writer.change_one(run, |shard| {
            if !shard.slot(run.slot).is_empty() {
                return Ok(false);
            }
            match entry {
                Entry::Pattern { pattern, .. } => shard.store_same_filled(run.slot, pattern)?,
                Entry::Record {
                    address,
                    len,
                    codec,
                    ..
                } => shard.import(run.slot, address.in_image(), len, codec)?,
            }
            Ok(true)
        })
    }
}
