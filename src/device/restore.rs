//! Restoring: filling a new device from an image.
//!
//! Most of the time goes into memory that is touched for the first time, so each core has a thread
//! that stores pages. They read the image in turns, with a lock on it: who has verified a segment
//! goes on to store its pages while the next one reads. That lock comes before those of shards.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;

use parking_lot::Mutex;

use super::Device;
use super::core::Core;
use crate::block_device::BlockDevice;
use crate::codec::{Codec, DictionaryId, Method, Tag};
use crate::error::{Error, Result};
use crate::image::{ImageReader, PageData, Part, SegmentBuffer};
use crate::units::{PAGE_SIZE, Page, PageIndex};

/// The numbers that dictionaries of an image have on the device.
type Renumbered = BTreeMap<DictionaryId, DictionaryId>;

/// What is wrong with a page.
enum Fault {
    /// Of the image.
    Image(&'static str),
    /// Of ours.
    Device(Error),
}

/// Bytes in the device that was saved to the image at `path`.
///
/// # Errors
/// [`Error::Unusable`] if it is no image, or its start or its end are damaged; [`Error::Io`].
pub fn saved_size(path: &Path) -> Result<u64> {
    Ok(ImageReader::open(path)?.size())
}

impl Device {
    /// Fills the device, which must be empty and not in use, from the image at `path`; calls
    /// `progress` now and then with how many pages have been read, of how many. Each part of the image is
    /// proved to be what was saved before any of it is stored. After an error the device is of no
    /// use.
    ///
    /// # Errors
    /// [`Error::Unusable`], what is damaged and where, or that the image is of a larger device;
    /// [`Error::Io`]; [`Error::NoSpace`].
    pub fn restore(&self, path: &Path, progress: &mut (dyn FnMut(u64, u64) + Send)) -> Result<u64> {
        if self.core.origin.image().is_some() {
            return Err(Error::Unusable {
                path: path.to_owned(),
                reason: "what --origin names is on the device already".to_owned(),
            });
        }
        let image = ImageReader::open(path)?;
        if image.size() > self.size() {
            return Err(Error::Unusable {
                path: path.to_owned(),
                reason: format!(
                    "the image is of a device of {} bytes, and this one has {}",
                    image.size(),
                    self.size()
                ),
            });
        }
        let pages = image.pages();
        let source = Mutex::new(Source {
            image,
            numbers: Renumbered::new(),
            progress,
            failure: None,
        });
        let others = thread::available_parallelism().map_or(1, usize::from) - 1;
        thread::scope(|scope| {
            for _ in 0..others {
                let thread = thread::Builder::new().name("uzram-restore".into());
                // Without it those that there are do its part.
                let _ = thread.spawn_scoped(scope, || self.core.restore_from(&source));
            }
            self.core.restore_from(&source);
        });
        source.into_inner().failure.map_or(Ok(pages), Err)
    }
}

/// An image that several threads restore.
struct Source<'a> {
    image: ImageReader,
    numbers: Renumbered,
    progress: &'a mut (dyn FnMut(u64, u64) + Send),
    /// Why it cannot be restored. The first reason ends it.
    failure: Option<Error>,
}

impl Core {
    /// Stores pages of an image until there are no more, or until it has failed.
    fn restore_from(&self, source: &Mutex<Source<'_>>) {
        if let Err(error) = self.restore_parts(source) {
            source.lock().failure.get_or_insert(error);
        }
    }

    fn restore_parts(&self, source: &Mutex<Source<'_>>) -> Result<()> {
        let mut buffer = SegmentBuffer::new();
        loop {
            let mut turn = source.lock();
            if turn.failure.is_some() {
                return Ok(());
            }
            let part = match turn.image.next(&mut buffer)? {
                None => return Ok(()),
                Some(Part::Dictionary(id, bytes)) => {
                    let ours = self.algorithms.dictionaries.add(bytes)?;
                    turn.numbers.insert(id, ours);
                    continue;
                }
                Some(Part::Pages(part)) => part,
            };
            let (read, pages) = (turn.image.pages_read(), turn.image.pages());
            (turn.progress)(read, pages);
            let numbers = turn.numbers.clone();
            drop(turn);
            for (page, data) in part.pages() {
                self.restore_page(page, data, &numbers)
                    .map_err(|fault| match fault {
                        Fault::Image(what) => source.lock().image.wrong(page, what),
                        Fault::Device(error) => error,
                    })?;
            }
        }
    }

    /// Stores a page as it was saved.
    fn restore_page(
        &self,
        page: PageIndex,
        data: PageData<'_>,
        numbers: &Renumbered,
    ) -> Result<(), Fault> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut was_empty = true;
        let (mut copy, mut raw) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
        let data = match data {
            PageData::Object(codec, object) => {
                let object = renumbered(codec, object, numbers, &mut copy)?;
                self.storable(codec, object, &mut raw)?
            }
            data => data,
        };
        let stored = self.store_with_room(run.shard, |shard| {
            was_empty = shard.slot(run.slot).is_empty();
            match data {
                _ if !was_empty => Ok(()),
                PageData::SameFilled(pattern) => {
                    shard.store_same_filled(run.slot, pattern);
                    Ok(())
                }
                PageData::Object(codec, object) => shard.store(run.slot, codec, object),
            }
        });
        stored.map_err(Fault::Device)?;
        match was_empty {
            true => Ok(()),
            false => Err(Fault::Image("is in it twice")),
        }
    }

    /// An object as this device's pool takes it: another's may have kept compressed what this one
    /// stores raw.
    fn storable<'a>(
        &self,
        codec: Codec,
        object: &'a [u8],
        raw: &'a mut Page,
    ) -> Result<PageData<'a>, Fault> {
        if codec == Codec::Raw || object.len() <= self.max_compressed_len {
            return Ok(PageData::Object(codec, object));
        }
        self.algorithms
            .decompress(codec, object, raw)
            .map_err(|_| Fault::Image("does not decompress"))?;
        Ok(PageData::Object(Codec::Raw, raw))
    }
}

/// An object with this device's number of the dictionary that it needs, if it needs one.
fn renumbered<'a>(
    codec: Codec,
    object: &'a [u8],
    numbers: &Renumbered,
    copy: &'a mut Page,
) -> Result<&'a [u8], Fault> {
    if codec != Codec::Tagged {
        return Ok(object);
    }
    let tag = object.first().copied().and_then(Tag::from_byte);
    let tag = tag.ok_or(Fault::Image("was made in no known way"))?;
    let Method::ZstdWith(id) = tag.method else {
        return Ok(object);
    };
    let ours = numbers.get(&id);
    let ours = ours.ok_or(Fault::Image("needs a dictionary that is not there"))?;
    let method = Method::ZstdWith(*ours);
    let copy = &mut copy[..object.len()];
    copy.copy_from_slice(object);
    copy[0] = Tag { method, ..tag }.to_byte();
    Ok(copy)
}
