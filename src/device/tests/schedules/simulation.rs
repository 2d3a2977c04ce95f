//! The whole device, with a seeded scheduler, a clock that moves only here, and a backing that fails
//! by the same seed, beside a naive model.
//!
//! A seed is a world: its allocator, shards, limit, backing and faults. Clients write, read and
//! discard their own parts of the device, and check each answer; another thread evicts, compacts,
//! recompresses, changes limits and backings, and has time pass. Faults that are told (refused and
//! short writes, reads that fail) may cost a request, and never data. Those that are not (lost, torn
//! and misdirected writes, wrong reads) may cost what they strike, which then cannot be read. What
//! is read is right in every world.

mod client;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use self::client::Client;
use super::run::{Random, report, run, seeds};
use super::*;
use crate::config::{BackingConfig, PoolKind};
use crate::recompression::Recompression;
use crate::selection::Selection;
use crate::spill::{Chances, Faults};
use crate::sync::{be_coarse, time};

const CLIENTS: u64 = 3;
/// Half pages: what a client writes is made of these.
const UNIT: usize = PAGE_SIZE / 2;
/// Units that follow each other and belong to one client: the most a request covers.
const RUN: u64 = 16;
/// Units of a device.
const UNITS: u64 = 96 * RUN;
/// Requests of a client in a world.
const REQUESTS: u64 = 3000;
/// Worlds, unless `UZRAM_SEEDS` says otherwise.
const WORLDS: u64 = 40;
/// Most decisions of a world.
const MAX_STEPS: usize = 50_000_000;
/// Most page frames that any limit allows.
const MOST_FRAMES: u64 = 250;

/// Seeds that have failed once.
const REGRESSIONS: [u64; 0] = [];

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
    units_verified: AtomicU64,
    spilled: AtomicU64,
    read_back: AtomicU64,
}

#[test]
fn what_is_read_is_right() {
    let (began, counts) = (Instant::now(), Arc::new(Counts::default()));
    for seed in REGRESSIONS.into_iter().chain(seeds(WORLDS)) {
        let counts = Arc::clone(&counts);
        run(seed, MAX_STEPS, None, move || {
            World::new(seed).live(&counts);
        })
        .unwrap_or_else(|()| report(concat!(module_path!(), "::what_is_read_is_right"), seed));
    }
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    println!(
        "{} requests, {} failed as they may, {} pages verified, {} spilled, {} read back, {:.1} s",
        count(&counts.requests),
        count(&counts.failed),
        count(&counts.units_verified) / 2,
        count(&counts.spilled),
        count(&counts.read_back),
        began.elapsed().as_secs_f64()
    );
}

/// What goes wrong in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fine,
    Told,
    Untold,
}

struct World {
    random: Random,
    weather: Weather,
    device: Arc<Device>,
    /// All backings that there ever were.
    backings: Vec<Arc<FaultyBacking>>,
}

impl World {
    fn new(seed: u64) -> Self {
        // With some seeds atomics, too, are points at which another thread may go on.
        be_coarse(!seed.is_multiple_of(8));
        let mut random = Random(!seed);
        let weather = [Weather::Fine, Weather::Told, Weather::Told, Weather::Untold];
        let weather = weather[random.below(4) as usize];
        let mut config = DeviceConfig::new(UNITS * UNIT as u64);
        config.mem_limit = Some((48 + random.below(MOST_FRAMES - 48)) * PAGE);
        config.shards = Some(1 + random.below(3) as u32);
        config.pool = PoolKind::ALL[random.below(3) as usize];
        config.backing = Some(BackingConfig {
            encrypt: random.below(4) == 0,
            ..BackingConfig::new("faulty")
        });
        let backing = Arc::new(FaultyBacking::new(segments(&mut random)));
        let made = Device::with_stores(
            &config,
            Origin::Blank,
            Some(Arc::clone(&backing) as Arc<dyn Backing>),
        );
        Self {
            random,
            weather,
            device: Arc::new(made.expect("a device")),
            backings: vec![backing],
        }
    }

