//! Restoring: filling a new device from an image.

use std::path::Path;

use super::Device;
use super::core::Core;
use crate::block_device::BlockDevice;
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::image::{ImageReader, PageData};
use crate::units::{PAGE_SIZE, PageIndex};

/// Bytes in the device that was saved to the image at `path`.
///
/// # Errors
/// [`Error::Unusable`] if it is no image, or its start or its end are damaged; [`Error::Io`].
pub fn saved_size(path: &Path) -> Result<u64> {
    Ok(ImageReader::open(path)?.size())
}

impl Device {
    /// Fills the device, which must be empty and not in use, from the image at `path`; calls
    /// `progress` now and then with how many pages are there, of how many. Each part of the image is
    /// proved to be what was saved before any of it is stored. After an error the device is of no
    /// use.
    ///
    /// # Errors
    /// [`Error::Unusable`], what is damaged and where, or that the image is of a larger device;
    /// [`Error::Io`]; [`Error::NoSpace`].
    pub fn restore(&self, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<u64> {
        if self.core.origin.image().is_some() {
            return Err(Error::Unusable {
                path: path.to_owned(),
                reason: "what --origin names is on the device already".to_owned(),
            });
        }
        let mut image = ImageReader::open(path)?;
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
        while let Some(part) = image.next()? {
            let twice =
                part.pages()
                    .find_map(|(page, data)| match self.core.restore_page(page, data) {
                        Ok(true) => None,
                        Ok(false) => Some(Ok(page)),
                        Err(error) => Some(Err(error)),
                    });
            match twice {
                Some(Ok(page)) => return Err(image.twice(page)),
                Some(Err(error)) => return Err(error),
                None => progress(image.pages_read(), pages),
            }
        }
        Ok(pages)
    }
}

impl Core {
    /// Stores a page as it was saved; returns false if there is data in it.
    fn restore_page(&self, page: PageIndex, data: PageData<'_>) -> Result<bool> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut was_empty = true;
        let mut raw = [0; PAGE_SIZE];
        let data = self.storable(page, data, &mut raw)?;
        self.store_with_room(run.shard, |shard| {
            was_empty = shard.slot(run.slot).is_empty();
            match data {
                _ if !was_empty => Ok(()),
                PageData::SameFilled(pattern) => {
                    shard.store_same_filled(run.slot, pattern);
                    Ok(())
                }
                PageData::Object(codec, object) => shard.store(run.slot, codec, object),
            }
        })?;
        Ok(was_empty)
    }

    /// The data as this device's pool takes it: another's may have compressed what this one stores
    /// raw.
    fn storable<'a>(
        &self,
        page: PageIndex,
        data: PageData<'a>,
        raw: &'a mut [u8; PAGE_SIZE],
    ) -> Result<PageData<'a>> {
        match data {
            PageData::Object(codec, object)
                if codec != Codec::Raw && object.len() > self.max_compressed_len =>
            {
                codec::decompress(codec, object, raw)
                    .map_err(|_| Error::Corrupt { page: page.0 })?;
                Ok(PageData::Object(Codec::Raw, raw))
            }
            data => Ok(data),
        }
    }
}
