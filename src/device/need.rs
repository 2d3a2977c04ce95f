//! What memory a device can come to need, whatever is written to it: it is what a limit is held against
//! where pages cannot leave.

use crate::config::DeviceConfig;
use crate::engine::shards_for;
use crate::pool;
use crate::units::PAGE_SHIFT;

impl DeviceConfig {
    /// Bytes of page frames that the device needs at most: one for each page, if none can be compressed,
    /// and what its pools leave unused.
    pub fn most_memory(&self) -> u64 {
        let shards = u64::from(self.shards.unwrap_or_else(|| shards_for(self)));
        self.size + ((shards * pool::most_waste(self.pool)) << PAGE_SHIFT)
    }

    /// Whether writes can fail for want of memory because of the limit alone: it is less than
    /// [`DeviceConfig::most_memory`], and pages have neither a backing nor an image to leave for.
    pub fn can_meet_limit(&self) -> bool {
        let leaves = match &self.origin {
            Some(origin) => !origin.is_snapshot() || self.backing.is_some(),
            None => self.backing.is_some(),
        };
        let is_less = |limit| limit < self.most_memory();
        !self.read_only && !leaves && self.mem_limit.is_some_and(is_less)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block_device::BlockDevice;
    use crate::device::Device;
    use crate::origin::{OriginConfig, OriginUse, SyncPolicy};
    use crate::pool::PoolKind;
    use crate::spill::BackingConfig;
    use crate::units::PAGE_SIZE;

    const PAGE: u64 = PAGE_SIZE as u64;

    #[test]
    fn pages_that_can_leave_meet_no_limit() {
        let mut config = DeviceConfig::new(1 << 30);
        assert!(!config.can_meet_limit());
        config.mem_limit = Some(1 << 30);
        assert!(config.can_meet_limit());
        config.mem_limit = Some(config.most_memory());
        assert!(!config.can_meet_limit());
        config.mem_limit = Some(config.most_memory() - 1);
        assert!(config.can_meet_limit());
        config.read_only = true;
        assert!(!config.can_meet_limit());
        config.read_only = false;
        for (usage, can) in [
            (OriginUse::Snapshot, true),
            (OriginUse::WriteBack(SyncPolicy::Never), false),
        ] {
            config.origin = Some(OriginConfig::new("/image", usage));
            assert_eq!(config.can_meet_limit(), can, "{usage:?}");
        }
        config.origin = None;
        config.backing = Some(BackingConfig::new("/spill"));
        assert!(!config.can_meet_limit());
    }

    /// A page that can be compressed to little more than `noise` bytes.
    fn page(random: &mut u64, noise: usize) -> [u8; PAGE_SIZE] {
        let mut page = [0; PAGE_SIZE];
        for byte in &mut page[..noise] {
            *random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (*random >> 56) as u8;
        }
        page
    }

    /// Pages of every length, most of which go again, and then pages that nothing makes smaller: pools
    /// begin as sparse as they can be.
    #[test]
    fn no_device_needs_more() {
        const PAGES: u64 = 4096;
        const ROUNDS: usize = 4;
        for pool in PoolKind::ALL {
            let mut config = DeviceConfig::new(PAGES * PAGE);
            (config.pool, config.shards) = (pool, Some(2));
            config.mem_limit = Some(config.most_memory());
            let device = Device::new(&config).expect("a device");
            let mut random = 42;
            for round in 1..=ROUNDS {
                for index in 0..PAGES {
                    let noise = match round {
                        ROUNDS => PAGE_SIZE,
                        _ => (random >> 32) as usize % PAGE_SIZE,
                    };
                    let page = page(&mut random, noise);
                    device.write(index * PAGE, &page).expect("there is room");
                    if round < ROUNDS && index % 4 != 0 {
                        device.discard(index * PAGE, PAGE).expect("discarded");
                    }
                }
            }
            let used = device.stats().mem_used_total;
            assert!(used >= PAGES * PAGE, "{pool}: {used}");
        }
    }
}
