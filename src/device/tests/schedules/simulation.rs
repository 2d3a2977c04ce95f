//! The whole device, with a seeded scheduler, a clock that moves only here, and a backing that fails
//! by the same seed, beside a naive model.
//!
//! A seed is a world: its allocator, shards, limit, backing and faults, and whether it begins as an
//! image. Clients write, read and discard their own parts of the device, and check each answer, and now and
//! then one saves the device and looks at what is restored of that elsewhere; another thread evicts,
//! compacts, recompresses, changes limits and backings, and has time pass. Some worlds move from one device
//! to another in the middle, in an image. Faults that are told (refused and short writes, reads that fail)
//! may cost a request, and never data. Those that are not (lost, torn and misdirected writes, wrong reads,
//! damage in an image) may cost what they strike, which then cannot be read. What is read is right in
//! every world, and once nothing fails any more, all that is not damaged can be read.

mod client;
mod content;
mod history;
mod image;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use support::Random;

use self::client::Client;
use self::history::History;
use super::run::{report, run, seeds};
use super::saved::while_time_passes;
use super::*;
use crate::algorithm::Priority;
use crate::error::{Error, Result};
use crate::pool::PoolKind;
use crate::recompression::Recompression;
use crate::selection::Selection;
use crate::spill::BackingConfig;
use crate::spill::{Chances, Faults, FaultyImage};
use crate::sync::{be_coarse, time};

const CLIENTS: u64 = 3;
/// Half pages: what a client writes is made of these.
const UNIT: usize = PAGE_SIZE / 2;
/// Units that follow each other and belong to one client: the most a request covers.
const RUN: u64 = 16;
/// Units of a device.
const UNITS: u64 = 96 * RUN;
const PAGES: u64 = UNITS / 2;
/// Requests of a client in a world.
const REQUESTS: u64 = 3000;
/// Worlds, unless `UZRAM_SEEDS` says otherwise.
const WORLDS: u64 = 40;
/// Most decisions of a world.
const MAX_STEPS: usize = 50_000_000;
/// Most page frames that any limit allows, but where an image is to find room in memory.
const FEW_FRAMES: u64 = 250;
const MANY_FRAMES: u64 = 1500;

/// Seeds that have failed once.
const REGRESSIONS: [u64; 0] = [];

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
    units_verified: AtomicU64,
    spilled: AtomicU64,
    read_back: AtomicU64,
    saved: AtomicU64,
    restored: AtomicU64,
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
        "{} requests, {} failed as they may, {} pages verified, {} spilled, {} read back, {} saves, \
         {} restores, {:.1} s",
        count(&counts.requests),
        count(&counts.failed),
        count(&counts.units_verified) / 2,
        count(&counts.spilled),
        count(&counts.read_back),
        count(&counts.saved),
        count(&counts.restored),
        began.elapsed().as_secs_f64()
    );
}

