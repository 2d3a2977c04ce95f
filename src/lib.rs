//! zram in userspace.

mod attributes;
mod block_device;
mod codec;
mod config;
pub mod control;
mod device;
mod error;
pub mod fuse;
mod memory;
pub mod nbd;
mod pool;
mod shard;
mod size;
mod spill;
mod stats;
mod units;
mod unix_socket;
mod writeback;

pub use attributes::Attribute;
pub use block_device::{BlockDevice, check_range};
pub use config::{Algorithm, BackingConfig, DeviceConfig, PoolKind, check_mem_limit};
pub use device::Device;
pub use error::{Error, Result};
pub use pool::ClassStats;
pub use size::{ParseSizeError, parse_size};
pub use stats::Stats;
pub use units::{Extent, MAX_DEVICE_BYTES, PAGE_SHIFT, PAGE_SIZE, Page, PageIndex, PageState};
