//! Images of many kinds of pages, whole and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use support::Random;
use zerocopy::FromZeros;

use super::read::MAX_INDEX_LEN;
use super::*;
use crate::error::{Error, Result};
use crate::spill::{MAX_STORE_BYTES, RECORD_ALIGN, SEGMENT_BYTES, Store};
use crate::units::{MAX_DEVICE_BYTES, PAGE_SIZE, PageIndex};

type Pages = BTreeMap<u32, (Codec, Vec<u8>)>;

/// Some megabytes of pages.
fn sample() -> Pages {
    let mut random = Random(7);
    let page = |i: u32| {
        let (codec, len) = match i % 3 {
            0 => (Codec::Raw, PAGE_SIZE),
            1 => (Codec::Lz4, 1 + random.index(3000)),
            _ => (Codec::Zstd, 1 + random.index(3000)),
        };
        let bytes = (0..len).map(|_| random.index(256) as u8).collect();
        (i * 7, (codec, bytes))
    };
    (0..1500).map(page).collect()
}

fn written(pages: &Pages) -> Vec<u8> {
    let mut image = ImageWriter::new(Vec::new(), 64 << 20).expect("memory");
    for (&page, (codec, bytes)) in pages {
        let data = PageData::Object(*codec, bytes);
        image.push(PageIndex(page), data).expect("memory");
        let data = PageData::SameFilled(page);
        image.push(PageIndex(page + 1), data).expect("memory");
    }
    let (bytes, count, len) = image.finish().expect("memory");
    assert_eq!(count, pages.len() as u64 * 2);
    assert_eq!(len, bytes.len() as u64);
    bytes
}

