//! Which pages are missed, beside simulations of other policies on the same trace.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use uzram::{BlockDevice, Device, PAGE_SIZE, Page};

use super::{PAGE, Random, device, line};

/// Misses of 1,200,000 accesses (a fifth of those by Zipf are writes) to 200,000 pages with memory
/// for a quarter: ours, those of an exact LRU of as many pages as ours had in memory, and those of
/// an LRU of zspages in as much memory as ours was allowed.
pub(super) fn misses(dir: &Path) {
    for (name, skew, others) in [
        ("zipf 0.8", 0.8, Others::None),
        ("zipf 0.99", 0.99, Others::None),
        ("zipf 1.2", 1.2, Others::None),
        ("zipf 0.99 + scan", 0.99, Others::Scan),
        ("zipf 0.99 + scan + writes", 0.99, Others::ScanAndWrites),
    ] {
        let trace = Trace::new(200_000, skew, others);
        let (ours, memory) = replay(dir, &trace);
        let lru = exact_lru(&trace, memory.resident);
        let zspages = ZspageLru::new(memory.objects, memory.zspages).share_of_misses(&trace);
        line(
            &format!("misses, {name}"),
            "per 10,000 reads",
            &[
                ("uzram", ours * 10_000.0),
                ("exact LRU", lru * 10_000.0),
                ("zspage LRU", zspages * 10_000.0),
            ],
        );
    }
    scan_after_fill(dir);
}

/// Misses of reads of all pages in order, once they have been written in order. An LRU has always just
/// driven out what comes next.
fn scan_after_fill(dir: &Path) {
    const PAGES: u64 = 200_000;
    let device = filled(dir, PAGES);
    let start = device.stats().bd_reads;
    let mut buf = [0; PAGE_SIZE];
    for at in 0..PAGES {
        device.read(at * PAGE, &mut buf).expect("readable");
    }
    let missed = device.stats().bd_reads - start;
    let share = missed as f64 / PAGES as f64;
    line(
        "misses, a scan after a fill",
        "per 10,000 reads",
        &[("uzram", share * 10_000.0), ("exact LRU", 10_000.0)],
    );
}

/// What a trace has besides accesses by Zipf.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    None,
    /// A quarter: reads in order.
    Scan,
    /// A quarter reads in order, a quarter writes in order half a device away from them.
    ScanAndWrites,
}

struct Trace {
    pages: u64,
    /// Page, and whether it is written.
    accesses: Vec<(u64, bool)>,
}

/// Accesses before misses are counted.
const WARM_UP: usize = 400_000;

impl Trace {
    fn new(pages: u64, skew: f64, others: Others) -> Self {
        let mut random = Random(7);
        let mut cumulative = Vec::with_capacity(pages as usize);
        let mut sum = 0.0;
        for rank in 1..=pages {
            sum += (rank as f64).powf(-skew);
            cumulative.push(sum);
        }
        let mut order: Vec<u64> = (0..pages).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.below(i as u64 + 1) as usize);
        }
        let mut scanned = 0;
        let accesses = (0..WARM_UP + 1_200_000)
            .map(|i| {
                if others != Others::None && i % 4 == 0 {
                    scanned = (scanned + 1) % pages;
                    return (scanned, false);
                }
                if others == Others::ScanAndWrites && i % 4 == 2 {
                    return ((scanned + pages / 2) % pages, true);
                }
                let point = random.unit() * sum;
                let rank = cumulative.partition_point(|&c| c < point);
                (order[rank.min(order.len() - 1)], random.below(5) == 0)
            })
            .collect();
        Self { pages, accesses }
    }
}

/// What a device had for its pages.
struct Memory {
    /// Pages in memory, on the average.
    resident: usize,
    /// Objects in a zspage of the class that most pages are in.
    objects: usize,
    /// Zspages of that class that fit the limit.
    zspages: usize,
}

/// A page that compresses as all others do, so that memory is a number of pages.
fn page(tag: u64) -> Page {
    let mut random = Random(tag);
    let mut page = [0; PAGE_SIZE];
    for chunk in page.chunks_exact_mut(16) {
        chunk[..4].copy_from_slice(&random.next().to_le_bytes()[..4]);
    }
    page
}

/// A device full of such pages, with memory for a quarter of them.
fn filled(dir: &Path, pages: u64) -> Device {
    let probe = device(dir, pages, None);
    for at in 0..10_000 {
        probe.write(at * PAGE, &page(at)).expect("room");
    }
    let limit = probe.stats().mem_used_total / 10_000 * pages / 4;
    drop(probe);
    let device = device(dir, pages, Some(limit));
    for at in 0..pages {
        device.write(at * PAGE, &page(at)).expect("room");
    }
    device
}

/// Plays a trace on a device with memory for a quarter of its pages; returns the share of misses
/// and what memory there was. A miss is a read that goes to the backing; a miss of an LRU is a read
/// of a page that is not in it.
fn replay(dir: &Path, trace: &Trace) -> (f64, Memory) {
    let device = filled(dir, trace.pages);
    let (mut start, mut reads, mut resident, mut samples) = (0, 0u64, 0, 0);
    let mut buf = [0; PAGE_SIZE];
    for (i, &(at, write)) in trace.accesses.iter().enumerate() {
        if i == WARM_UP {
            start = device.stats().bd_reads;
        }
        if write {
            device.write(at * PAGE, &page(at + i as u64)).expect("room");
        } else {
            device.read(at * PAGE, &mut buf).expect("readable");
            reads += u64::from(i >= WARM_UP);
        }
        if i % 10_000 == 0 {
            resident += device.stats().resident_pages;
            samples += 1;
        }
    }
    let missed = device.stats().bd_reads - start;
    let classes = device.class_stats();
    let class = classes.iter().max_by_key(|class| class.objects_used);
    let class = class.expect("pages in memory");
    let memory = Memory {
        resident: (resident / samples) as usize,
        objects: (class.objects * class.frames_per_zspage / class.frames) as usize,
        zspages: (device.stats().mem_limit / PAGE / class.frames_per_zspage) as usize,
    };
    (missed as f64 / reads as f64, memory)
}

