//! Every algorithm, on what compresses, what does not, and what is no page.

use support::noise_page;

use super::*;
use crate::units::{PAGE_SIZE, Page};

fn text_page(seed: usize) -> Page {
    std::array::from_fn(|i| b"static int zs_compact(struct zs_pool *pool)\n"[(i * seed) % 44])
}

/// Pages of different words in different order: there is something to learn of them.
fn words_page(seed: u64) -> Page {
    let words: [&[u8]; 8] = [
        b"zspage->",
        b"return ",
        b"struct page *",
        b"spin_lock(&",
        b"unsigned long ",
        b"if (!",
        b"goto out;\n\t",
        b"size_class ",
    ];
    let mut state = seed | 1;
    let mut page = Vec::new();
    while page.len() < PAGE_SIZE {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        page.extend_from_slice(words[(state >> 61) as usize]);
        page.extend_from_slice(format!("{}", state >> 50).as_bytes());
    }
    *page.first_chunk().expect("a page")
}

/// Every way to compress, at every priority.
fn ways(dictionaries: &Dictionaries) -> Vec<(Compression, Priority)> {
    let samples: Vec<Page> = (0..2000).map(words_page).collect();
    let trained = train_dictionary(&samples, 4096).expect("enough");
    let id = dictionaries.add(&trained).expect("a dictionary");
    dictionaries.prepare(id, 3).expect("memory");
    let mut ways: Vec<Compression> = ["lz4", "lz4hc", "lz4hc:12", "zstd", "zstd:9", "deflate"]
        .map(|text| text.parse::<Algorithm>().expect(text).into())
        .to_vec();
    ways.push(Compression {
        algorithm: Algorithm::Zstd { level: 3 },
        dictionary: Some(id),
    });
    let all = ways.into_iter().flat_map(|way| {
        let priorities = [Priority::PRIMARY].into_iter().chain(Priority::SECONDARY);
        priorities.map(move |priority| (way, priority))
    });
    all.collect()
}

#[test]
fn round_trips_in_every_way() {
    let dictionaries = Dictionaries::default();
    let mut out = [0; MAX_COMPRESSED_LEN];
    for (way, priority) in ways(&dictionaries) {
        for seed in 1..20 {
            let page = text_page(seed);
            let made = compress(way, priority, &dictionaries, &page, &mut out, 3000);
            let (codec, len) = made.expect("text");
            assert_eq!(codec.priority(out[0]), priority);
            let mut back = [0xee; PAGE_SIZE];
            let read = decompress(codec, &out[..len], &dictionaries, &mut back);
            assert_eq!(read, Ok(()), "{way:?}");
            assert!(back == page);
        }
    }
}

#[test]
fn a_dictionary_makes_pages_smaller_that_are_like_its_own() {
    let dictionaries = Dictionaries::default();
    let ways = ways(&dictionaries);
    let (with, priority) = ways[ways.len() - 1];
    let without = Compression {
        dictionary: None,
        ..with
    };
    let page = words_page(1 << 40);
    let mut out = [0; MAX_COMPRESSED_LEN];
    let mut len = |way| {
        let made = compress(way, priority, &dictionaries, &page, &mut out, PAGE_SIZE);
        made.expect("text").1
    };
    let (with, without) = (len(with), len(without));
    assert!(with * 10 < without * 9, "{with} {without}");
}

/// It may be compressed under a lock.
#[test]
fn no_page_waits_for_a_dictionary_to_be_prepared() {
    let dictionaries = Dictionaries::default();
    let id = dictionaries.add(&[7; 1000]).expect("anything may serve");
    let mut out = [0; MAX_COMPRESSED_LEN];
    let mut is_made = |level, dictionaries: &Dictionaries| {
        let way = Compression {
            algorithm: Algorithm::Zstd { level },
            dictionary: Some(id),
        };
        let (primary, page) = (Priority::PRIMARY, text_page(1));
        compress(way, primary, dictionaries, &page, &mut out, PAGE_SIZE).is_some()
    };
    assert!(!is_made(3, &dictionaries));
    dictionaries.prepare(id, 3).expect("memory");
    assert!(is_made(3, &dictionaries) && !is_made(9, &dictionaries));
}

#[test]
fn dictionaries_are_kept_once_and_bounded() {
    let dictionaries = Dictionaries::default();
    let samples: Vec<Page> = (0..500).map(words_page).collect();
    let trained = train_dictionary(&samples, 1024).expect("enough");
    let id = dictionaries.add(&trained).expect("a dictionary");
    assert_eq!(dictionaries.add(&trained).expect("the same"), id);
    assert!(
        dictionaries
            .get(id)
            .is_some_and(|there| there.bytes() == trained)
    );
    assert!(dictionaries.add(&[0; 100]).is_err());
    // Anything may serve as one that has no header of its own.
    for i in 1..dictionary::MAX_DICTIONARIES {
        dictionaries.add(&[i as u8; 300]).expect("room");
    }
    assert!(dictionaries.add(&[255; 300]).is_err());
    assert!(train_dictionary(&samples[..2], 1024).is_err());
    let mut back = [0; PAGE_SIZE];
    let unknown = Tag {
        priority: Priority::PRIMARY,
        method: Method::ZstdWith(id),
    };
    let data = [unknown.to_byte(), 1, 2, 3];
    let read = decompress(Codec::Tagged, &data, &Dictionaries::default(), &mut back);
    assert_eq!(read, Err(NotAPage));
}

#[test]
fn noise_stays_raw() {
    let dictionaries = Dictionaries::default();
    let page = noise_page(1);
    let mut out = [0; MAX_COMPRESSED_LEN];
    for (way, priority) in ways(&dictionaries) {
        let made = compress(way, priority, &dictionaries, &page, &mut out, 3600);
        assert_eq!(made, None);
    }
    let mut back = [0; PAGE_SIZE];
    assert_eq!(
        decompress(Codec::Raw, &page, &dictionaries, &mut back),
        Ok(())
    );
    assert!(back == page);
}

#[test]
fn damaged_objects_are_refused_or_give_some_page() {
    let dictionaries = Dictionaries::default();
    let mut out = [0; MAX_COMPRESSED_LEN];
    let mut back = [0; PAGE_SIZE];
    for (way, priority) in ways(&dictionaries) {
        let made = compress(way, priority, &dictionaries, &text_page(7), &mut out, 3000);
        let (codec, len) = made.expect("text");
        let mut read = |data: &[u8]| decompress(codec, data, &dictionaries, &mut back);
        assert_eq!(read(&out[..len / 2]), Err(NotAPage), "{way:?}");
        assert_eq!(read(&[]), Err(NotAPage));
        for i in 0..len {
            let mut damaged = out[..len].to_vec();
            damaged[i] ^= 0x5a;
            let _ = read(&damaged);
        }
    }
    let raw = decompress(Codec::Raw, &out[..100], &dictionaries, &mut back);
    assert_eq!(raw, Err(NotAPage));
}
