//! Images: made from the naive model, damaged, and restored over a store that fails.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;

use super::super::*;
use super::content::{self, Version, ZEROES, fill, version_of};
use super::{PAGES, UNIT, UNITS};
use crate::algorithm::Priority;
use crate::codec::{
    Codec, Compression, Dictionaries, DictionaryId, MAX_COMPRESSED_LEN, same_filled,
};
use crate::error::{Error, Result};
use crate::image::{Entry, ImageReader, ImageWriter, PageData, Part};
use crate::spill::{Faults, FaultyImage};
use crate::units::PageIndex;
use support::Random;

/// Versions that an image made here has of units, at most.
pub(super) const VERSIONS: Version = 64;

/// How the pages of an image are compressed.
struct Manner {
    algorithm: Compression,
    dictionaries: Dictionaries,
    /// The number of the dictionary, where there is one.
    dictionary: Option<DictionaryId>,
}

impl Manner {
    fn any(random: &mut Random) -> Self {
        let algorithms = ["lz4", "lz4hc", "deflate", "zstd:1", "zstd:1", "zstd:1"];
        let algorithm: Algorithm = algorithms[random.below(6) as usize]
            .parse()
            .expect("an algorithm");
        let dictionaries = Dictionaries::default();
        let mut dictionary = None;
        if let Algorithm::Zstd { level } = algorithm {
            let id = DictionaryId::new(random.below(8) as usize).expect("few");
            let bytes = content::dictionary(random);
            dictionaries.add_as(id, bytes).expect("a dictionary");
            dictionaries.prepare(id, level).expect("memory");
            dictionary = Some(id);
        }
        Self {
            algorithm: algorithm.into(),
            dictionaries,
            dictionary,
        }
    }

    fn compress(
        &self,
        page: &Page,
        with_dictionary: bool,
        out: &mut [u8],
    ) -> Option<(Codec, usize)> {
        let how = Compression {
            dictionary: self.dictionary.filter(|_| with_dictionary),
            ..self.algorithm
        };
        let first = Priority::PRIMARY;
        codec::compress(how, first, &self.dictionaries, page, out, PAGE_SIZE - 1)
    }
}

/// Makes up what a device holds, and an image of it.
pub(super) fn made_up(random: &mut Random) -> (Vec<Version>, Vec<u8>) {
    let mut versions = vec![ZEROES; UNITS as usize];
    let mut image = ImageWriter::new(Vec::new(), PAGES * PAGE).expect("memory");
    // In no order of theirs.
    let mut pages: Vec<u64> = (0..PAGES).collect();
    for at in (1..pages.len()).rev() {
        pages.swap(at, random.below(at as u64 + 1) as usize);
    }
    let some = 1 + random.below(PAGES);
    let manner = (random.below(4) > 0).then(|| Manner::any(random));
    for &page in &pages[..some as usize] {
        let first = 1 + random.below(u64::from(VERSIONS)) as Version;
        let second = match random.below(4) {
            0 => ZEROES,
            1 => first,
            _ => 1 + random.below(u64::from(VERSIONS)) as Version,
        };
        let units = (page * 2) as usize..(page * 2 + 2) as usize;
        versions[units].copy_from_slice(&[first, second]);
        let data = page_of(page, [first, second]);
        let mut out = [0; MAX_COMPRESSED_LEN];
        let with_dictionary = random.below(2) == 0;
        let manner = manner.as_ref();
        let compressed =
            manner.and_then(|manner| manner.compress(&data, with_dictionary, &mut out));
        if let Some((codec, len)) = compressed
            && let Some(id) = codec.dictionary(&out[..len])
            && let Some(dictionary) = manner.and_then(|manner| manner.dictionaries.get(id))
        {
            let bytes = dictionary.bytes();
            image.push_dictionary(id, bytes).expect("memory");
        }
        push(
            &mut image,
            page,
            &data,
            compressed.map(|(codec, len)| (codec, &out[..len])),
        );
    }
    (versions, image.finish().expect("memory").0)
}

fn page_of(page: u64, versions: [Version; 2]) -> Page {
    let mut data = [0; PAGE_SIZE];
    for ((out, version), unit) in data.chunks_exact_mut(UNIT).zip(versions).zip(page * 2..) {
        fill(unit, version, out);
    }
    data
}

fn push(
    image: &mut ImageWriter<Vec<u8>>,
    page: u64,
    data: &Page,
    compressed: Option<(Codec, &[u8])>,
) {
    let data = match (same_filled(data), compressed) {
        (Some(pattern), _) => PageData::SameFilled(pattern),
        (None, Some((codec, object))) => PageData::Object(codec, object),
        (None, None) => PageData::Object(Codec::Raw, data),
    };
    image.push(PageIndex(page as u32), data).expect("memory");
}

