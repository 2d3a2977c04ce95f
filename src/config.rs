//! How a device is configured, checked before anything is made.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::algorithm::{Algorithm, Priority};
use crate::error::{Error, Result};
use crate::origin::{OriginConfig, OriginUse};
use crate::pool::PoolKind;
use crate::spill::BackingConfig;
use crate::units::{MAX_DEVICE_BYTES, PAGE_SIZE};

/// Least of [`DeviceConfig::recompress_after`].
const RECOMPRESS_SOONEST: Duration = Duration::from_secs(1);

/// Why there is no backing beside an image.
pub(crate) const NO_BACKING: &str = "pages are written to the image; only a snapshot spills";

/// A device to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeviceConfig {
    /// Bytes, a multiple of 4096, at most [`MAX_DEVICE_BYTES`].
    pub size: u64,
    /// Bytes that the device may be grown to, at least `size` and at most [`MAX_DEVICE_BYTES`]. That
    /// takes addresses, no memory; four times the size, where there are so many, if `None`.
    pub max_size: Option<u64>,
    /// Most bytes of page frames, at least [`DeviceConfig::MIN_MEM_LIMIT`]; no limit if `None`.
    pub mem_limit: Option<u64>,
    /// Most bytes of memory for what says where pages are, at least [`DeviceConfig::MIN_TABLE_LIMIT`]: 4 KiB
    /// for each 2 MiB of the device in which there is data, half as much again where pages are destaged to an
    /// image, and dictionaries. A quarter of the machine's memory, or of what its control
    /// group may have, if `None`.
    pub table_limit: Option<u64>,
    /// The image that the device begins as, of `size` bytes; blank if `None`. Unless it is a
    /// snapshot, what is written goes there and nothing is spilled.
    pub origin: Option<OriginConfig>,
    /// Whether nothing ever changes what is on it: what it begins as, or is restored from.
    pub read_only: bool,
    /// Where to spill; at the limit writes fail if `None`.
    pub backing: Option<BackingConfig>,
    /// Compression of new pages.
    pub algorithm: Algorithm,
    /// Stronger ones for pages that are recompressed, at most three, in the order of their priority.
    pub recompress: Vec<Algorithm>,
    /// How long pages must not have been accessed to be recompressed without being asked, at least
    /// a second; they never are if `None`.
    pub recompress_after: Option<Duration>,
    /// The allocator.
    pub pool: PoolKind,
    /// Most bytes to write to the backing in any twenty-four hours, at least
    /// [`DeviceConfig::MIN_DAILY_LIMIT`]; no limit if `None`.
    pub writeback_daily_limit: Option<u64>,
    /// Slices of the slot table, each with a lock and a pool; chosen from the machine if `None`.
    pub shards: Option<u32>,
    /// How long a request may take before it is logged; none is if `None`. Has every request timed.
    pub slow_request: Option<Duration>,
}

impl DeviceConfig {
    /// The largest zspage: a limit below it could never store every object.
    pub const MIN_MEM_LIMIT: u64 = 8 * PAGE_SIZE as u64;

    /// Least of [`DeviceConfig::table_limit`].
    pub const MIN_TABLE_LIMIT: u64 = 64 << 10;

    /// The least that may be written in a day: an append.
    pub const MIN_DAILY_LIMIT: u64 = 1 << 20;

    /// Most shards of a device.
    pub const MAX_SHARDS: u32 = 256;

    /// Fewest shards of a device of `size` bytes: each holds at most 2^31 pages, since an object
    /// names its slot in 31 bits.
    pub(crate) fn min_shards(size: u64) -> u32 {
        size.div_ceil(PAGE_SIZE as u64 * (1 << 31)) as u32
    }

    /// Bytes that the device must be able to grow to.
    pub(crate) fn least_max_size(&self) -> u64 {
        self.max_size.unwrap_or(0).max(self.size)
    }