    fn live(mut self, counts: &Counts) {
        let left = Arc::new(AtomicU32::new(CLIENTS as u32));
        let seed = self.random.next();
        self.backings[0].suffer(faults(self.weather, &mut self.random));
        let spawn = |number| {
            let (device, left) = (Arc::clone(&self.device), Arc::clone(&left));
            let mut client = Client::new(number, self.weather, Random(seed + number));
            shuttle::thread::spawn(move || {
                (0..REQUESTS).for_each(|_| client.request(&device));
                left.fetch_sub(1, Relaxed);
                client
            })
        };
        let threads: Vec<_> = (0..CLIENTS).map(spawn).collect();
        while left.load(Relaxed) > 0 {
            disturb(
                &self.device,
                self.weather,
                &mut self.random,
                &mut self.backings,
            );
            (0..self.random.below(100)).for_each(|_| shuttle::thread::yield_now());
        }
        let clients = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        let clients = clients.collect();
        self.settle(clients, counts);
    }

    /// All of it once more, without new faults, then nothing of it.
    fn settle(self, clients: Vec<Client>, counts: &Counts) {
        for backing in &self.backings {
            backing.suffer(None);
        }
        let device = &self.device;
        for mut client in clients {
            client.verify_all(device);
            counts.requests.fetch_add(client.requests, Relaxed);
            counts.failed.fetch_add(client.failed, Relaxed);
            counts
                .units_verified
                .fetch_add(client.units_verified, Relaxed);
        }
        device.check();
        let requests = &device.core.requests;
        counts
            .spilled
            .fetch_add(requests.bd_writes.load(Relaxed), Relaxed);
        counts
            .read_back
            .fetch_add(requests.bd_reads.load(Relaxed), Relaxed);
        device
            .discard(0, UNITS * UNIT as u64)
            .expect("no room needed");
        device.check();
        assert_eq!(device.core.budget.used(), 0);
        assert_eq!(device.core.segments.live_bytes(), 0);
    }
}

/// Segments of a backing: it holds more than the device has, yet with these few it is full of what is
/// not live again and again.
fn segments(random: &mut Random) -> u32 {
    4 + random.below(4) as u32
}

fn faults(weather: Weather, random: &mut Random) -> Option<Faults> {
    let often = |random: &mut Random| [0, 4, 30, 200][random.below(4) as usize];
    let chances = Chances {
        writes: often(random),
        reads: often(random),
    };
    (weather != Weather::Fine)
        .then(|| Faults::new(random.next(), chances, weather == Weather::Told))
}

/// Does one of all that can be done to a device in use.
fn disturb(
    device: &Device,
    weather: Weather,
    random: &mut Random,
    backings: &mut Vec<Arc<FaultyBacking>>,
) {
    assert!(device.core.budget.used() <= MOST_FRAMES);
    let may_fail = weather != Weather::Fine;
    match random.below(64) {
        0..8 => {
            let evicted = device.evict(random.below(60) * PAGE);
            assert!(evicted.is_ok() || may_fail, "{evicted:?}");
        }
        8..10 => drop(device.compact()),
        10..14 => {
            let limit = (24 + random.below(MOST_FRAMES - 24)) * PAGE;
            device
                .set_mem_limit(Some(limit))
                .expect("a limit that is allowed");
        }
        14 => {
            let algorithm = ["lz4", "zstd:1"][random.below(2) as usize];
            device.set_algorithm(algorithm.parse().expect("an algorithm"));
        }
        15 => {
            let some = Recompression::parse("algo=zstd max_pages=40").expect("parameters");
            device.recompress(&some).expect("an algorithm");
        }
        16..18 => {
            device.mark_idle(None);
            let which = ["idle", "huge", "page_indexes=100-299"][random.below(3) as usize];
            let which = Selection::parse(which, device.pages()).expect("a selection");
            let written = device.write_back(which);
            assert!(written.is_ok() || may_fail, "{written:?}");
        }
        18 => {
            let found = device.scrub(0);
            assert!(
                found.damaged.is_empty() || weather == Weather::Untold,
                "{found:?}"
            );
        }
        19 if backings.len() < 4 => {
            let backing = Arc::new(FaultyBacking::new(segments(random)));
            backing.suffer(faults(weather, random));
            backings.push(Arc::clone(&backing));
            let replaced = device.replace_backing(Some(backing), None);
            assert!(replaced.is_ok() || may_fail, "{replaced:?}");
        }
        20..26 => {
            // Fine weather now and then.
            let clears = random.below(2) == 0;
            let faults = if clears {
                None
            } else {
                faults(weather, random)
            };
            backings[random.below(backings.len() as u64) as usize].suffer(faults);
        }
        _ => time::advance(Duration::from_millis(random.below(20))),
    }
}