/// An image that is to be refused, and how.
pub(super) fn wrong(random: &mut Random) -> (Vec<u8>, &'static str) {
    let mut image = ImageWriter::new(Vec::new(), PAGES * PAGE).expect("memory");
    let some = 2 + random.below(PAGES - 2);
    let twice = random.below(some);
    for page in 0..some {
        // One of two that repeats a pattern.
        let data = page_of(page, [7 + page as Version % 2; 2]);
        push(&mut image, page, &data, None);
    }
    let data = page_of(twice, [7 + random.below(2) as Version; 2]);
    push(&mut image, twice, &data, None);
    let (mut image, ..) = image.finish().expect("memory");
    if random.below(4) == 0 {
        image.truncate(image.len() - 1 - random.below(100) as usize);
        return (image, "cut off");
    }
    (image, "is in it twice")
}

/// Opens an image, which is in a file for no longer than that takes.
fn open(image: &[u8]) -> Result<ImageReader> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), image).expect("written");
    ImageReader::open(file.path())
}

/// Has a device hold what is in an image.
pub(super) fn restore(
    device: &Device,
    image: &[u8],
    faults: Option<Faults>,
) -> Result<Arc<FaultyImage>> {
    let reader = open(image)?;
    let store = Arc::new(FaultyImage::new(Arc::new(reader.store()?), faults));
    device.restore_from(reader, Arc::clone(&store) as _)?;
    Ok(store)
}

/// What the units of a device are that an image is restored to, which has its own allocator, shards, limit
/// and backing. While the image's store fails, what cannot be read is to be excused.
pub(super) fn held(
    image: &[u8],
    random: &mut Random,
    faults: Option<Faults>,
    mut excuse: impl FnMut(&Error),
) -> Vec<Version> {
    let limits = [Some(48 * PAGE), Some(1500 * PAGE), None];
    let mut config = DeviceConfig::new(PAGES * PAGE);
    config.mem_limit = limits[random.below(3) as usize];
    config.shards = Some(1 + random.below(3) as u32);
    config.pool = PoolKind::ALL[random.below(3) as usize];
    let backing = || Arc::new(FaultyBacking::new(4)) as Arc<dyn Backing>;
    let backing = (random.below(2) == 0).then(backing);
    let device = Device::with_stores(&config, Origin::Blank, backing).expect("a device");
    let store = restore(&device, image, faults).expect("a whole image");
    let mut bytes = vec![0; (PAGES * PAGE) as usize];
    let at_once = [1, 2, 16][random.below(3) as usize] * PAGE_SIZE;
    let mut failed = Vec::new();
    for (some, at) in bytes.chunks_mut(at_once).zip((0..).step_by(at_once)) {
        if let Err(error) = device.read(at, some) {
            excuse(&error);
            failed.push(at);
        }
    }
    store.suffer(None);
    for at in failed {
        let some = &mut bytes[at as usize..][..at_once];
        device.read(at, some).expect("nothing is damaged");
    }
    device.check();
    let units = bytes.chunks_exact(UNIT).zip(0..);
    units.map(|(found, unit)| version_of(unit, found)).collect()
}

/// Damages a few records of an image; returns of which pages.
pub(super) fn damage(image: &mut [u8], random: &mut Random) -> BTreeSet<u64> {
    let records = records(image);
    let mut hit = BTreeSet::new();
    for _ in 0..random.below(4) * u64::from(!records.is_empty()) {
        let (page, bytes) = &records[random.below(records.len() as u64) as usize];
        if hit.insert(*page) {
            let within = random.below(bytes.len() as u64) as usize;
            image[bytes.start + within] ^= 1 << random.below(8);
        }
    }
    hit
}

/// The pages that have records, and where these are: their headers and as much behind as they have
/// bytes of objects at least.
fn records(image: &[u8]) -> Vec<(u64, Range<usize>)> {
    let (mut reader, mut buffer) = (open(image).expect("an image"), Vec::new());
    let mut found = Vec::new();
    while let Some(part) = reader.next(&mut buffer).expect("a whole one") {
        let Part::Pages(index) = part else { continue };
        for (entry, _) in index.entries().flatten() {
            if let Entry::Record {
                page, address, len, ..
            } = entry
            {
                let start = address.byte() as usize;
                found.push((u64::from(page.0), start..start + len));
            }
        }
    }
    found
}