/// The share of reads that an exact LRU of `capacity` pages misses, reads and writes both being
/// uses.
fn exact_lru(trace: &Trace, capacity: usize) -> f64 {
    // Time of last use by page, and page by time: the oldest is the first.
    let mut used_at: HashMap<u64, usize> = HashMap::new();
    let mut by_time = BTreeMap::new();
    let (mut reads, mut missed) = (0u64, 0u64);
    let fill = (0..trace.pages).map(|page| (page, true));
    let all = fill.chain(trace.accesses.iter().copied());
    for (time, (page, write)) in all.enumerate() {
        let before = used_at.insert(page, time);
        if time >= trace.pages as usize + WARM_UP && !write {
            reads += 1;
            missed += u64::from(before.is_none());
        }
        if let Some(before) = before {
            by_time.remove(&before);
        }
        by_time.insert(time, page);
        if by_time.len() > capacity
            && let Some((_, oldest)) = by_time.pop_first()
        {
            used_at.remove(&oldest);
        }
    }
    missed as f64 / reads as f64
}

/// An LRU of whole zspages: one moves to the front when an object is allocated in it, and the last
/// is evicted with all its objects. A page that is read from the backing is allocated, as one that
/// is written is; a page that is read from memory moves nothing.
struct ZspageLru {
    /// Objects in a zspage.
    objects: usize,
    /// Most zspages.
    capacity: usize,
    /// Pages in each zspage, by its name; none is empty.
    zspages: HashMap<usize, Zspage>,
    /// Names by the time of the last allocation.
    by_time: BTreeMap<usize, usize>,
    /// Zspages with room: the objects in use, the last allocation, the name.
    with_room: BTreeSet<(usize, usize, usize)>,
    zspage_of: HashMap<u64, usize>,
    /// Counts allocations.
    time: usize,
}

#[derive(Default)]
struct Zspage {
    pages: Vec<u64>,
    allocated_at: usize,
}

impl ZspageLru {
    fn new(objects: usize, capacity: usize) -> Self {
        Self {
            objects,
            capacity,
            zspages: HashMap::new(),
            by_time: BTreeMap::new(),
            with_room: BTreeSet::new(),
            zspage_of: HashMap::new(),
            time: 0,
        }
    }

    fn share_of_misses(mut self, trace: &Trace) -> f64 {
        (0..trace.pages).for_each(|page| self.allocate(page));
        let (mut reads, mut missed) = (0u64, 0u64);
        for (i, &(page, write)) in trace.accesses.iter().enumerate() {
            let miss = !self.zspage_of.contains_key(&page);
            if i >= WARM_UP && !write {
                reads += 1;
                missed += u64::from(miss);
            }
            let old = self.zspage_of.get(&page).copied();
            if write || miss {
                self.allocate(page);
            }
            // As zram does: what it held is freed once there is room for what it will.
            if let (true, Some(old)) = (write, old) {
                self.free(page, old);
            }
        }
        missed as f64 / reads as f64
    }

    /// Puts a page into the fullest zspage with room.
    fn allocate(&mut self, page: u64) {
        self.time += 1;
        if self.with_room.is_empty() && self.zspages.len() == self.capacity {
            self.evict();
        }
        let name = self.with_room.last().map_or(self.time, |&(.., name)| name);
        let mut zspage = self.take(name);
        zspage.pages.push(page);
        zspage.allocated_at = self.time;
        self.zspage_of.insert(page, name);
        self.put(name, zspage);
    }

    /// Frees an object of a page, unless it was evicted.
    fn free(&mut self, page: u64, name: usize) {
        let mut zspage = self.take(name);
        if let Some(at) = zspage.pages.iter().position(|&other| other == page) {
            zspage.pages.swap_remove(at);
        }
        if !zspage.pages.is_empty() {
            self.put(name, zspage);
        }
    }

    fn evict(&mut self) {
        let (_, &name) = self.by_time.first_key_value().expect("zspages");
        for page in self.take(name).pages {
            self.zspage_of.remove(&page);
        }
    }

    /// Takes a zspage out of all lists; an empty one, if there is none of that name.
    fn take(&mut self, name: usize) -> Zspage {
        let zspage = self.zspages.remove(&name).unwrap_or_default();
        self.by_time.remove(&zspage.allocated_at);
        let key = (zspage.pages.len(), zspage.allocated_at, name);
        self.with_room.remove(&key);
        zspage
    }

    fn put(&mut self, name: usize, zspage: Zspage) {
        self.by_time.insert(zspage.allocated_at, name);
        if zspage.pages.len() < self.objects {
            let key = (zspage.pages.len(), zspage.allocated_at, name);
            self.with_room.insert(key);
        }
        self.zspages.insert(name, zspage);
    }
}
