//! A simulation of deaths: a device is worked on in one thread, and at any store to its memory the process may die.
//! What is there then, memory, backing and image, is adopted, and must be what the device held: each page that nothing
//! was done to, exactly; each that something was being done to, as it was or as it was to become.
//!
//! `UZRAM_DEATHS` says how many deaths (`scripts/soak.sh simulated-deaths` does it with many), and `UZRAM_SEED` how chance
//! begins.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use support::Random;

use super::{AdoptedStores, Command, Destager, NewBacking, Plan, Recompressor, Wanted, Writeback};
use crate::algorithm::Algorithm;
use crate::config::DeviceConfig;
use crate::engine::Engine;
use crate::io::{Reader, Writer};
use crate::memory::{DeviceMemory, FileKeeper, at_crash_points};
use crate::origin::{FaultyImage, Image, Origin, SyncPolicy};
use crate::pool::PoolKind;
use crate::recompression::Recompression;
use crate::selection::Selection;
use crate::spill::{BackingConfig, FaultyBacking};
use crate::sync::channel::{self, Sender};
use crate::units::{PAGE_SIZE, Page};

/// More than a block of slots, so that whole ones can be discarded.
const PAGES: u64 = 700;
const SEGMENTS: u32 = 6;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// What the image had at first, or zeroes.
    Untouched,
    Zeroes,
    Pattern(u32),
    /// Compressible, the more the smaller the last three bits; and with 7 not at all.
    Data(u64),
    /// The same with other bytes in its second sector.
    Patched(u64),
}

impl Content {
    fn page(self, untouched: u8) -> Page {
        let mut page = [0; PAGE_SIZE];
        match self {
            Self::Untouched => page.fill(untouched),
            Self::Zeroes => {}
            Self::Pattern(pattern) => {
                for word in page.chunks_exact_mut(4) {
                    word.copy_from_slice(&pattern.to_ne_bytes());
                }
            }
            Self::Data(version) | Self::Patched(version) => {
                let mut random = Random(version);
                let noise = (1 + version as usize % 8) * PAGE_SIZE / 8;
                for chunk in page[..noise].chunks_exact_mut(8) {
                    chunk.copy_from_slice(&random.next().to_le_bytes());
                }
                page[noise..].fill(version as u8);
            }
        }
        if let Self::Patched(version) = self {
            page[512..1024].fill(!version as u8);
        }
        page
    }
}

/// Keeps nothing: what is adopted is handed over by hand.
struct Kept;

impl FileKeeper for Kept {
    fn keep(&self, _name: &str, _file: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _name: &str) {}

    fn take(&self, _name: &str) -> Option<OwnedFd> {
        None
    }
}

/// Which device.
#[derive(Clone, Copy, Debug)]
struct Kind {
    pool: PoolKind,
    shards: u32,
    encrypts: bool,
    over: Over,
}

/// What a page is of that nothing was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Nothing,
    /// An image that stays as it is.
    Snapshot,
    /// An image that pages are destaged to: nothing is spilled.
    Image,
}

impl Kind {
    fn config(self) -> DeviceConfig {
        let mut config = DeviceConfig::new(PAGES * PAGE_SIZE as u64);
        config.pool = self.pool;
        config.shards = Some(self.shards);
        config.recompress = vec![Algorithm::Zstd { level: 1 }];
        if self.encrypts {
            // It is not opened: only how it is to be used is looked at.
            let mut backing = BackingConfig::new("none");
            backing.encrypt = true;
            config.backing = Some(backing);
        }
        config
    }

    /// What a page is that nothing was done to.
    fn untouched(self) -> u8 {
        if self.over == Over::Nothing { 0 } else { 0x5a }
    }

    fn spills(self) -> bool {
        self.over != Over::Image
    }
}

/// What outlives the process.
#[derive(Clone)]
struct Remains {
    memory: DeviceMemory,
    backing: Arc<FaultyBacking>,
    image: Arc<FaultyImage>,
}

