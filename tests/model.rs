//! Random operations on a device, beside a flat array of bytes that says what they should do.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use uzram::{
    Algorithm, BackingConfig, BlockDevice, Device, DeviceConfig, Error, Extent, OriginConfig,
    OriginUse, PAGE_SIZE, PageState, PoolKind, Recompression, Selection, SyncPolicy,
};

const DEVICE_PAGES: u64 = 600;
const DEVICE_BYTES: u64 = DEVICE_PAGES * PAGE_SIZE as u64;

/// What a write stores: data of different compressibility, different for each seed.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Text,
    Noise,
    Pattern,
    Zero,
}

fn fill(kind: Kind, seed: u32, out: &mut [u8]) {
    let mut state = u64::from(seed) | 1 << 40;
    let mut noise = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    match kind {
        Kind::Zero => out.fill(0),
        Kind::Pattern => out.fill(seed as u8),
        Kind::Noise => out.fill_with(noise),
        // A random byte in every few: compresses to something between a fifth and a half.
        Kind::Text => {
            let period = 4 + seed as usize % 13;
            for (i, byte) in out.iter_mut().enumerate() {
                *byte = if i % period == 0 {
                    noise()
                } else {
                    b"zsmalloc"[i % 8]
                };
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        page: u64,
        pages: u64,
        kind: Kind,
        seed: u32,
    },
    WriteBytes {
        offset: u64,
        len: u64,
        kind: Kind,
        seed: u32,
    },
    Read {
        offset: u64,
        len: u64,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
    },
    SetLimit {
        frames: u64,
    },
    Evict {
        frames: u64,
    },
    Compact,
    Flush,
    MarkIdle,
    WriteBack {
        what: &'static str,
        limit: Option<u64>,
    },
    SetAlgorithm {
        zstd: bool,
    },
    Recompress {
        what: &'static str,
    },
    Extents {
        offset: u64,
        len: u64,
    },
    Reset,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Text),
        2 => Just(Kind::Noise),
        1 => Just(Kind::Pattern),
        1 => Just(Kind::Zero),
    ]
}

/// A range of bytes, often aligned to pages.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let page = PAGE_SIZE as u64;
    prop_oneof![
        (0..DEVICE_BYTES, 0..9000u64),
        (0..DEVICE_PAGES, 0..150u64).prop_map(move |(at, n)| (at * page, n * page)),
    ]
    .prop_map(|(offset, len)| (offset, len.min(DEVICE_BYTES - offset)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..DEVICE_PAGES, 1..120u64, kind(), any::<u32>()).prop_map(
            |(page, pages, kind, seed)| {
                Step::Write { page, pages: pages.min(DEVICE_PAGES - page), kind, seed }
            }
        ),
        4 => (range(), kind(), any::<u32>()).prop_map(|((offset, len), kind, seed)| {
            Step::WriteBytes { offset, len, kind, seed }
        }),
        6 => range().prop_map(|(offset, len)| Step::Read { offset, len }),
        2 => range().prop_map(|(offset, len)| Step::Discard { offset, len }),
        1 => range().prop_map(|(offset, len)| Step::WriteZeroes { offset, len }),
        1 => (16..400u64).prop_map(|frames| Step::SetLimit { frames }),
        2 => (1..200u64).prop_map(|frames| Step::Evict { frames }),
        1 => Just(Step::Compact),
        2 => Just(Step::Flush),
        1 => Just(Step::MarkIdle),
        2 => (0..4usize, prop::option::of(0..200u64)).prop_map(|(what, limit)| {
            let whats = ["type=idle", "huge", "huge_idle page_index=599", "page_indexes=100-399"];
            Step::WriteBack { what: whats[what], limit }
        }),
        1 => any::<bool>().prop_map(|zstd| Step::SetAlgorithm { zstd }),
        2 => (0..3usize).prop_map(|what| {
            let whats = ["algo=zstd", "type=idle algo=zstd:5", "algo=lz4 threshold=900 max_pages=99"];
            Step::Recompress { what: whats[what] }
        }),
        1 => range().prop_map(|(offset, len)| Step::Extents { offset, len }),
        1 => Just(Step::Reset),
    ]
}

