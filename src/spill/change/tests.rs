use super::super::log::tests::{fill, log};
use super::*;
use crate::spill::{FaultyBacking, Head, RecordAddress, Store};

const SEGMENTS: u32 = 8;

/// Has another backing, to which is appended from here on.
fn attach(log: &mut SegmentLog) {
    let backing = Arc::new(FaultyBacking::new(SEGMENTS));
    assert!(log.attach(backing, SEGMENTS).is_ok());
}

/// The place of the backing that the next append goes to.
fn place_of_next(log: &mut SegmentLog) -> StoreIndex {
    let target = log.target(Head::Evicted, 0).expect("room");
    SegmentIndex::of(target.address(0)).store()
}

#[test]
fn what_comes_back_is_appended_to_again_and_what_came_in_its_place_leaves() {
    let mut log = log(SEGMENTS);
    fill(&mut log, 50);
    attach(&mut log);
    // Half a segment, which stays open.
    let target = log.target(Head::Evicted, 0).expect("room");
    log.begin_append(&target, 1 << 20);
    log.table.retain(target.address(target.start_len()), 4000);
    log.end_append(&target, 1 << 20, true);
    log.reinstate();
    assert_eq!(place_of_next(&mut log), StoreIndex(0));
    let second = SegmentIndex::of(target.address(0));
    assert_eq!(log.leave(), Leave::Move(second));
    log.table.release(target.address(target.start_len()), 4000);
    assert_eq!(log.leave(), Leave::Done);
    assert!(log.stores.of(second).is_none());
    assert_eq!(place_of_next(&mut log), StoreIndex(0));
}

#[test]
fn what_has_left_does_not_come_back() {
    let mut log = log(SEGMENTS);
    attach(&mut log);
    assert_eq!(log.leave(), Leave::Done);
    log.reinstate();
    assert_eq!(place_of_next(&mut log), StoreIndex(1));
}

#[test]
fn the_one_that_might_come_back_leaves_last() {
    let mut log = log(SEGMENTS);
    let first = fill(&mut log, 50);
    attach(&mut log);
    let second = fill(&mut log, 50);
    log.retire();
    assert_eq!(log.leave(), Leave::Move(first));
    log.end_cleaning(first, true);
    assert_eq!(log.leave(), Leave::Damaged);
    log.reinstate();
    assert_eq!(place_of_next(&mut log), second.store());
}

#[test]
fn a_backing_does_not_leave_while_something_is_on_its_way_there() {
    for written in [true, false] {
        let mut log = log(SEGMENTS);
        let target = log.target(Head::Evicted, 0).expect("room");
        log.begin_append(&target, 4096);
        log.retire();
        assert_eq!(log.leave(), Leave::Complete);
        let segment = SegmentIndex::of(target.address(0));
        if written {
            log.table.retain(target.address(target.start_len()), 3000);
        }
        log.end_append(&target, 4096, written);
        let then = match written {
            true => Leave::Move(segment),
            false => Leave::Done,
        };
        assert_eq!(log.leave(), then);
    }
}

#[test]
fn what_could_not_be_read_to_leave_comes_last() {
    let mut log = log(SEGMENTS);
    let segments = [(); 2].map(|()| fill(&mut log, 50));
    log.retire();
    log.begin_reading(segments[0], Default::default())
        .expect("there");
    log.end_reading(segments[0], false);
    assert_eq!(log.leave(), Leave::Move(segments[1]));
    log.end_cleaning(segments[1], true);
    assert_eq!(log.leave(), Leave::Move(segments[0]));
}

#[test]
fn a_backing_that_shrinks_holds_no_more_than_that() {
    const LESS: u32 = 3;
    let mut log = log(SEGMENTS);
    let segments = [(); LESS as usize + 2].map(|()| fill(&mut log, 50));
    log.seal_heads();
    assert!(!log.set_capacity(LESS));
    for segment in segments {
        let record = RecordAddress::from_byte(segment.byte());
        while log.table.live(segment) > 0 {
            log.table.release(record, 4000);
        }
        log.end_cleaning(segment, false);
    }
    assert!(log.set_capacity(LESS));
    assert_eq!(log.free_segments(), LESS);
    for segment in &segments[..LESS as usize] {
        assert_eq!(fill(&mut log, 50), *segment);
    }
    log.seal_heads();
    assert_eq!(log.free_segments(), 0);
    assert!(log.target(Head::Evicted, 0).is_err());
}

/// A log that knows of an image with so many segments, of which half is live.
fn with_image(segments: usize) -> (SegmentLog, Vec<SegmentIndex>) {
    let mut log = log(SEGMENTS);
    let image: Arc<dyn Store> = Arc::new(FaultyBacking::new(SEGMENTS));
    log.stores.add_image(image).expect("a place");
    let half = 0..SEGMENT_BYTES as u32 / 2;
    // The last has an index only.
    let mut records = vec![vec![half]; segments];
    records.push(Vec::new());
    log.import(Imported(records));
    let indices: Vec<_> = (0..segments as u32).map(SegmentIndex::in_image).collect();
    for segment in &indices {
        let record = RecordAddress::from_byte(segment.byte());
        log.table.retain(record, 4000);
    }
    log.check(&|segment| log.table.live(segment));
    (log, indices)
}

#[test]
fn an_image_waits_for_what_can_be_read_later_and_is_gone_when_it_is_empty() {
    let (mut log, segments) = with_image(3);
    assert_eq!(log.next_of_image(), NextOfImage::Move(segments[0]));
    log.begin_reading(segments[0], Default::default())
        .expect("there");
    log.end_reading(segments[0], false);
    // Those behind it, before it comes again.
    for &segment in &segments[1..] {
        assert_eq!(log.next_of_image(), NextOfImage::Move(segment));
        log.end_cleaning(segment, true);
    }
    assert_eq!(log.next_of_image(), NextOfImage::Later);
    log.end_cleaning(segments[0], true);
    assert_eq!(log.next_of_image(), NextOfImage::Damaged);
    for segment in &segments {
        assert!(log.stores.image().is_some());
        log.table
            .release(RecordAddress::from_byte(segment.byte()), 4000);
        log.next_of_image();
    }
    assert_eq!(log.next_of_image(), NextOfImage::Done);
    assert!(log.stores.image().is_none());
}