/// That one of the engine's protections is taken out is noticed. The first world that is tried is one
/// that did so.
#[test]
fn what_protects_is_missed() {
    /// Worlds that are tried.
    const TRIED: u64 = 200;
    for (protection, known) in [
        (BroughtBackIfUnchanged, 22),
        (PromotedIfUnchanged, 12),
        (SavedBeforeChanged, 0),
    ] {
        let fails = |seed: &u64| {
            let seed = *seed;
            let live = move || World::new(seed).live(&Counts::default());
            run(seed, MAX_STEPS, Some(protection), live).is_err()
        };
        let failed = (known..known + TRIED).find(fails);
        let failed = failed.unwrap_or_else(|| panic!("nobody misses {protection:?}"));
        println!("without {protection:?} it fails with seed {failed}");
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Weather {
    #[default]
    Fine,
    Told,
    Untold,
}

impl Weather {
    fn any(random: &mut Random) -> Self {
        [Self::Fine, Self::Told, Self::Told, Self::Untold][random.below(4) as usize]
    }
}

/// What a request may fail by.
#[derive(Clone, Copy, Debug, Default)]
struct Excuses {
    weather: Weather,
    /// Whether there may be no backing.
    no_room: bool,
}

struct World {
    random: Random,
    /// Over backings.
    weather: Weather,
    /// Over images.
    image_weather: Weather,
    history: Arc<Mutex<History>>,
    /// Whether it begins as an image.
    begins_as_image: bool,
    /// Devices that follow each other.
    devices: u64,
    place: Place,
}

/// A device, and what it has been over.
struct Place {
    device: Arc<Device>,
    most_frames: u64,
    /// Whether it may be without a backing.
    no_room: bool,
    /// All backings that there ever were.
    backings: Vec<Arc<FaultyBacking>>,
    image: Option<Arc<FaultyImage>>,
}

impl Place {
    /// An empty device, which is to hold what is in an image, or not.
    fn new(random: &mut Random, for_image: bool) -> Self {
        let most_frames = match for_image && random.below(2) == 0 {
            true => MANY_FRAMES,
            false => FEW_FRAMES,
        };
        let no_room = for_image && random.below(3) == 0;
        let mut config = DeviceConfig::new(UNITS * UNIT as u64);
        config.mem_limit = Some((48 + random.below(most_frames - 48)) * PAGE);
        config.shards = Some(1 + random.below(3) as u32);
        config.pool = PoolKind::ALL[random.below(3) as usize];
        config.backing = Some(BackingConfig {
            encrypt: random.below(4) == 0,
            ..BackingConfig::new("faulty")
        });
        let has_backing = !no_room || random.below(2) == 0;
        // Some of it is kept from an image.
        let more = u32::from(for_image) * 2 * random.below(3) as u32;
        let backing = has_backing.then(|| Arc::new(FaultyBacking::new(segments(random) + more)));
        let first = backing.clone().map(|backing| backing as Arc<dyn Backing>);
        let made = Device::with_stores(&config, Origin::Blank, first);
        Self {
            device: Arc::new(made.expect("a device")),
            most_frames,
            no_room,
            backings: backing.into_iter().collect(),
            image: None,
        }
    }

    /// Nothing fails from here on.
    fn clear_up(&self) {
        self.backings
            .iter()
            .for_each(|backing| backing.suffer(None));
        self.image.iter().for_each(|image| image.suffer(None));
    }

    /// Has time pass until the image is empty, for as long as that may take; returns whether it is.
    fn leaves_image(&self) -> bool {
        for _ in 0..40 {
            if self.device.engine.spilled.stores.image().is_none() {
                return true;
            }
            time::advance(Duration::from_secs(30));
            (0..100).for_each(|_| shuttle::thread::yield_now());
        }
        false
    }
}

impl World {
    fn new(seed: u64) -> Self {
        // With some seeds atomics, too, are points at which another thread may go on.
        be_coarse(!seed.is_multiple_of(8));
        let mut random = Random(!seed);
        let kind = random.below(8);
        let begins_as_image = (3..7).contains(&kind);
        Self {
            weather: Weather::any(&mut random),
            image_weather: Weather::any(&mut random),
            history: Arc::new(Mutex::new(History::new())),
            begins_as_image,
            devices: 1 + u64::from(kind > 5),
            place: Place::new(&mut random, begins_as_image),
            random,
        }
    }

    fn live(mut self, counts: &Counts) {
        let seed = self.random.next();
        let client = |number| {
            let history = Arc::clone(&self.history);
            Client::new(number, Random(seed + number), history)
        };
        let mut clients = (0..CLIENTS).map(client).collect();
        if self.begins_as_image {
            let (versions, image) = image::made_up(&mut self.random);
            self.history.lock().begin_as(&versions);
            self.begin_as(image, counts);
        }
        for number in 0..self.devices {
            if number > 0 {
                self.move_on(counts);
            }
            clients = self.serve(clients);
        }
        self.settle(clients, counts);
    }

    /// Has the device hold what is in an image, some of it damaged if that is this world's weather.
    fn begin_as(&mut self, mut image: Vec<u8>, counts: &Counts) {
        let (random, device) = (&mut self.random, &self.place.device);
        if random.below(4) == 0 {
            refuse(device, random);
        }
        let lost = match self.image_weather {
            Weather::Untold => image::damage(&mut image, random),
            Weather::Fine | Weather::Told => BTreeSet::new(),
        };
        self.history.lock().lose(lost);
        let faults = faults(self.image_weather, random);
        let restored = image::restore(device, &image, faults);
        self.place.image = Some(restored.expect("an image"));
        counts.restored.fetch_add(1, Relaxed);
    }

    /// Has another device take this one's place, or this one begin anew, as what is saved of it, if that
    /// can be.
    fn move_on(&mut self, counts: &Counts) {
        self.place.clear_up();
        match save(&self.place.device) {
            Ok(image) => {
                counts.saved.fetch_add(1, Relaxed);
                self.count(counts);
                if self.random.below(3) == 0 {
                    self.place.device.reset().expect("nobody uses it");
                    assert!(self.place.leaves_image(), "an empty image stays");
                } else {
                    self.place = Place::new(&mut self.random, true);
                }
                self.begin_as(image, counts);
            }
            Err(error) => {
                let is_damaged = matches!(error, Error::Damaged { .. });
                let excused = self.weather == Weather::Untold || self.history.lock().is_any_lost();
                assert!(is_damaged && excused, "{error}");
            }
        }
    }

    fn excuses(&self) -> Excuses {
        Excuses {
            weather: self.weather.max(self.image_weather),
            no_room: self.place.no_room,
        }
    }

    /// Has the clients make their share of requests.
    fn serve(&mut self, clients: Vec<Client>) -> Vec<Client> {
        let left = Arc::new(AtomicU32::new(CLIENTS as u32));
        let requests = REQUESTS / self.devices;
        for backing in &self.place.backings {
            backing.suffer(faults(self.weather, &mut self.random));
        }
        let excuses = self.excuses();
        let spawn = |mut client: Client| {
            let (device, left) = (Arc::clone(&self.place.device), Arc::clone(&left));
            client.excuses = excuses;
            shuttle::thread::spawn(move || {
                (0..requests).for_each(|_| client.request(&device));
                left.fetch_sub(1, Relaxed);
                client
            })
        };
        let threads: Vec<_> = clients.into_iter().map(spawn).collect();
        while left.load(Relaxed) > 0 {
            self.disturb();
            (0..self.random.below(100)).for_each(|_| shuttle::thread::yield_now());
        }
        let threads = threads.into_iter();
        threads
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    }

    /// All of it once more, without new faults, then nothing of it.
    fn settle(self, mut clients: Vec<Client>, counts: &Counts) {
        self.place.clear_up();
        for client in &mut clients {
            client.excuses = Excuses {
                // What backings have lost is not known.
                weather: match self.weather {
                    Weather::Untold => Weather::Untold,
                    Weather::Fine | Weather::Told => Weather::Fine,
                },
                no_room: false,
            };
            client.verify_all(&self.place.device);
        }
        self.place.device.check();
        self.empty_image(&mut clients);
        for client in clients {
            counts.requests.fetch_add(client.requests, Relaxed);
            counts.failed.fetch_add(client.failed, Relaxed);
            counts.saved.fetch_add(client.saves, Relaxed);
            counts.restored.fetch_add(client.saves, Relaxed);
            counts
                .units_verified
                .fetch_add(client.units_verified, Relaxed);
        }
        self.count(counts);
        let device = &self.place.device;
        device
            .discard(0, UNITS * UNIT as u64)
            .expect("no room needed");
        device.check();
        assert_eq!(device.engine.limit.budget.used(), 0);
        assert_eq!(device.engine.spilled.segments.live_bytes(), 0);
        assert_eq!(device.engine.spilled.segments.image_bytes(), 0);
        assert!(self.place.leaves_image(), "an empty image stays");
    }

    /// With room for all of it, what is in the image comes to memory, but for what is damaged.
    fn empty_image(&self, clients: &mut [Client]) {
        let place = &self.place;
        place.device.set_mem_limit(None).expect("no limit");
        let leaves = place.leaves_image();
        if self.image_weather == Weather::Untold {
            // A segment that was misread once is emptied only by those who read its pages.
            clients
                .iter_mut()
                .for_each(|client| client.verify_all(&place.device));
            let left = place.device.engine.spilled.segments.image_bytes();
            assert!(left == 0 || self.history.lock().is_any_lost(), "{left}");
        } else {
            assert!(leaves, "an image that can be read stays");
        }
        if self.weather != Weather::Untold {
            let found = place.device.scrub(0);
            assert!(found.unreadable.is_empty(), "{found:?}");
            let history = self.history.lock();
            let mut damaged = found.damaged.iter();
            assert!(damaged.all(|&page| history.is_lost(page)), "{found:?}");
        }
    }

    fn count(&self, counts: &Counts) {
        let requests = &self.place.device.engine.counts;
        for (to, from) in [
            (&counts.spilled, &requests.bd_writes),
            (&counts.read_back, &requests.bd_reads),
        ] {
            to.fetch_add(from.load(Relaxed), Relaxed);
        }
    }
}

/// Compresses new pages in another manner, with a dictionary or without.
fn set_algorithm(device: &Device, random: &mut Random) {
    let algorithm = ["lz4", "zstd:1"][random.below(2) as usize];
    let algorithm = algorithm.parse().expect("an algorithm");
    device
        .set_algorithm(algorithm)
        .expect("it is in this build");
    if algorithm != Algorithm::Lz4 && random.below(2) == 0 {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), content::dictionary(random)).expect("written");
        let set = device.set_algorithm_params(Priority::PRIMARY, Some(1), Some(file.path()));
        set.expect("a dictionary");
    }
}