/// A file that images are put in.
struct Scratch {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        Self { _dir: dir, path }
    }

    fn read(&self, image: &[u8]) -> Result<Contents> {
        fs::write(&self.path, image).expect("written");
        Contents::of(&self.path)
    }

    fn refusal(&self, image: &[u8]) -> String {
        match self.read(image) {
            Ok(_) => panic!("a damaged image was believed"),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn what_was_written_is_read() {
    let scratch = Scratch::new();
    let pages = sample();
    let image = written(&pages);
    assert!(image.len() as u64 > SEGMENT_BYTES);
    let found = scratch.read(&image).expect("right");
    assert!(found.objects.into_iter().eq(pages.clone()) && found.damaged.is_empty());
    assert!(found.patterns.into_iter().eq(pages.into_keys()));
    let none = scratch.read(&written(&Pages::new())).expect("right");
    assert!(none == Contents::default());
}

#[test]
fn there_are_several_indices_of_many_pages() {
    let scratch = Scratch::new();
    const PAGES: u32 = index::MAX_ENTRIES as u32 + 5;
    let mut image = ImageWriter::new(Vec::new(), 64 << 20).expect("memory");
    for page in 0..PAGES {
        let data = PageData::SameFilled(page);
        image.push(PageIndex(page % 16384), data).expect("memory");
        if page % 100_000 == 0 {
            let data = PageData::Object(Codec::Lz4, b"object");
            image.push(PageIndex(page % 16384), data).expect("memory");
        }
    }
    let (bytes, ..) = image.finish().expect("memory");
    let found = scratch.read(&bytes).expect("right");
    // The last index is read first.
    let later = index::MAX_ENTRIES as u32..PAGES;
    assert!(
        found
            .patterns
            .into_iter()
            .eq(later.chain(0..index::MAX_ENTRIES as u32))
    );
    assert!(found.damaged.is_empty());
}

/// Whatever is done to an image, it is refused, or each page in it is found to be damaged or is what
/// was saved.
#[test]
fn no_damage_is_believed() {
    let scratch = Scratch::new();
    let pages = sample();
    let good = written(&pages);
    let mut random = Random(1);
    let (mut refused, mut hit) = (0, 0);
    for round in 0..200 {
        let mut bad = good.clone();
        let at = random.index(good.len() - 8192);
        match round % 5 {
            0 => bad[at] ^= 1 << random.index(8),
            1 => bad.truncate(random.index(good.len())),
            2 => {
                let other = random.index(good.len() - 4096);
                let block = good[at..at + 4096].to_vec();
                bad.copy_within(other..other + 4096, at);
                bad[other..other + 4096].copy_from_slice(&block);
            }
            3 => bad[at..at + 1 + random.index(8192)].fill(0),
            _ => bad.extend_from_slice(&good[at..at + 100]),
        }
        match scratch.read(&bad) {
            Err(error) => {
                assert!(
                    error.to_string().contains("image"),
                    "round {round}: {error}"
                );
                refused += 1;
            }
            Ok(found) => {
                assert!(
                    found
                        .objects
                        .iter()
                        .all(|(page, data)| pages[page] == *data)
                );
                assert_eq!(found.objects.len() + found.damaged.len(), pages.len());
                assert!(found.patterns.into_iter().eq(pages.keys().copied()));
                hit += usize::from(!found.damaged.is_empty());
            }
        }
    }
    assert!(refused >= 80 && hit >= 80, "{refused} {hit}");
}

#[test]
fn every_bit_of_the_header_an_index_and_the_end_counts() {
    let scratch = Scratch::new();
    let few = sample().into_iter().take(40).collect();
    let good = written(&few);
    let end = good.len() - END_LEN;
    let (_, last) = good[end..].split_at(16);
    let index = u64::from_le_bytes(*last.first_chunk().expect("long enough")) as usize;
    // But for what pads the index.
    let body = 40 * (size_of::<ObjectEntry>() + size_of::<PatternEntry>());
    let bytes = (0..HEADER_LEN).chain(index..index + INDEX_HEADER_LEN + body);
    for bit in bytes
        .chain(end..good.len())
        .flat_map(|byte| byte * 8..byte * 8 + 8)
    {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        scratch.refusal(&bad);
    }
}

#[test]
fn what_is_of_another_place_or_another_image_is_refused() {
    let scratch = Scratch::new();
    // Records of one length.
    let pages = (0..1000u32).map(|i| (i * 7, (Codec::Lz4, vec![i as u8; 3000])));
    let pages: Pages = pages.collect();
    let (good, other) = (written(&pages), written(&pages));
    let len = RecordFormat::Saved.record_len(3000);
    let [first, second] = [0, len].map(|at| HEADER_LEN + at..HEADER_LEN + at + len);
    let mut bad = good.clone();
    bad[first.clone()].copy_from_slice(&good[second.clone()]);
    bad[second].copy_from_slice(&good[first.clone()]);
    assert_eq!(scratch.read(&bad).expect("an image").damaged, [0, 7]);
    let mut bad = good.clone();
    bad[first.clone()].copy_from_slice(&other[first]);
    assert_eq!(scratch.read(&bad).expect("an image").damaged, [0]);
    // The start of one and the end of the other, or its index too.
    for from in [END_LEN, END_LEN + 1000 * 16 + 100] {
        let cut = good.len() - from;
        let said = scratch.refusal(&[&good[..cut], &other[cut..]].concat());
        assert!(said.contains("damaged"), "{said}");
    }
}

#[test]
fn a_raw_page_is_a_whole_one() {
    let scratch = Scratch::new();
    for len in [1, 100, PAGE_SIZE - 1] {
        let short = Pages::from([(3, (Codec::Raw, vec![1; len]))]);
        let refusal = scratch.refusal(&written(&short));
        assert!(refusal.contains("makes no sense"), "{refusal}");
    }
}

#[test]
fn what_is_no_image_is_called_so() {
    let scratch = Scratch::new();
    for no_image in [&b""[..], b"uzramimg", &[0; 4096]] {
        let said = scratch.refusal(no_image);
        assert!(said.ends_with("it is no image of a device"), "{said}");
    }
    let mut image = written(&Pages::new());
    image[8] = 9;
    let said = scratch.refusal(&image);
    assert!(said.contains("of version 9"), "{said}");
    let error = ImageReader::open(scratch.path.parent().expect("one"));
    assert!(error.is_err_and(|error| error.to_string().contains("regular file")));
    // Plain, and not to be read where it starts.
    let error = ImageReader::open(Path::new("/proc/self/mem")).map(drop);
    let error = error.expect_err("unreadable");
    assert!(matches!(&error, Error::Io { .. }), "{error}");
}

#[test]
fn a_header_that_makes_no_sense_is_refused_though_its_checksum_is_right() {
    let scratch = Scratch::new();
    let image = written(&Pages::new());
    let whole = Header::read_from_bytes(&image[..HEADER_LEN]).expect("a header");
    type Change = fn(&mut Header);
    let changes: [Change; 6] = [
        |header| header.size = 0.into(),
        |header| header.size = (MAX_DEVICE_BYTES + PAGE_SIZE as u64).into(),
        |header| header.size = (PAGE_SIZE as u64 - 1).into(),
        |header| header.page_size = 8192.into(),
        |header| header.zeroes[23] = 1,
        |header| header.sector_size = 1024.into(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (mut bad, mut header) = (image.clone(), whole);
        change(&mut header);
        header.checksum = header.checksum().into();
        bad[..HEADER_LEN].copy_from_slice(header.as_bytes());
        let said = scratch.refusal(&bad);
        assert!(said.contains("damaged in its header"), "{number}: {said}");
    }
}

/// What a device of three pages has for its pages.
fn with_pages(pages: [(u32, PageData<'_>); 2]) -> Vec<u8> {
    let mut image = ImageWriter::new(Vec::new(), 3 * PAGE_SIZE as u64).expect("memory");
    for (page, data) in pages {
        image.push(PageIndex(page), data).expect("memory");
    }
    image.finish().expect("memory").0
}

#[test]
fn all_pages_are_of_the_device() {
    let scratch = Scratch::new();
    let (pattern, object) = (PageData::SameFilled(7), PageData::Object(Codec::Lz4, b"it"));
    let last = scratch.read(&with_pages([(1, pattern), (2, object)]));
    assert_eq!(last.expect("an image").objects[0].0, 2);
    for beyond in [3, 4, u32::MAX] {
        for pages in [
            [(1, pattern), (beyond, object)],
            [(1, object), (beyond, pattern)],
        ] {
            let said = scratch.refusal(&with_pages(pages));
            assert!(said.contains("beyond the end of the device"), "{said}");
        }
    }
}

/// The bytes of an image where the records start whose objects have these lengths.
fn places(lens: &[usize]) -> Vec<u64> {
    let scratch = Scratch::new();
    let mut image = ImageWriter::new(Vec::new(), 64 << 20).expect("memory");
    for (page, &len) in (0..).zip(lens) {
        let data = PageData::Object(Codec::Lz4, &[9; PAGE_SIZE][..len]);
        image.push(PageIndex(page), data).expect("memory");
    }
    let found = scratch.read(&image.finish().expect("memory").0);
    assert!(found.expect("right").damaged.is_empty());
    let mut reader = ImageReader::open(&scratch.path).expect("an image");
    let mut buffer = Vec::new();
    let Some(Part::Pages(index)) = reader.next(&mut buffer).expect("right") else {
        panic!("the first is of pages");
    };
    let place = |entry| match entry {
        Some((Entry::Record { address, .. }, _)) => address.byte(),
        _ => panic!("all are records"),
    };
    index.entries().map(place).collect()
}

#[test]
fn a_record_that_would_cross_a_multiple_of_2_mib_starts_there() {
    let record_len = |len| RecordFormat::Saved.record_len(len) as u64;
    let (start, count) = (HEADER_LEN as u64, 2045);
    let full = start + count * record_len(1000);
    let fitting = (1..PAGE_SIZE).filter(|&len| full + record_len(len) <= SEGMENT_BYTES);
    let fits = fitting.max().expect("there is room for one more");
    for (last, place) in [(fits, full), (fits + 1, SEGMENT_BYTES)] {
        let lens = [&[1000; 2045][..], &[last, 1000]].concat();
        let mut expected: Vec<_> = (0..count).map(|i| start + i * record_len(1000)).collect();
        expected.extend([place, place + record_len(last)]);
        assert_eq!(places(&lens), expected);
    }
}

/// An image of a pattern and a raw page, with its one index, and its end, changed and their checksums made right.
fn forged(change: impl Fn(&mut IndexHeader, &mut End)) -> Vec<u8> {
    let pages = Pages::from([(3, (Codec::Raw, vec![1; PAGE_SIZE]))]);
    let mut image = written(&pages);
    let header = Header::read_from_bytes(&image[..HEADER_LEN]).expect("a header");
    let sequence = header.sequence.get();
    let at = image.len() - END_LEN;
    let mut end = End::read_from_bytes(&image[at..]).expect("an end");
    let start = end.last.get() as usize;
    let body = start + INDEX_HEADER_LEN..start + INDEX_HEADER_LEN + 16;
    let header = &image[start..start + INDEX_HEADER_LEN];
    let mut index = IndexHeader::read_from_bytes(header).expect("an index");
    change(&mut index, &mut end);
    let len = (index.len.get() as usize).min(16);
    let covered = &image[body.start..body.start + len];
    index.checksum = index.checksum(sequence, start as u64, covered).into();
    end.checksum = end.checksum(sequence).into();
    image[start..body.start].copy_from_slice(index.as_bytes());
    image[at..].copy_from_slice(end.as_bytes());
    image
}

#[test]
fn what_makes_no_sense_is_refused_though_its_checksum_is_right() {
    let scratch = Scratch::new();
    let good = scratch.read(&forged(|_, _| {})).expect("an image");
    assert_eq!((good.objects.len(), good.patterns.len()), (1, 1));
    type Change = fn(&mut IndexHeader, &mut End);
    let place: [Change; 9] = [
        |index, _| index.from = 80.into(),
        |index, _| index.from = 65.into(),
        |index, _| index.from = 48.into(),
        |index, _| index.from = (1 << 40).into(),
        |index, _| index.previous = 64.into(),
        |index, _| index.previous = 63.into(),
        |index, _| index.previous = (1 << 40).into(),
        |index, _| (index.from, index.previous) = (72.into(), 64.into()),
        |index, _| (index.from, index.previous) = ((1 << 40).into(), 64.into()),
    ];
    for (number, change) in place.into_iter().enumerate() {
        let said = scratch.refusal(&forged(change));
        // What is before it is no index.
        let expected = match number {
            5 => "where one can be",
            _ => "its place makes no sense",
        };
        assert!(said.contains(expected), "{number}: {said}");
    }
    let said = scratch.refusal(&forged(|index, _| {
        (index.from, index.previous) = (80.into(), 64.into());
    }));
    assert!(said.contains("its records do not end"), "{said}");
    let kind: [Change; 6] = [
        |index, _| index.kind = 3.into(),
        |index, _| index.objects = 2.into(),
        |index, _| index.patterns = 0.into(),
        |index, _| index.objects = u32::MAX.into(),
        |index, _| index.patterns = (1 << 20).into(),
        |index, _| index.kind = (Kind::Dictionary as u32).into(),
    ];
    for change in kind {
        let said = scratch.refusal(&forged(change));
        assert!(
            said.contains("of no known kind, or length") || said.contains("of no number, or place"),
            "{said}"
        );
    }
    let lengths: [Change; 3] = [
        |index, _| index.len = u32::MAX.into(),
        |index, _| index.len = 25.into(),
        |index, _| index.len = (MAX_INDEX_LEN as u32 + 1).into(),
    ];
    for change in lengths {
        let said = scratch.refusal(&forged(change));
        assert!(said.contains("its length makes no sense"), "{said}");
    }
    let ends: [Change; 5] = [
        |_, end| end.last = end.bytes,
        |_, end| end.last = (end.bytes.get() - 39).into(),
        |_, end| end.last = (1 << 50).into(),
        |_, end| end.pages = 3.into(),
        |_, end| end.indices = 2.into(),
    ];
    for (number, change) in ends.into_iter().enumerate() {
        let said = scratch.refusal(&forged(change));
        let expected = if number < 3 {
            "where one can be"
        } else {
            "and says"
        };
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn an_index_is_no_longer_than_one_can_be() {
    let scratch = Scratch::new();
    for bytes_too_many in [0, 1] {
        let mut image = written(&Pages::new())[..HEADER_LEN].to_vec();
        let header = Header::read_from_bytes(&image).expect("a header");
        let (sequence, at) = (header.sequence.get(), HEADER_LEN as u64);
        let body = vec![0; MAX_INDEX_LEN + bytes_too_many];
        let mut index = IndexHeader::new_zeroed();
        index.kind = (Kind::Dictionary as u32).into();
        index.objects = 1.into();
        index.len = (body.len() as u32).into();
        index.from = at.into();
        index.checksum = index.checksum(sequence, at, &body).into();
        image.extend_from_slice(index.as_bytes());
        image.extend_from_slice(&body);
        image.resize(image.len().next_multiple_of(RECORD_ALIGN), 0);
        let mut end = End::new_zeroed();
        end.magic = END_MAGIC;
        (end.last, end.indices) = (at.into(), 1.into());
        end.bytes = (image.len() as u64).into();
        end.checksum = end.checksum(sequence).into();
        image.extend_from_slice(end.as_bytes());
        if bytes_too_many == 0 {
            scratch.read(&image).expect("an image");
        } else {
            let said = scratch.refusal(&image);
            assert!(
                said.ends_with("bytes 64 to 104: its length makes no sense"),
                "{said}"
            );
        }
    }
}

#[test]
fn what_lies_between_is_no_image() {
    let scratch = Scratch::new();
    let few: Pages = sample().into_iter().take(4).collect();
    let good = written(&few);
    let at = good.len() - END_LEN;
    let gap = [&good[..at], &[0; 16], &good[at..]].concat();
    scratch.refusal(&gap);
    fs::write(&scratch.path, &good).expect("written");
    let file = fs::File::options()
        .write(true)
        .open(&scratch.path)
        .expect("there");
    file.set_len(MAX_STORE_BYTES + 1).expect("sparse");
    let error = ImageReader::open(&scratch.path)
        .map(drop)
        .expect_err("too large");
    assert!(error.to_string().contains("larger than any"), "{error}");
}

#[test]
fn a_store_ends_in_zeroes_where_its_image_ends() {
    let scratch = Scratch::new();
    let good = written(&Pages::from([(3, (Codec::Raw, vec![1; PAGE_SIZE]))]));
    fs::write(&scratch.path, &good).expect("written");
    let store = ImageReader::open(&scratch.path)
        .and_then(|image| image.store())
        .expect("an image");
    let mut read = vec![1; good.len() + 100];
    store.read_at(0, &mut read).expect("there");
    assert!(read[..good.len()] == good && read[good.len()..].iter().all(|&byte| byte == 0));
}
