//! Making a dictionary of what is on a device.

use std::path::Path;

use super::Device;
use crate::block_device::BlockDevice;
use crate::codec::{MAX_DICTIONARY_LEN, train_dictionary};
use crate::error::{Error, Result};
use crate::image::write_whole;
use crate::named_file::Links;
use crate::shard::SlotState;
use crate::size::human_size;
use crate::units::{PAGE_SHIFT, PAGE_SIZE, PageIndex};

/// Pages to learn from: 32 MiB, some hundred times what a dictionary has.
const SAMPLES: u64 = 8192;

impl Device {
    /// Makes a dictionary of at most `len` bytes of pages from all over the device, of those that
    /// are in memory, and puts it in a file at `path`. It is not used before it is set.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if no dictionary has so many bytes; [`Error::Refused`] (EINVAL) if there
    /// are too few pages; [`Error::Unusable`] or [`Error::Io`] about the file; those of reading.
    pub fn train_dictionary(&self, path: &Path, len: usize) -> Result<()> {
        write_whole(path, Links::Follow, &self.dictionary(len)?, 0o600)
    }

    /// Makes such a dictionary.
    ///
    /// # Errors
    /// Those of [`Device::train_dictionary`] but about the file.
    pub(crate) fn dictionary(&self, len: usize) -> Result<Vec<u8>> {
        check_dictionary_len(len)?;
        let mut samples = Vec::new();
        for index in self.samples() {
            let mut page = [0; PAGE_SIZE];
            self.read(u64::from(index.0) << PAGE_SHIFT, &mut page)?;
            samples.push(page);
        }
        train_dictionary(&samples, len)
    }

    /// Pages to learn from, as far apart as there are so many.
    fn samples(&self) -> Vec<PageIndex> {
        let engine = &self.engine;
        let resident: u64 = engine
            .shards
            .layout
            .shards()
            .map(|index| engine.shards.lock(index).counts().resident_pages)
            .sum();
        let step = resident.div_ceil(SAMPLES).max(1);
        let (mut samples, mut seen) = (Vec::new(), 0);
        engine.shards.change_notes(|index, slot_index, slot| {
            if matches!(slot.state(), SlotState::Resident { .. }) {
                if seen % step == 0 {
                    samples.push(engine.shards.layout.page(index, slot_index));
                }
                seen += 1;
            }
            slot
        });
        samples
    }
}

/// Checks how many bytes a dictionary is to have.
///
/// # Errors
/// [`Error::InvalidConfig`] if that is too few or too many.
pub(crate) fn check_dictionary_len(len: usize) -> Result<()> {
    if (1024..=MAX_DICTIONARY_LEN).contains(&len) {
        return Ok(());
    }
    Err(Error::InvalidConfig {
        option: "dictionary_len",
        reason: format!(
            "a dictionary has from 1 KiB to {}",
            human_size(MAX_DICTIONARY_LEN as u64)
        ),
    })
}