impl Remains {
    /// What there is before there is a device.
    fn none(kind: Kind) -> Self {
        Self {
            memory: DeviceMemory::new()
                .expect("memory")
                .with_files(Arc::new(Kept)),
            backing: Arc::new(FaultyBacking::new(SEGMENTS)),
            image: Arc::new(FaultyImage::new(PAGES as usize, kind.untouched())),
        }
    }

    /// What would be there if the process died now.
    fn copy(&self) -> Self {
        let (memory, secret) = self.memory.copy();
        let memory = DeviceMemory::open(memory, secret).expect("memory");
        let backing = FaultyBacking::new(SEGMENTS);
        backing.take_contents_of(&self.backing);
        Self {
            memory: memory.with_files(Arc::new(Kept)),
            backing: Arc::new(backing),
            image: Arc::new(self.image.copy()),
        }
    }
}

/// Deaths at some of the stores of a thread.
struct Deaths {
    remains: Remains,
    random: Random,
    /// Stores until the next.
    until: u64,
    /// How many at most.
    left: usize,
    found: Rc<RefCell<Vec<Remains>>>,
}

impl Deaths {
    /// At most so many of what `remains` is there of, one in so many stores.
    fn watch<T>(
        remains: &Remains,
        random: &mut Random,
        (left, every): (usize, u64),
        f: impl FnOnce() -> T,
    ) -> (T, Vec<Remains>) {
        let found = Rc::default();
        let mut deaths = Self {
            remains: remains.clone(),
            until: random.below(every),
            random: Random(random.next()),
            left,
            found: Rc::clone(&found),
        };
        let done = at_crash_points(move || deaths.pass(every), f);
        (done, found.take())
    }

    fn pass(&mut self, every: u64) {
        if self.until > 0 || self.left == 0 {
            self.until = self.until.saturating_sub(1);
            return;
        }
        self.found.borrow_mut().push(self.remains.copy());
        self.left -= 1;
        self.until = self.random.below(2 * every);
    }
}

/// A device without threads.
struct Rig {
    engine: Arc<Engine>,
    reader: Arc<Reader>,
    writer: Writer,
    writeback: Writeback,
    destager: Option<Arc<Destager>>,
    recompressor: Recompressor,
    remains: Remains,
    _commands: Sender<Command>,
}

impl Rig {
    /// The device that remains, or a new one.
    fn new(kind: Kind, remains: Remains) -> Self {
        let Remains {
            memory,
            backing,
            image,
        } = remains.clone();
        let image = image as Arc<dyn Image>;
        let origin = match kind.over {
            Over::Nothing => Origin::Blank,
            Over::Snapshot => Origin::Snapshot(image),
            Over::Image => Origin::WriteBack(image, SyncPolicy::Flush),
        };
        let made = Engine::new(&kind.config(), origin, Some(memory));
        let (engine, found) = made.expect("a device");
        let engine = Arc::new(engine);
        let reader = Arc::new(Reader::new(Arc::clone(&engine)));
        let destager = Destager::of(&engine);
        let (commands, receiver) = channel::unbounded();
        let sequence = found
            .as_ref()
            .map_or(1 << 20, |found| found.used.last_sequence.max(1 << 20));
        let mut writeback =
            Writeback::new(Arc::clone(&engine), destager.clone(), receiver, sequence);
        let new_backing = || NewBacking {
            backing: Arc::clone(&backing) as _,
            capacity: SEGMENTS,
            size: None,
        };
        match found {
            None if !kind.spills() => {}
            None => {
                // Nothing has to leave for it.
                let (done, _) = channel::bounded(1);
                writeback.replace(Some(new_backing()), done);
                writeback.work(true);
            }
            Some(found) => {
                let mut stores = AdoptedStores::default();
                if kind.spills() {
                    stores.backings = vec![Some(new_backing())];
                    stores.current = Some(0);
                }
                writeback.adopt(stores, found).expect("its stores");
            }
        }
        Self {
            writer: Writer::new(Arc::clone(&engine), Arc::clone(&reader)),
            recompressor: Recompressor::new(Arc::clone(&engine)),
            reader,
            engine,
            writeback,
            destager,
            remains,
            _commands: commands,
        }
    }

