//! Who reads pages in order. Readers are told apart by where they are; one that has read very many
//! pages is a scan, to which memory need not be given.

use std::collections::VecDeque;

/// Pages of a request that gains from what others in order read ahead. Those of a larger one are
/// read together.
pub(super) const SMALL: usize = 8;

use crate::units::PageIndex;

/// Requests in order after the first that make a reader in order.
const IN_ORDER: u32 = 2;

/// Pages read in order that make a scan, 4 MiB: who reads on will not come back soon, and what is read
/// ahead serves him if he does. It is what bcache calls its sequential cutoff.
const SCAN: u64 = 1024;

/// Pages that may be passed over, or come a little late, in a read in order: they may be in memory,
/// and requests of one reader are worked on side by side.
const NEAR: u64 = 32;

/// The same where requests are large: a few of 1 MiB each.
const NEAR_LARGE: u64 = 1024;

/// Readers in order that are told apart.
const STREAMS: usize = 8;

/// A reader of pages in order.
#[derive(Clone, Copy)]
struct Stream {
    first: u64,
    /// The page after the last that was read.
    next: u64,
    /// Pages read, some perhaps late.
    read: u64,
    /// Requests in order.
    in_order: u32,
}

impl Stream {
    fn new(first: u64) -> Self {
        Self {
            first,
            next: first,
            read: 0,
            in_order: 0,
        }
    }

    fn len(&self) -> u64 {
        self.next - self.first
    }

    /// Whether it goes on with a page, and others within `near`.
    fn is_near(&self, page: u64, near: u64) -> bool {
        page + near >= self.next && page <= self.next + near
    }

    fn note(&mut self, page: u64, pages: u64) {
        self.in_order = self
            .in_order
            .saturating_add(u32::from(self.read > 0 && page >= self.next));
        self.read = self.read.saturating_add(pages);
        self.next = self.next.max(page + pages);
    }

    /// Whether it has read much, and not just the same again and again.
    fn is_scan(&self) -> bool {
        self.read.min(self.len()) > SCAN
    }
}

/// The readers in order of a device, and what may become some.
#[derive(Default)]
pub(super) struct Streams {
    /// The one that read last is the first.
    streams: VecDeque<Stream>,
}

impl Streams {
    /// Notes that a small request reads a page; returns whether the pages before it were read, in
    /// order.
    pub(super) fn note(&mut self, page: PageIndex) -> bool {
        self.note_run(page, 1, NEAR).in_order >= IN_ORDER
    }

    /// Notes that a request that is not small reads so many pages, from `page` on.
    pub(super) fn note_large(&mut self, page: PageIndex, pages: usize) {
        self.note_run(page, pages as u64, NEAR_LARGE);
    }

    /// Notes that pages are read by who may pass over `near` others, or be so late.
    fn note_run(&mut self, page: PageIndex, pages: u64, near: u64) -> Stream {
        let page = u64::from(page.0);
        let streams = self.streams.iter().enumerate();
        let known = streams.filter(|(_, stream)| stream.is_near(page, near));
        let longest = known.max_by_key(|(_, stream)| stream.len());
        let at = longest.map(|(at, _)| at);
        let known = at.and_then(|at| self.streams.remove(at));
        let mut stream = known.unwrap_or_else(|| Stream::new(page));
        stream.note(page, pages);
        self.streams.push_front(stream);
        self.streams.truncate(STREAMS);
        stream
    }

    /// Whether a scan has come by a page, not long ago.
    pub(super) fn is_scanned(&self, page: PageIndex) -> bool {
        let page = u64::from(page.0);
        let mut scans = self.streams.iter().filter(|stream| stream.is_scan());
        scans.any(|scan| (scan.next - SCAN..scan.next).contains(&page))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_in_order_are_told_apart_and_from_others() {
        let mut streams = Streams::default();
        for i in 0..50 {
            for reader in 0..STREAMS as u32 {
                let in_order = streams.note(PageIndex(reader * 100_000 + i));
                assert_eq!(in_order, i >= IN_ORDER, "{reader} {i}");
            }
        }
        let mut streams = Streams::default();
        for i in 1..1000u32 {
            assert!(!streams.note(PageIndex(i.wrapping_mul(0x9e37_79b9))));
        }
    }

    #[test]
    fn a_scan_is_told_from_a_short_read_in_order() {
        let mut streams = Streams::default();
        let scan = SCAN as u32;
        for i in 0..scan {
            streams.note(PageIndex(i));
            assert!(!streams.is_scanned(PageIndex(i)), "{i}");
        }
        streams.note(PageIndex(scan));
        for (page, scanned) in [(0, false), (1, true), (scan, true), (scan + 1, false)] {
            assert_eq!(streams.is_scanned(PageIndex(page)), scanned, "{page}");
        }
        // The same pages for ever, and some of many, are none.
        let mut streams = Streams::default();
        for i in 0..3 * scan {
            streams.note(PageIndex(i % 64));
            streams.note(PageIndex(100_000 + i * 16));
            assert!(!streams.is_scanned(PageIndex(i % 64)), "{i}");
            assert!(i >= scan || !streams.is_scanned(PageIndex(100_000 + i * 16)));
        }
    }

    #[test]
    fn a_scan_by_requests_that_overtake_each_other_is_one() {
        const PIECE: u32 = 32;
        for at_once in [1, 2, 8, 32] {
            let mut streams = Streams::default();
            for round in 0..64 {
                // Those that are under way are worked on in the worst order.
                for i in (0..at_once).rev() {
                    let piece = round * at_once + i;
                    streams.note_large(PageIndex(piece * PIECE), PIECE as usize);
                    let is_known = u64::from(round * at_once * PIECE) > SCAN;
                    let page = PageIndex(piece * PIECE);
                    assert!(!is_known || streams.is_scanned(page), "{at_once}: {piece}");
                }
            }
        }
    }
}
