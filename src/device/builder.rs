//! Building a device in a program, setting by setting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Device, open_origin};
use crate::algorithm::Algorithm;
use crate::config::{DeviceConfig, NO_BACKING};
use crate::error::{Error, Result};
use crate::memory::DeviceMemory;
use crate::origin::{Origin, OriginConfig};
use crate::pool::PoolKind;
use crate::spill::{Backing, BackingConfig, BackingNotes, Opener};

/// A device to be made: [`Device::builder`], or [`DeviceBuilder::from`] a [`DeviceConfig`].
#[derive(Clone)]
#[must_use = "a device is made by `build`"]
pub struct DeviceBuilder {
    config: DeviceConfig,
    backing: Option<Arc<dyn Backing>>,
    notes: Option<Arc<dyn BackingNotes>>,
    memory: Option<DeviceMemory>,
}

impl fmt::Debug for DeviceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backing = self.backing.as_ref().map(|backing| backing.path());
        f.debug_struct("DeviceBuilder")
            .field("config", &self.config)
            .field("backing", &backing)
            .finish()
    }
}

impl From<DeviceConfig> for DeviceBuilder {
    fn from(config: DeviceConfig) -> Self {
        Self {
            config,
            backing: None,
            notes: None,
            memory: None,
        }
    }
}

impl DeviceBuilder {
    /// As [`DeviceConfig::max_size`].
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.config.max_size = Some(bytes);
        self
    }

    /// As [`DeviceConfig::mem_limit`].
    pub fn mem_limit(mut self, bytes: u64) -> Self {
        self.config.mem_limit = Some(bytes);
        self
    }

    /// As [`DeviceConfig::table_limit`].
    pub fn table_limit(mut self, bytes: u64) -> Self {
        self.config.table_limit = Some(bytes);
        self
    }

    /// As [`DeviceConfig::algorithm`].
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.config.algorithm = algorithm;
        self
    }

    /// Another of [`DeviceConfig::recompress`].
    pub fn recompress(mut self, algorithm: Algorithm) -> Self {
        self.config.recompress.push(algorithm);
        self
    }

    /// As [`DeviceConfig::recompress_after`].
    pub fn recompress_after(mut self, age: Duration) -> Self {
        self.config.recompress_after = Some(age);
        self
    }

    /// As [`DeviceConfig::pool`].
    pub fn pool(mut self, pool: PoolKind) -> Self {
        self.config.pool = pool;
        self
    }

    /// As [`DeviceConfig::origin`].
    pub fn origin(mut self, origin: OriginConfig) -> Self {
        self.config.origin = Some(origin);
        self
    }

    /// As [`DeviceConfig::read_only`].
    pub fn read_only(mut self) -> Self {
        self.config.read_only = true;
        self
    }

    /// Spills to a file or a block device: [`DeviceConfig::backing`].
    pub fn backing(mut self, backing: BackingConfig) -> Self {
        self.config.backing = Some(backing);
        self.backing = None;
        self
    }

    /// Spills to a store of the program's own, unencrypted. It must be empty, and the device's alone.
    pub fn spill_to(mut self, backing: Arc<dyn Backing>) -> Self {
        self.backing = Some(backing);
        self.config.backing = None;
        self
    }

    /// As [`DeviceConfig::writeback_daily_limit`].
    pub fn writeback_daily_limit(mut self, bytes: u64) -> Self {
        self.config.writeback_daily_limit = Some(bytes);
        self
    }

    /// As [`DeviceConfig::shards`].
    pub fn shards(mut self, shards: u32) -> Self {
        self.config.shards = Some(shards);
        self
    }

    /// As [`DeviceConfig::slow_request`].
    pub fn slow_request(mut self, time: Duration) -> Self {
        self.config.slow_request = Some(time);
        self
    }

    /// Has notes be kept of what it spills to.
    #[doc(hidden)]
    pub fn noting(mut self, notes: Arc<dyn BackingNotes>) -> Self {
        self.notes = Some(notes);
        self
    }

    /// Puts the device in memory that outlives the process; or, if a device is there already, goes on with that one:
    /// with all that was written to it, with its size, limits, algorithms and what it spills to as they were last.
    /// What its configuration says of these is for a new one only; of the image that it is over, and of
    /// encryption, it must say what it said before.
    pub fn memory(mut self, memory: DeviceMemory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// Makes the device.
    ///
    /// # Errors
    /// Those of [`Device::new`]; [`Error::Unusable`] or [`Error::Io`] about what it is to spill to; [`Error::Io`] if the
    /// device in its memory is damaged, or another than was asked for.
    pub fn build(self) -> Result<Device> {
        let Some(backing) = self.backing else {
            let opener = self.notes.map_or_else(Opener::default, Opener::noting);
            return Device::opening_in(self.memory, opener, &self.config);
        };
        self.config.validate()?;
        let origin = match &self.config.origin {
            Some(origin) if !origin.is_snapshot() => {
                return Err(Error::InvalidConfig {
                    option: "backing",
                    reason: NO_BACKING.to_owned(),
                });
            }
            Some(origin) => open_origin(origin, self.config.size)?,
            None => Origin::Blank,
        };
        let opener = Opener::default();
        // A device that is found spills to what it did.
        let holds_device = self.memory.as_ref().is_some_and(DeviceMemory::holds_device);
        let backing = Some(backing).filter(|_| !holds_device);
        Device::of_parts(&self.config, origin, backing, opener, self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spill::MemoryBacking;
    use crate::units::PAGE_SIZE;

    const PAGES: u64 = 2000;

    fn page(index: u64) -> Vec<u8> {
        let words = (0..PAGE_SIZE as u64 / 8).map(|at| (index * 31 + at % 90) * 0x0101_0101);
        words.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn a_store_of_the_programs_own_holds_what_memory_does_not() {
        let backing = Arc::new(MemoryBacking::new(16));
        let device = Device::builder(PAGES * PAGE_SIZE as u64)
            .mem_limit(100 * PAGE_SIZE as u64)
            .spill_to(Arc::clone(&backing) as _)
            .build()
            .expect("a device");
        for index in 0..PAGES {
            let at = index * PAGE_SIZE as u64;
            device.write_at(at, &page(index)).expect("there is room");
        }
        assert!(backing.segments_in_use() > 0);
        let mut found = vec![0; PAGE_SIZE];
        for index in 0..PAGES {
            let at = index * PAGE_SIZE as u64;
            device.read_at(at, &mut found).expect("there");
            assert!(found == page(index), "page {index}");
        }
        device
            .discard_at(0, PAGES * PAGE_SIZE as u64)
            .expect("no room needed");
        drop(device);
        assert_eq!(Arc::strong_count(&backing), 1);
    }

    #[test]
    fn a_store_that_is_too_small_is_refused() {
        let build = |segments| {
            Device::builder(1 << 20)
                .spill_to(Arc::new(MemoryBacking::new(segments)))
                .build()
        };
        build(2).expect("two segments");
        let refused = build(1).map(drop).expect_err("one").to_string();
        assert_eq!(
            refused,
            "memory: it holds 2 MiB, and a backing needs 4 MiB at least"
        );
    }
}