    fn page(&self, page: u64) -> Page {
        let mut found = [0; PAGE_SIZE];
        let read = self.reader.read(page * PAGE_SIZE as u64, &mut found);
        read.unwrap_or_else(|error| panic!("page {page}: {error}"));
        found
    }
}

/// Something that is done.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Content),
    Patch(u64),
    Zero(Range<u64>),
    Discard(Range<u64>),
    Read(Range<u64>),
    Evict(u64),
    Select(Range<u64>),
    Work,
    Compact,
    Trim,
    Recompress,
    MarkIdle,
    Sync,
}

impl Step {
    fn any(random: &mut Random, version: u64, kind: Kind) -> Self {
        let page = random.below(PAGES);
        let some = |random: &mut Random, most| {
            let len = 1 + random.below(most);
            page..(page + len).min(PAGES)
        };
        match random.below(100) {
            0..40 => Self::Write(page, Content::Data(version)),
            40..44 => Self::Write(page, Content::Pattern(version as u32)),
            44..50 => Self::Patch(page),
            50..54 => Self::Zero(some(random, 40)),
            54..60 => Self::Discard(some(random, 40)),
            60..62 => Self::Discard(0..random.below(PAGES) + 1),
            62..64 => Self::Zero(0..random.below(PAGES) + 1),
            64..72 => Self::Read(some(random, 8)),
            72..80 => Self::Evict(1 + random.below(40)),
            80..84 if kind.spills() => Self::Select(some(random, 20)),
            84..89 => Self::Work,
            89..92 => Self::Compact,
            92..94 => Self::Trim,
            94..96 => Self::Recompress,
            96..98 => Self::MarkIdle,
            _ => Self::Sync,
        }
    }