/// A device and what it should hold. After a write that failed, the pages it covered may hold the
/// old or the new data, page by page.
struct Harness {
    device: Device,
    bytes: Vec<u8>,
    store: Store,
    /// What the image was, for a device that is over one.
    image: Option<(PathBuf, Vec<u8>)>,
}

/// Where pages go when memory is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    None,
    Backing,
    /// To the image.
    Origin,
    /// To a backing; the image is only read.
    Snapshot,
}

impl Store {
    fn spills(self) -> bool {
        matches!(self, Self::Backing | Self::Snapshot)
    }

    fn evicts(self) -> bool {
        self != Self::None
    }
}

impl Harness {
    fn write_back(&mut self, what: &str, limit: Option<u64>) {
        // Nothing is being evicted once nothing may be written and what was under way is done.
        self.device.enable_writeback_limit(true);
        self.device.set_writeback_limit(0);
        self.device.check();
        let before = self.device.stats();
        self.device.set_writeback_limit(limit.unwrap_or(u64::MAX));
        let selection = Selection::parse(what, DEVICE_PAGES).expect("a selection");
        let done = self.device.write_back(selection);
        // Eviction goes on beside it, if memory is short.
        let after = self.device.stats();
        let written = after.written_back_pages - before.written_back_pages;
        assert!(after.bd_writes - before.bd_writes <= limit.unwrap_or(u64::MAX));
        match done {
            Ok(pages) => assert!(self.store.spills() && pages <= written),
            Err(error) => assert!(!self.store.spills() || limit == Some(written), "{error}"),
        }
        self.device.enable_writeback_limit(false);
    }

