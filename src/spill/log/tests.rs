use super::*;
use crate::spill::{FaultyBacking, RecordFormats};
use crate::waker::Waker;

/// A log with a backing of so many segments.
pub(in crate::spill) fn log(capacity: u32) -> SegmentLog {
    let table = SegmentTable::new(RecordFormats::default(), Arc::new(Waker::default()));
    table.make().expect("addresses");
    let (stores, counts) = (Arc::default(), Arc::default());
    let mut log = SegmentLog::new(stores, Arc::new(table), counts, 1 << 16);
    let backing = Arc::new(FaultyBacking::new(capacity));
    assert!(log.attach(backing, capacity).is_ok());
    log
}

/// Fills a segment with records, of which so many percent are live.
pub(in crate::spill) fn fill(log: &mut SegmentLog, percent_live: u64) -> SegmentIndex {
    let target = log.target(Head::Evicted, 0).expect("room");
    let len = target.room();
    log.begin_append(&target, len);
    let record = target.address(target.start_len());
    let format = RecordFormat::Checked;
    for _ in 0..SEGMENT_BYTES * percent_live / 100 / format.record_len(4000) as u64 {
        log.table.retain(record, 4000);
    }
    log.end_append(&target, len, true);
    SegmentIndex::of(record)
}

#[test]
fn what_is_sparse_is_cleaned_first_and_of_that_what_is_old() {
    let mut log = log(8);
    assert_eq!((log.best_to_clean(u32::MAX), log.emptiest()), (None, None));
    let segments = [60, 20, 20, 60].map(|live| fill(&mut log, live));
    log.seal_heads();
    assert_eq!(log.best_to_clean(u32::MAX), Some(segments[1]));
    let live = log.table.live(segments[1]);
    assert_eq!(log.emptiest(), Some((segments[1], live)));
    assert_eq!(log.best_to_clean(live - 1), None);
    // What is left of one that is very old will stay, and its room is a gain for long.
    for _ in 0..2 {
        fill(&mut log, 60);
    }
    log.seal_heads();
    assert_eq!(log.best_to_clean(u32::MAX), Some(segments[1]));
    log.end_cleaning(segments[1], true);
    log.end_cleaning(segments[2], true);
    assert_eq!(log.best_to_clean(u32::MAX), Some(segments[0]));
    assert_eq!(
        log.emptiest().map(|(_, of)| of),
        Some(log.table.live(segments[0]))
    );
}

#[test]
fn what_something_is_on_its_way_to_or_nothing_is_in_is_not_cleaned() {
    let mut log = log(8);
    let dense = fill(&mut log, 60);
    let target = log.target(Head::Evicted, 0).expect("room");
    log.begin_append(&target, target.room());
    let record = target.address(target.start_len());
    log.table.retain(record, 4000);
    log.seal_heads();
    let best = |log: &SegmentLog| (log.best_to_clean(u32::MAX), log.emptiest().map(|it| it.0));
    assert_eq!(best(&log), (Some(dense), Some(dense)));
    log.end_append(&target, target.room(), true);
    // Where age does not count.
    assert_eq!(best(&log).1, Some(SegmentIndex::of(record)));
    // It is free only once somebody looks.
    log.table.release(record, 4000);
    assert_eq!(best(&log), (Some(dense), Some(dense)));
}

/// There are so many numbers for the places of a use of a segment.
#[test]
fn a_place_is_given_out_anew_only_while_there_are_numbers() {
    let mut log = log(1);
    let target = log.target(Head::Evicted, 0).expect("room");
    log.begin_append(&target, 4096);
    log.table.retain(target.address(target.start_len()), 3000);
    log.end_append(&target, 4096, true);
    let mut given_out = BTreeSet::new();
    for _ in 0..300 {
        let target = log.target(Head::Evicted, 0).expect("room");
        assert!(given_out.insert((target.offset, target.sequence)));
        log.begin_append(&target, 4096);
        log.end_append(&target, 4096, false);
    }
    let last = given_out.last().map(|&(_, sequence)| sequence);
    assert_eq!(last, Some(target.sequence + MAX_RETRIES));
}