    /// What each page is to become, of those that it changes.
    fn changes(&self, model: &[Content]) -> Vec<(u64, Content)> {
        match self {
            Self::Write(page, content) => vec![(*page, *content)],
            Self::Patch(page) => match model[*page as usize] {
                Content::Data(version) => vec![(*page, Content::Patched(version))],
                _ => Vec::new(),
            },
            Self::Zero(pages) | Self::Discard(pages) => {
                pages.clone().map(|page| (page, Content::Zeroes)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn run(&self, rig: &mut Rig, model: &[Content], untouched: u8) {
        let byte = |page: u64| page * PAGE_SIZE as u64;
        match self {
            Self::Write(page, content) => {
                let data = content.page(untouched);
                rig.writer.write(byte(*page), &data).expect("room");
            }
            Self::Patch(page) => {
                if let Content::Data(version) = model[*page as usize] {
                    let patched = Content::Patched(version).page(untouched);
                    let at = byte(*page) + 512;
                    rig.writer.write(at, &patched[512..1024]).expect("room");
                }
            }
            Self::Zero(pages) => rig.writer.fill_zero(pages.clone()).expect("room"),
            Self::Discard(pages) => {
                rig.writer.discard(pages.clone()).expect("room");
            }
            Self::Read(pages) => {
                for page in pages.clone() {
                    rig.page(page);
                }
            }
            // A backing that is full stays so.
            Self::Evict(frames) => match rig.destager.clone() {
                Some(destager) => drop(rig.writeback.evict_to_image(&destager, *frames)),
                None => drop(rig.writeback.evict(*frames)),
            },
            Self::Select(pages) => {
                let text = format!("page_indexes={}-{}", pages.start, pages.end - 1);
                let selection = Selection::parse(&text, PAGES).expect("pages");
                let (done, _answer) = channel::bounded(1);
                rig.writeback.select(selection, done);
                rig.writeback.work(true);
            }
            Self::Work => drop(rig.writeback.work(true)),
            Self::Compact => drop(rig.engine.compact()),
            Self::Trim => drop(rig.engine.trim(false)),
            Self::Recompress => {
                let set = rig.engine.codecs.secondary();
                let request = Recompression::ALL;
                let plan = Plan::new(&request, &set).expect("an algorithm");
                let wanted = Wanted {
                    request: &request,
                    plan: &plan,
                    age: None,
                };
                rig.recompressor.recompress(&wanted).expect("room");
            }
            Self::MarkIdle => {
                let Engine {
                    ages, shards, time, ..
                } = &*rig.engine;
                ages.mark_idle(shards, time, None);
            }
            Self::Sync => {
                if let Some(destager) = &rig.destager {
                    destager.sync().expect("an image that works");
                }
            }
        }
        rig.engine.remember_changes();
    }
}

/// What pages are to be.
struct Expected<'a> {
    kind: Kind,
    model: Vec<Content>,
    /// What some may be instead: it was being done.
    either: &'a [(u64, Content)],
    why: &'a str,
}

impl Expected<'_> {
    /// Proves that a device holds what it is to hold; from then on that is what was found.
    fn prove(&mut self, rig: &mut Rig) {
        let _completed = rig.writeback.appender.complete_all();
        rig.writeback.check();
        let untouched = self.kind.untouched();
        for (page, content) in (0..).zip(&mut self.model) {
            let found = rig.page(page);
            let is_found = |content: Content| found == content.page(untouched);
            if !is_found(*content) {
                let mut new = self.either.iter().filter(|(at, _)| *at == page);
                let new = new.find(|&&(_, new)| is_found(new));
                let why = self.why;
                *content = new
                    .unwrap_or_else(|| panic!("page {page} is no {content:?} after {why}"))
                    .1;
            }
        }
        self.either = &[];
    }

    /// Proves that an image comes to have what the device holds.
    fn prove_destaged(&self, rig: &Rig) {
        let Some(destager) = &rig.destager else {
            return;
        };
        destager.sync().expect("an image that works");
        for (page, content) in self.model.iter().enumerate() {
            let durable = rig.remains.image.durable_page(page);
            let is_it = durable == content.page(self.kind.untouched());
            assert!(
                is_it,
                "page {page} is no {content:?} in the image after {}",
                self.why
            );
        }
    }
}

/// Deaths, and what is left of each, of one device.
fn run(kind: Kind, seed: u64, deaths: u64) {
    let mut random = Random(seed);
    let mut rig = Rig::new(kind, Remains::none(kind));
    let mut model = vec![Content::Untouched; PAGES as usize];
    let (mut died, mut version) = (0, 0);
    while died < deaths {
        version += 1;
        let step = Step::any(&mut random, version, kind);
        let either = step.changes(&model);
        let why = format!("step {version}, {step:?}, of {kind:?} with seed {seed}");
        let expected = || Expected {
            kind,
            model: model.clone(),
            either: &either,
            why: &why,
        };
        let remains = rig.remains.clone();
        let work = || step.run(&mut rig, &model, kind.untouched());
        let ((), found) = Deaths::watch(&remains, &mut random, (4, 30), work);
        for remains in found {
            // There can be another while it is adopted.
            let adopt = || Rig::new(kind, remains.clone());
            let (mut adopted, found) = Deaths::watch(&remains, &mut random, (1, 600), adopt);
            died += 1 + found.len() as u64;
            for remains in found {
                expected().prove(&mut Rig::new(kind, remains));
            }
            let mut expected = expected();
            expected.prove(&mut adopted);
            // It goes on: what was derived is good for more than a look.
            for _ in 0..random.below(20) {
                let step = Step::any(&mut random, version, kind);
                if step.changes(&expected.model).is_empty() {
                    step.run(&mut adopted, &expected.model, kind.untouched());
                }
            }
            expected.prove(&mut adopted);
            expected.prove_destaged(&adopted);
        }
        for (page, content) in either {
            model[page as usize] = content;
        }
    }
}

fn kinds() -> Vec<Kind> {
    let mut kinds = Vec::new();
    for pool in PoolKind::ALL {
        for (shards, encrypts, over) in [
            (2, false, Over::Nothing),
            (1, true, Over::Snapshot),
            (2, false, Over::Image),
        ] {
            kinds.push(Kind {
                pool,
                shards,
                encrypts,
                over,
            });
        }
    }
    kinds
}

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_device_survives_a_death_at_any_store() {
    let (deaths, seed) = (number("UZRAM_DEATHS", 450), number("UZRAM_SEED", 1));
    let kinds = kinds();
    let each = deaths.div_ceil(kinds.len() as u64);
    for kind in kinds {
        run(kind, seed, each);
    }
}
