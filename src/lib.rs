//! zram in userspace.

mod block_device;
mod codec;
mod config;
mod device;
mod error;
mod memory;
mod pool;
mod shard;
mod spill;
mod stats;
mod units;
mod writeback;

pub use block_device::{BlockDevice, check_range};
pub use config::{Algorithm, BackingConfig, DeviceConfig, PoolKind, check_mem_limit};
pub use device::Device;
pub use error::{Error, Result};
pub use pool::ClassStats;
pub use stats::Stats;
pub use units::{Extent, MAX_DEVICE_BYTES, PAGE_SHIFT, PAGE_SIZE, Page, PageIndex, PageState};
