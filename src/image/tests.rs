//! Images of many kinds of pages, whole and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::error::Result;
use crate::units::PageIndex;

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 24) as usize % bound
    }
}

type Pages = BTreeMap<u32, (Codec, Vec<u8>)>;

/// Some megabytes of pages.
fn sample() -> Pages {
    let mut random = Random(7);
    let page = |i: u32| {
        let (codec, len) = match i % 3 {
            0 => (Codec::Raw, PAGE_SIZE),
            1 => (Codec::Lz4, 1 + random.below(3000)),
            _ => (Codec::Zstd, 1 + random.below(3000)),
        };
        let bytes = (0..len).map(|_| random.below(256) as u8).collect();
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

    /// What an image is read as: its objects and its patterns.
    fn read(&self, image: &[u8]) -> Result<(Pages, Vec<u32>)> {
        fs::write(&self.path, image).expect("written");
        let mut reader = ImageReader::open(&self.path)?;
        assert_eq!(reader.size(), 64 << 20);
        let (mut objects, mut patterns) = (Pages::new(), Vec::new());
        let mut buffer = SegmentBuffer::new();
        while let Some(part) = reader.next(&mut buffer)? {
            let Part::Pages(part) = part else {
                continue;
            };
            for (page, data) in part.pages() {
                match data {
                    PageData::SameFilled(pattern) => patterns.push(pattern),
                    PageData::Object(codec, bytes) => {
                        objects.insert(page.0, (codec, bytes.to_vec()));
                    }
                }
            }
        }
        assert_eq!(reader.pages_read(), reader.pages());
        Ok((objects, patterns))
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
    let (objects, patterns) = scratch.read(&written(&pages)).expect("right");
    assert!(objects == pages);
    assert!(patterns.into_iter().eq(pages.into_keys()));
    let (none, _) = scratch.read(&written(&Pages::new())).expect("right");
    assert!(none.is_empty());
}

#[test]
fn every_kind_of_damage_is_refused() {
    let scratch = Scratch::new();
    let good = written(&sample());
    let mut random = Random(1);
    for round in 0..200 {
        let mut bad = good.clone();
        let at = random.below(good.len() - 8192);
        match round % 5 {
            0 => bad[at] ^= 1 << random.below(8),
            1 => bad.truncate(random.below(good.len())),
            2 => {
                let other = random.below(good.len() - 4096);
                let block = good[at..at + 4096].to_vec();
                bad.copy_within(other..other + 4096, at);
                bad[other..other + 4096].copy_from_slice(&block);
            }
            3 => bad[at..at + 1 + random.below(8192)].fill(0),
            _ => bad.extend_from_slice(&good[at..at + 100]),
        }
        if bad != good {
            let said = scratch.refusal(&bad);
            assert!(said.contains("image"), "round {round}: {said}");
        }
    }
}

#[test]
fn every_bit_of_the_headers_and_of_the_end_counts() {
    let scratch = Scratch::new();
    let good = written(&sample());
    let first = (HEADER_LEN + SEGMENT_HEADER_LEN) * 8;
    let end = (good.len() - END_LEN) * 8;
    for bit in (0..first).chain(end..good.len() * 8) {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        scratch.refusal(&bad);
    }
}

#[test]
fn a_segment_of_another_place_or_another_image_is_refused() {
    let scratch = Scratch::new();
    // Segments of one length.
    let pages = (0..1000u32).map(|i| (i * 7, (Codec::Lz4, vec![i as u8; 3000])));
    let pages: Pages = pages.collect();
    let (good, other) = (written(&pages), written(&pages));
    let header = SegmentHeader::read_from_bytes(&good[HEADER_LEN..][..SEGMENT_HEADER_LEN]);
    let len = SEGMENT_HEADER_LEN + header.expect("a header").len.get() as usize;
    let (first, second) = (
        HEADER_LEN..HEADER_LEN + len,
        HEADER_LEN + len..HEADER_LEN + 2 * len,
    );
    let mut bad = good.clone();
    bad[first.clone()].copy_from_slice(&good[second.clone()]);
    bad[second].copy_from_slice(&good[first.clone()]);
    let said = scratch.refusal(&bad);
    assert!(said.contains("segment 0, bytes 64 to "), "{said}");
    let mut bad = good.clone();
    bad[first.clone()].copy_from_slice(&other[first]);
    scratch.refusal(&bad);
    // The start of one and the end of the other.
    let bad = [
        &good[..good.len() - END_LEN],
        &other[good.len() - END_LEN..],
    ]
    .concat();
    scratch.refusal(&bad);
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
    assert!(error.is_err_and(|error| error.to_string().contains("plain file")));
}