    fn apply(&mut self, step: &Step) {
        let page = PAGE_SIZE as u64;
        match *step {
            Step::Write {
                page: first,
                pages,
                kind,
                seed,
            } => {
                self.write(first * page, pages * page, kind, seed);
            }
            Step::WriteBytes {
                offset,
                len,
                kind,
                seed,
            } => self.write(offset, len, kind, seed),
            Step::Read { offset, len } => self.verify(offset, len),
            Step::Discard { offset, len } => {
                let done = self.device.discard(offset, len);
                self.zeroed(offset, len, done);
            }
            Step::WriteZeroes { offset, len } => {
                let done = self.device.write_zeroes(offset, len);
                self.zeroed(offset, len, done);
            }
            Step::SetLimit { frames } => {
                self.device
                    .set_mem_limit(Some(frames * page))
                    .expect("a valid limit");
            }
            Step::SetAlgorithm { zstd } => {
                let algorithm = match zstd {
                    true => Algorithm::Zstd { level: 1 },
                    false => Algorithm::Lz4,
                };
                let set = self.device.set_algorithm(algorithm);
                set.expect("it is in this build");
            }
            Step::Recompress { what } => {
                let request = Recompression::parse(what).expect("parameters");
                match self.device.recompress(&request) {
                    Ok(_) => {}
                    Err(Error::NoSpace(_)) => assert!(!self.store.evicts()),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Evict { frames } => {
                let evicted = self.device.evict(frames * page);
                assert_eq!(evicted.is_ok(), self.store.evicts(), "{evicted:?}");
            }
            Step::MarkIdle => {
                let marked = self.device.mark_idle(None);
                assert_eq!(marked, self.device.stats().resident_pages);
            }
            Step::WriteBack { what, limit } => self.write_back(what, limit),
            Step::Compact => {
                let before = self.device.stats().pages_compacted;
                let freed = self.device.compact();
                assert!(self.device.stats().pages_compacted >= before + freed);
            }
            Step::Extents { offset, len } => self.verify_extents(offset, len),
            Step::Flush => self.flush(),
            Step::Reset => self.reset(),
        }
    }

    /// What is flushed is in the image, if pages go there.
    fn flush(&self) {
        self.device.flush().expect("the image works");
        if self.store == Store::Origin {
            assert_eq!(self.device.stats().dirty_pages, 0);
            self.verify_image(&self.bytes);
        }
    }

    fn verify_image(&self, expected: &[u8]) {
        let (path, _) = self.image.as_ref().expect("there is an image");
        let found = fs::read(path).expect("readable");
        let differs = found.iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((found.len(), differs), (expected.len(), None));
    }

    fn reset(&mut self) {
        let done = self.device.reset();
        if self.store == Store::Origin {
            assert!(done.is_err(), "the data is the image's");
            return;
        }
        done.expect("nobody uses it");
        assert_eq!(self.device.stats().orig_data_size, 0);
        match &self.image {
            Some((_, image)) => self.bytes.copy_from_slice(image),
            None => self.bytes.fill(0),
        }
    }

    fn write(&mut self, offset: u64, len: u64, kind: Kind, seed: u32) {
        let mut data = vec![0; len as usize];
        fill(kind, seed, &mut data);
        let range = offset as usize..(offset + len) as usize;
        match self.device.write(offset, &data) {
            Ok(()) => self.bytes[range].copy_from_slice(&data),
            Err(error) => {
                assert_eq!(error.errno(), rustix::io::Errno::NOSPC, "{error}");
                assert!(!self.store.evicts(), "no room: {error}");
                self.adopt_old_or_new(offset, &data);
            }
        }
    }

    fn adopt_old_or_new(&mut self, offset: u64, data: &[u8]) {
        let mut now = vec![0; data.len()];
        self.device.read(offset, &mut now).expect("readable");
        let mut at = 0;
        while at < data.len() {
            let start = offset as usize + at;
            let n = (PAGE_SIZE - start % PAGE_SIZE).min(data.len() - at);
            let model = &mut self.bytes[start..start + n];
            assert!(now[at..at + n] == data[at..at + n] || now[at..at + n] == *model);
            model.copy_from_slice(&now[at..at + n]);
            at += n;
        }
    }

    fn zeroed(&mut self, offset: u64, len: u64, done: uzram::Result<()>) {
        match done {
            Ok(()) => self.bytes[offset as usize..(offset + len) as usize].fill(0),
            Err(error) => {
                assert!(!self.store.evicts(), "no room: {error}");
                self.adopt_old_or_new(offset, &vec![0; len as usize]);
            }
        }
    }

    fn verify(&self, offset: u64, len: u64) {
        let mut data = vec![0xee; len as usize];
        self.device.read(offset, &mut data).expect("readable");
        let expected = &self.bytes[offset as usize..(offset + len) as usize];
        if let Some(at) = data.iter().zip(expected).position(|(a, b)| a != b) {
            panic!("byte {} differs", offset + at as u64);
        }
    }

    fn verify_extents(&self, offset: u64, len: u64) {
        let mut at = offset;
        let mut last = None;
        self.device
            .extents(offset..offset + len, &mut |extent: Extent| {
                assert_eq!(extent.offset, at);
                assert!(
                    extent.len > 0 && last != Some(extent.state),
                    "not coalesced"
                );
                at += extent.len;
                last = Some(extent.state);
                if matches!(extent.state, PageState::Empty | PageState::Zero) {
                    let range = extent.offset as usize..at as usize;
                    assert!(self.bytes[range].iter().all(|&byte| byte == 0));
                }
                ControlFlow::Continue(())
            });
        assert_eq!(at, offset + len);
    }

    fn check(&self) {
        self.device.check();
        let stats = self.device.stats();
        assert!(stats.backing_bytes_live <= stats.backing_bytes_used);
        // Every page that is not zero is counted; zero pages are if they were written as such.
        let (pages, _) = self.bytes.as_chunks::<PAGE_SIZE>();
        let data = pages
            .iter()
            .filter(|page| page.iter().any(|&byte| byte != 0))
            .count();
        let counted = stats.same_pages + stats.resident_pages + stats.written_back_pages;
        assert!(
            self.image.is_some() || counted >= data as u64,
            "{data} pages hold data, {counted} are counted"
        );
        assert_eq!(stats.orig_data_size, counted * PAGE_SIZE as u64);
        // Over an image it shrinks at any time: what is evicted is the image's.
        assert!(
            self.store == Store::Origin || self.device.orig_data_size() == stats.orig_data_size
        );
        let stored = stats.resident_pages + stats.written_back_pages;
        // Zeroes that are read of an image are stored like anything else.
        assert!(self.store == Store::Origin || stored <= data as u64);
    }
}

/// An image with some of everything in it.
fn make_image(dir: &Path) -> (PathBuf, Vec<u8>) {
    let mut bytes = vec![0; DEVICE_BYTES as usize];
    let kinds = [Kind::Text, Kind::Zero, Kind::Noise, Kind::Pattern];
    for (seed, some) in (0..).zip(bytes.chunks_mut(23 * PAGE_SIZE)) {
        fill(kinds[seed as usize % 4], seed, some);
    }
    let path = dir.join("image");
    fs::write(&path, &bytes).expect("written");
    (path, bytes)
}

fn run(steps: &[Step], pool: PoolKind, shards: u32, algorithm: Algorithm, store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = DeviceConfig::new(DEVICE_BYTES);
    let usage = match store {
        Store::None | Store::Backing => None,
        Store::Origin => Some(OriginUse::WriteBack(SyncPolicy::Flush)),
        Store::Snapshot => Some(OriginUse::Snapshot),
    };
    let image = usage.map(|usage| {
        let (path, bytes) = make_image(dir.path());
        let origin = path.clone();
        config.origin = Some(OriginConfig::new(origin, usage));
        (path, bytes)
    });
    config.shards = Some(shards);
    config.algorithm = algorithm;
    config.pool = pool;
    config.mem_limit = Some(128 * PAGE_SIZE as u64);
    if store.spills() {
        config.backing = Some(BackingConfig::new(dir.path().join("spill")).encrypt(shards > 1));
    }
    let device = Device::new(&config).expect("a device");
    let bytes = image.as_ref().map(|(_, bytes)| bytes.clone());
    let mut harness = Harness {
        device,
        bytes: bytes.unwrap_or_else(|| vec![0; DEVICE_BYTES as usize]),
        store,
        image,
    };
    for step in steps {
        harness.apply(step);
        harness.check();
    }
    harness.verify(0, DEVICE_BYTES);
    harness
        .device
        .discard(0, DEVICE_BYTES)
        .expect("a discard needs no room");
    harness.bytes.fill(0);
    harness.check();
    harness.flush();
    let stats = harness.device.stats();
    // Zeroes that hide what an image has are data.
    let zeroes = if store == Store::Snapshot {
        DEVICE_BYTES
    } else {
        0
    };
    assert_eq!((stats.mem_used_total, stats.orig_data_size), (0, zeroes));
    assert_eq!((stats.compr_data_size, stats.backing_bytes_live), (0, 0));
    if let (Store::Snapshot, Some((_, image))) = (store, &harness.image) {
        harness.verify_image(image);
    }
    let left = usize::from(harness.image.is_some());
    drop(harness);
    let files = fs::read_dir(dir.path()).expect("readable");
    assert_eq!(files.count(), left, "the spill is gone");
}

fn pool() -> impl Strategy<Value = PoolKind> {
    prop_oneof![
        3 => Just(PoolKind::Zsmalloc),
        1 => Just(PoolKind::Zbud),
        1 => Just(PoolKind::Z3fold),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn one_shard_without_backing(pool in pool(), steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, pool, 1, Algorithm::Lz4, Store::None);
    }

    #[test]
    fn four_shards_without_backing(pool in pool(), steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, pool, 4, Algorithm::Zstd { level: 1 }, Store::None);
    }

    #[test]
    fn one_shard_with_backing(pool in pool(), steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, pool, 1, Algorithm::Zstd { level: 1 }, Store::Backing);
    }

    #[test]
    fn four_shards_with_backing(pool in pool(), steps in prop::collection::vec(step(), 1..60)) {
        run(&steps, pool, 4, Algorithm::Lz4, Store::Backing);
    }

    #[test]
    fn over_an_image(
        pool in pool(),
        shards in 1..4u32,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(&steps, pool, shards, Algorithm::Lz4, Store::Origin);
    }

    #[test]
    fn a_snapshot_of_an_image(
        pool in pool(),
        shards in 1..4u32,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        run(&steps, pool, shards, Algorithm::Lz4, Store::Snapshot);
    }
}
