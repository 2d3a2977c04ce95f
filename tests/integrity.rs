//! Damage done to a spill of real data from outside: no wrong page comes back, and of the right
//! ones exactly those are refused whose records were hit.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::Random;
use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, Error, PAGE_SIZE, Page};

const PAGE: u64 = PAGE_SIZE as u64;
const SEGMENT: usize = 2 << 20;
const SPILL: u64 = 256 << 20;
const FLIPS: usize = 400;
const SWAPS: usize = 50;

/// What is on each page of a device: real data, and the page's number.
struct Contents(Vec<Page>);

impl Contents {
    fn collect() -> Self {
        let roots = ["/usr/bin", "/usr/lib", "/usr/share"].map(Path::new);
        let pages = support::corpus::pages_under(&roots, 16 << 10, |_| true);
        assert!(pages.len() > 1000, "{} pages in /usr", pages.len());
        Self(pages)
    }

    fn page(&self, page: u64) -> Page {
        let mut contents = self.0[page as usize % self.0.len()];
        contents[2000..2008].copy_from_slice(&(page + 1).to_le_bytes());
        contents
    }
}

struct Spilled {
    device: Device,
    contents: Contents,
    pages: u64,
    file: File,
    _dir: tempfile::TempDir,
}

impl Spilled {
    /// A device that has spilled [`SPILL`] bytes.
    fn new(encrypt: bool) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let path = dir.path().join("spill");
        let mut config = DeviceConfig::new(4 << 30);
        config.mem_limit = Some(32 << 20);
        config.backing = Some(BackingConfig::new(&path).encrypt(encrypt));
        let device = Device::new(&config).expect("a device");
        let contents = Contents::collect();
        let mut pages = 0;
        while device.stats().backing_bytes_live < SPILL {
            for _ in 0..1024 {
                let page = contents.page(pages);
                device.write(pages * PAGE, &page).expect("room");
                pages += 1;
            }
        }
        // Until nothing is under way.
        device.check();
        let file = File::options().read(true).write(true).open(&path);
        Self {
            device,
            contents,
            pages,
            file: file.expect("the spill"),
            _dir: dir,
        }
    }

    fn read_file(&self) -> Vec<u8> {
        let len = self.file.metadata().expect("there").len() as usize;
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// The pages that cannot be read; every other one must be right.
    fn refused(&self) -> BTreeSet<u64> {
        let mut refused = BTreeSet::new();
        for page in 0..self.pages {
            let mut found = [0; PAGE_SIZE];
            match self.device.read(page * PAGE, &mut found) {
                Ok(()) => assert!(found == self.contents.page(page), "page {page} is wrong"),
                Err(Error::Damaged { page: lost }) => {
                    assert_eq!(u64::from(lost), page);
                    refused.insert(page);
                }
                Err(error) => panic!("page {page}: {error}"),
            }
        }
        refused
    }

    fn scrub(&self) -> (u64, BTreeSet<u64>) {
        let (mut intact, mut damaged) = (0, BTreeSet::new());
        let mut next = Some(0);
        while let Some(from) = next {
            let step = self.device.scrub(from);
            assert!(step.unreadable.is_empty());
            intact += step.intact;
            damaged.extend(step.damaged);
            next = step.next;
        }
        (intact, damaged)
    }
}

/// Flips bits and swaps blocks of a file; returns the bytes that are others now.
fn damage(file: &File, bytes: &[u8]) -> Vec<Range<usize>> {
    let mut random = Random(2026);
    let mut hit = Vec::new();
    for _ in 0..FLIPS {
        let at = random.index(bytes.len());
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).expect("read");
        byte[0] ^= 1 << random.index(8);
        file.write_all_at(&byte, at as u64).expect("written");
        hit.push(at..at + 1);
    }
    let blocks = bytes.len() / PAGE_SIZE;
    for _ in 0..SWAPS {
        let [one, other] = [(); 2].map(|()| random.index(blocks) * PAGE_SIZE);
        let [at_one, at_other] = [one, other].map(|at| {
            let mut block = [0; PAGE_SIZE];
            file.read_exact_at(&mut block, at as u64).expect("read");
            block
        });
        file.write_all_at(&at_one, other as u64).expect("written");
        file.write_all_at(&at_other, one as u64).expect("written");
        hit.extend([one..one + PAGE_SIZE, other..other + PAGE_SIZE]);
    }
    hit
}