/// An image that is wrong is refused, and the device is as it was.
fn refuse(device: &Device, random: &mut Random) {
    let (wrong, how) = image::wrong(random);
    let error = image::restore(device, &wrong, None)
        .err()
        .expect("it is wrong");
    assert!(error.to_string().contains(how), "{error}");
    device.check();
    assert_eq!(device.pages_with_data(), 0);
    assert_eq!(device.engine.spilled.segments.image_bytes(), 0);
}

/// Saves a device that nobody uses, and has time pass meanwhile.
fn save(device: &Device) -> Result<Vec<u8>> {
    while_time_passes(|| {
        let saved = device.save_to(Vec::new(), Path::new("image"), &|| true);
        saved.map(|(image, _)| image)
    })
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

impl World {
    /// Does one of all that can be done to a device in use.
    fn disturb(&mut self) {
        let excuses = self.excuses();
        let may_fail = excuses.weather != Weather::Fine || excuses.no_room;
        let (random, place) = (&mut self.random, &self.place);
        let device = &place.device;
        assert!(device.engine.limit.budget.used() <= place.most_frames);
        match random.below(64) {
            0..8 => {
                let evicted = device.evict(random.below(60) * PAGE);
                assert!(evicted.is_ok() || may_fail, "{evicted:?}");
            }
            8..10 => drop(device.compact()),
            10..14 => {
                let limit = (24 + random.below(place.most_frames - 24)) * PAGE;
                device
                    .set_mem_limit(Some(limit))
                    .expect("a limit that is allowed");
            }
            14 => set_algorithm(device, random),
            15 => {
                let some = Recompression::parse("algo=zstd max_pages=40").expect("parameters");
                match device.recompress(&some) {
                    Err(Error::NoSpace(_)) if excuses.no_room => {}
                    done => drop(done.expect("an algorithm")),
                }
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
                let is_excused = excuses.weather == Weather::Untold;
                assert!(found.damaged.is_empty() || is_excused, "{found:?}");
            }
            19..21 => self.replace_backing(may_fail),
            21..26 => self.change_weather(),
            26..28 if device.engine.spilled.stores.image().is_some() => {
                // As long as an image may wait.
                time::advance(Duration::from_millis(random.below(1000)));
            }
            _ => time::advance(Duration::from_millis(random.below(20))),
        }
    }

    /// Has another backing, or none, take the place of the one there is.
    fn replace_backing(&mut self, may_fail: bool) {
        let (random, place) = (&mut self.random, &mut self.place);
        if place.no_room && random.below(2) == 0 {
            // There may be none to leave, or no room for what it holds.
            let _ = place.device.replace_backing(None, None);
        } else if place.backings.len() < 4 {
            let backing = Arc::new(FaultyBacking::new(segments(random)));
            backing.suffer(faults(self.weather, random));
            place.backings.push(Arc::clone(&backing));
            let replaced = place.device.replace_backing(Some(backing), None);
            assert!(replaced.is_ok() || may_fail, "{replaced:?}");
        }
    }

    /// Has other things fail from here on, or now and then nothing.
    fn change_weather(&mut self) {
        let (random, place) = (&mut self.random, &self.place);
        let clears = random.below(2) == 0;
        let mut faults = |weather| match clears {
            true => None,
            false => faults(weather, random),
        };
        if let Some(image) = &place.image {
            image.suffer(faults(self.image_weather));
        }
        let faults = faults(self.weather);
        if !place.backings.is_empty() {
            place.backings[random.below(place.backings.len() as u64) as usize].suffer(faults);
        }
    }
}
