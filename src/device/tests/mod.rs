//! The device over a backing that misbehaves.

mod adopt;
mod algorithms;
mod block_backing;
mod compaction;
mod faults;
mod idle;
mod integrity;
mod map;
mod origin;
mod races;
mod recompress;
mod replace;
mod resize;
mod restore;
mod save;
#[cfg(shuttle)]
mod schedules;
mod selected;
mod space;
mod tables;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::eventually;

use super::Device;
use crate::algorithm::Algorithm;
use crate::block_device::BlockDevice;
use crate::codec;
use crate::config::DeviceConfig;
use crate::engine::Codecs;
use crate::memory::FrameBudget;
use crate::origin::Origin;
use crate::pool::PoolKind;
use crate::spill::{Backing, FaultyBacking};
use crate::units::{PAGE_SIZE, Page};

const PAGE: u64 = PAGE_SIZE as u64;

/// A page that compresses to about a third, and tells its tag.
fn tagged(tag: u64) -> Page {
    let mut state = tag | 1 << 63;
    let mut page = [0; PAGE_SIZE];
    for chunk in page.chunks_exact_mut(16) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        chunk[..4].copy_from_slice(&state.to_le_bytes()[4..]);
        chunk[8..].copy_from_slice(&tag.to_le_bytes());
    }
    page
}

fn device(pages: u64, limit_pages: u64, shards: u32, backing: &Arc<FaultyBacking>) -> Device {
    device_with(PoolKind::Zsmalloc, pages, limit_pages, shards, backing)
}

fn device_with(
    pool: PoolKind,
    pages: u64,
    limit_pages: u64,
    shards: u32,
    backing: &Arc<FaultyBacking>,
) -> Device {
    let mut config = DeviceConfig::new(pages * PAGE);
    config.mem_limit = Some(limit_pages * PAGE);
    config.shards = Some(shards);
    config.pool = pool;
    Device::with_stores(
        &config,
        Origin::Blank,
        Some(Arc::clone(backing) as Arc<dyn Backing>),
    )
    .expect("a device")
}

fn write(device: &Device, page: u64, tag: u64) -> crate::Result<()> {
    device.write(page * PAGE, &tagged(tag))
}

#[track_caller]
fn expect(device: &Device, page: u64, tag: u64) {
    let mut found = [0; PAGE_SIZE];
    device.read(page * PAGE, &mut found).expect("readable");
    assert!(found == tagged(tag), "page {page} is not {tag}");
}

/// A tag other than 1 whose page compresses to as many bytes as that of 1 does.
fn like_1() -> u64 {
    let len = |tag| {
        let mut out = [0; codec::MAX_COMPRESSED_LEN];
        let budget = Arc::new(FrameBudget::new(FrameBudget::UNLIMITED));
        let algorithms = Codecs::new(Algorithm::Lz4, &[], budget, None);
        let made = algorithms.compress(&tagged(tag), &mut out, PAGE_SIZE);
        made.map(|(_, len)| len)
    };
    (3..10_000)
        .find(|&tag| len(tag) == len(1))
        .expect("lengths repeat")
}