/// Finds the records in a spill by their checksums: the page of each, and its bytes up to the
/// padding.
fn records(bytes: &[u8], pages: u64) -> Vec<(u64, Range<usize>)> {
    let mut found = Vec::new();
    for (segment, contents) in bytes.chunks(SEGMENT).enumerate() {
        if contents.len() < 32 || contents[..8] != *b"UZRAMSEG" {
            continue;
        }
        let sequence = u64::from_le_bytes(contents[12..20].try_into().expect("8 bytes"));
        let mut at = 32;
        while at + 16 <= contents.len() {
            let address = (segment * SEGMENT + at) as u64 / 16;
            let Some((page, len)) = record_at(&contents[at..], address, sequence, pages) else {
                at += 16;
                continue;
            };
            let start = segment * SEGMENT + at;
            found.push((page, start..start + len));
            at += len.next_multiple_of(16);
        }
    }
    found
}

/// The page and the length of the record that starts `bytes`, if one does.
fn record_at(bytes: &[u8], address: u64, sequence: u64, pages: u64) -> Option<(u64, usize)> {
    let page = u64::from(u32::from_le_bytes(bytes[4..8].try_into().ok()?));
    let len = 11 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]])) + 1;
    if page >= pages || len > 11 + PAGE_SIZE || len > bytes.len() {
        return None;
    }
    let mut place = [0; 16];
    place[..8].copy_from_slice(&sequence.to_le_bytes());
    place[8..].copy_from_slice(&address.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&place), &bytes[4..len]);
    (bytes[..4] == checksum.to_le_bytes()).then_some((page, len))
}

#[test]
fn exactly_what_was_hit_is_refused() {
    let spilled = Spilled::new(false);
    let bytes = spilled.read_file();
    let records = records(&bytes, spilled.pages);
    assert_eq!(
        records.len() as u64,
        spilled.device.stats().written_back_pages
    );
    let changed = damage(&spilled.file, &bytes);
    let now = spilled.read_file();
    let hit: BTreeSet<u64> = records
        .iter()
        .filter(|(_, record)| {
            let touched =
                |range: &Range<usize>| record.start < range.end && range.start < record.end;
            changed.iter().any(touched) && bytes[record.clone()] != now[record.clone()]
        })
        .map(|(page, _)| *page)
        .collect();
    drop((bytes, now));
    assert!(hit.len() > 300 && hit.len() < 1200, "{} hit", hit.len());

    let (intact, damaged) = spilled.scrub();
    assert!(damaged == hit, "{} of {}", damaged.len(), hit.len());
    assert_eq!(intact, (records.len() - hit.len()) as u64);
    let refused = spilled.refused();
    assert!(refused == hit, "{} of {}", refused.len(), hit.len());
    let counted = spilled.device.stats().damaged_records;
    assert_eq!(counted, hit.len() as u64);
    spilled.device.check();
    println!(
        "{} of {} spilled pages were hit and refused",
        hit.len(),
        records.len()
    );
}

#[test]
fn of_an_encrypted_spill_nothing_wrong_comes_back() {
    let spilled = Spilled::new(true);
    let bytes = spilled.read_file();
    // Nor does it hold anything that could be taken for a record that is not encrypted.
    assert_eq!(records(&bytes, spilled.pages).len(), 0);
    damage(&spilled.file, &bytes);
    drop(bytes);
    let (_, damaged) = spilled.scrub();
    assert!(damaged.len() > 300 && damaged.len() < 1200);
    assert!(spilled.refused() == damaged);
    let counted = spilled.device.stats().damaged_records;
    assert_eq!(counted, damaged.len() as u64);
    spilled.device.check();
}