    /// A device of `size` bytes with every other setting at its default.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            max_size: None,
            mem_limit: None,
            table_limit: None,
            origin: None,
            read_only: false,
            backing: None,
            algorithm: Algorithm::Lz4,
            recompress: Vec::new(),
            recompress_after: None,
            pool: PoolKind::Zsmalloc,
            writeback_daily_limit: None,
            shards: None,
            slow_request: None,
        }
    }

    /// A device over an image with every other setting at its default.
    ///
    /// # Errors
    /// Those of [`OriginConfig::size`].
    pub fn over(origin: OriginConfig) -> Result<Self> {
        let mut config = Self::new(origin.size()?);
        config.origin = Some(origin);
        Ok(config)
    }

    /// Checks what can be checked without touching the machine.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the option.
    pub fn validate(&self) -> Result<()> {
        check_size("size", self.size)?;
        if let Some(max_size) = self.max_size {
            check_size("max_size", max_size.max(self.size))?;
        }
        if let Some(limit) = self.mem_limit {
            check_mem_limit(limit)?;
        }
        if let Some(limit) = self.table_limit {
            check_table_limit(limit)?;
        }
        if let (Some(origin), Some(_)) = (&self.origin, &self.backing)
            && let OriginUse::WriteBack(_) = origin.usage
        {
            return Err(Error::InvalidConfig {
                option: "backing",
                reason: NO_BACKING.to_owned(),
            });
        }
        if self.read_only
            && let Some(origin) = &self.origin
            && !origin.is_snapshot()
        {
            return Err(Error::InvalidConfig {
                option: "read_only",
                reason: "nothing is written to the image: it is to be a snapshot".to_owned(),
            });
        }
        if let Some(limit) = self.writeback_daily_limit {
            check_daily_limit(limit)?;
        }
        self.algorithm.check()?;
        self.recompress.iter().try_for_each(|again| again.check())?;
        if self.recompress.len() > Priority::SECONDARY.len() {
            return Err(Error::InvalidConfig {
                option: "recompress",
                reason: "there are at most three algorithms for recompression".to_owned(),
            });
        }
        if self
            .recompress_after
            .is_some_and(|after| after < RECOMPRESS_SOONEST)
        {
            return Err(Error::InvalidConfig {
                option: "recompress_after",
                reason: "pages are recompressed after a second at the soonest".to_owned(),
            });
        }
        self.shards
            .map_or(Ok(()), |shards| check_shards(shards, self.least_max_size()))
    }
}

/// Checks a limit of tables.
///
/// # Errors
/// [`Error::InvalidConfig`] if it is below [`DeviceConfig::MIN_TABLE_LIMIT`].
fn check_table_limit(limit: u64) -> Result<()> {
    if limit >= DeviceConfig::MIN_TABLE_LIMIT {
        return Ok(());
    }
    let least = DeviceConfig::MIN_TABLE_LIMIT >> 10;
    Err(Error::InvalidConfig {
        option: "table_limit",
        reason: format!("{limit} is less than {least}K"),
    })
}

/// Checks a limit given at start or while in use.
///
/// # Errors
/// [`Error::InvalidConfig`] if it is below [`DeviceConfig::MIN_DAILY_LIMIT`].
pub(crate) fn check_daily_limit(limit: u64) -> Result<()> {
    if limit >= DeviceConfig::MIN_DAILY_LIMIT {
        return Ok(());
    }
    let least = DeviceConfig::MIN_DAILY_LIMIT >> 20;
    Err(Error::InvalidConfig {
        option: "writeback_daily_limit",
        reason: format!("{limit} is less than {least}M; 0 is no limit"),
    })
}

/// Checks a size given at start or while in use.
///
/// # Errors
/// [`Error::InvalidConfig`] about `option`.
pub(crate) fn check_size(option: &'static str, size: u64) -> Result<()> {
    let reason = if size == 0 {
        "a device needs at least 4096 bytes".to_owned()
    } else if !size.is_multiple_of(PAGE_SIZE as u64) {
        format!("{size} is not a multiple of 4096")
    } else if size > MAX_DEVICE_BYTES {
        format!("{size} is more than the largest device, 16T")
    } else {
        return Ok(());
    };
    Err(Error::InvalidConfig { option, reason })
}

fn check_shards(shards: u32, size: u64) -> Result<()> {
    let least = DeviceConfig::min_shards(size);
    if (least..=DeviceConfig::MAX_SHARDS).contains(&shards) {
        return Ok(());
    }
    let most = DeviceConfig::MAX_SHARDS;
    let reason = format!("{shards} is not between {least}, for this size, and {most}");
    Err(Error::InvalidConfig {
        option: "shards",
        reason,
    })
}

/// Checks a limit given at start or while in use.
///
/// # Errors
/// [`Error::InvalidConfig`] if it is below [`DeviceConfig::MIN_MEM_LIMIT`].
pub fn check_mem_limit(limit: u64) -> Result<()> {
    if limit >= DeviceConfig::MIN_MEM_LIMIT {
        return Ok(());
    }
    let reason = format!(
        "{limit} is less than one zspage, {}K",
        DeviceConfig::MIN_MEM_LIMIT >> 10
    );
    Err(Error::InvalidConfig {
        option: "mem_limit",
        reason,
    })
}
