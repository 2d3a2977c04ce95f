//! Requests that wait hold up none behind them, and what is answered has happened.

use std::collections::BTreeSet;
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::thread;

use support::noise;
use uzram::PageState;

use crate::client::*;
use crate::device::FLUSH_RANGE;

const MIB: u64 = 1 << 20;

/// Reads a simple reply to any request: its cookie and error.
fn any_reply<S: std::io::Read + std::io::Write>(client: &mut Client<S>) -> (u64, u32) {
    assert_eq!(client.be32(), 0x6744_6698);
    let error = client.be32();
    (client.be64(), error)
}

#[test]
fn a_small_read_that_waits_lets_those_behind_it_pass() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(0, 8192);
    let mut client = fixture.simple();
    device.shut(4096..8192);
    let slow = client.request(READ, 0, 4096, 4096, &[]);
    device.await_waiting(1);
    let quick = client.request(READ, 0, 0, 4096, &[]);
    assert_eq!(any_reply(&mut client), (quick, 0));
    assert_eq!(client.receive(4096), device.bytes(0..4096));
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    assert_eq!(client.receive(4096), device.bytes(4096..8192));
}

#[test]
fn a_large_write_that_waits_lets_those_behind_it_pass() {
    let fixture = serve();
    let device = &fixture.device;
    device.shut(MIB..MIB + 1);
    let mut client = fixture.simple();
    let data = noise(3, 256 << 10);
    let slow = client.request(WRITE, FUA, MIB, 256 << 10, &data);
    device.await_waiting(1);
    let quick = client.request(READ, 0, 0, 512, &[]);
    assert_eq!(any_reply(&mut client), (quick, 0));
    client.receive(512);
    // Nothing is flushed for a write that has not taken effect.
    assert_eq!(device.flushes.load(Ordering::SeqCst), 0);
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    assert_eq!(device.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(device.bytes(MIB as usize..MIB as usize + data.len()), data);
}

#[test]
fn a_small_write_that_waits_lets_those_behind_it_pass() {
    let fixture = serve();
    let device = &fixture.device;
    let mut client = fixture.simple();
    device.shut(0..4096);
    let slow = client.request(WRITE, 0, 0, 4, b"more");
    device.await_waiting(1);
    let quick = client.request(WRITE, 0, 8192, 4, b"free");
    assert_eq!(any_reply(&mut client), (quick, 0));
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    assert_eq!(device.bytes(0..4), b"more");
}

#[test]
fn what_waits_for_a_flush_lets_those_behind_it_pass_and_shares_the_next() {
    let fixture = serve();
    let device = &fixture.device;
    device.shut(FLUSH_RANGE);
    let mut client = fixture.simple();
    let slow = [
        client.request(WRITE, FUA, 0, 4, b"some"),
        client.request(WRITE_ZEROES, FUA, MIB, 4096, &[]),
        client.request(FLUSH, 0, 0, 0, &[]),
    ];
    let quick = client.request(WRITE, 0, 2 * MIB, 4, b"free");
    assert_eq!(any_reply(&mut client), (quick, 0));
    // It has taken effect, though nobody was told yet.
    assert_eq!(device.bytes(0..4), b"some");
    device.await_waiting(1);
    device.shut(0..0);
    for request in slow {
        assert_eq!(any_reply(&mut client), (request, 0));
    }
    // Nothing that took effect after the first had begun is durable with it.
    assert_eq!(device.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn more_than_may_wait_for_a_flush_are_all_told_of_its_failure() {
    const REQUESTS: u64 = 1100;
    let fixture = serve();
    let device = &fixture.device;
    let mut client = fixture.simple();
    device.break_range(FLUSH_RANGE);
    device.shut(FLUSH_RANGE);
    let mut unanswered: BTreeSet<_> = (0..REQUESTS)
        .map(|i| client.request(WRITE, FUA, i * 4096, 4, b"some"))
        .collect();
    // The connection itself waits for one, beside a worker.
    device.await_waiting(2);
    device.shut(0..0);
    for _ in 0..REQUESTS {
        let (request, error) = any_reply(&mut client);
        assert_eq!(error, EIO);
        assert!(unanswered.remove(&request), "{request} twice");
    }
    device.break_range(0..0);
    let well = client.request(WRITE, FUA, 0, 4, b"some");
    assert_eq!(any_reply(&mut client), (well, 0));
    assert_eq!(device.flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn what_has_no_payload_lets_those_behind_it_pass_too() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(0, 8192);
    device.set_state(1, PageState::WrittenBack);
    device.shut(4096..8192);
    let mut client = fixture.simple();
    let slow = client.request(CACHE, 0, 4096, 4096, &[]);
    device.await_waiting(1);
    let quick = client.request(READ, 0, 0, 512, &[]);
    assert_eq!(any_reply(&mut client), (quick, 0));
    client.receive(512);
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    assert_eq!(device.state(1), PageState::Resident);

    device.shut(0..4096);
    let slow = client.request(TRIM, FUA, 100, 100, &[]);
    device.await_waiting(1);
    let quick = client.request(WRITE, 0, 8192, 4, b"free");
    assert_eq!(any_reply(&mut client), (quick, 0));
    assert_eq!(device.flushes.load(Ordering::SeqCst), 0);
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    assert_eq!(device.flushes.load(Ordering::SeqCst), 1);
    assert_eq!(device.bytes(100..200), [0; 100]);
}

#[test]
fn a_disconnect_waits_for_what_is_under_way() {
    let fixture = serve();
    let device = &fixture.device;
    device.shut(0..1);
    let mut client = fixture.simple();
    let data = noise(5, 1 << 20);
    let slow = client.request(WRITE, 0, 0, 1 << 20, &data);
    device.await_waiting(1);
    client.request(DISC, 0, 0, 0, &[]);
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
    client.assert_closed();
    assert!(device.bytes(0..1 << 20) == data);
}

#[test]
fn another_connection_is_served_while_one_has_all_it_may_have_under_way() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(0, 4 << 20);
    device.shut(0..32 * MIB);
    let mut stuck = fixture.structured();
    for _ in 0..4 {
        stuck.request(READ, 0, 0, 1 << 20, &[]);
    }
    device.await_waiting(4);
    let mut other = fixture.structured();
    other.request(READ, 0, 40 * MIB, 512, &[]);
    assert_eq!(other.assemble(40 * MIB, 512), [0; 512]);
    device.shut(0..0);
}

#[test]
fn large_requests_pass_while_others_keep_every_worker_waiting() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(40 << 20, 1 << 20);
    device.shut(0..32 * MIB);
    let cores = thread::available_parallelism().unwrap().get();
    let mut stuck = Vec::new();
    // Each may have as many requests under way as two cores have workers.
    for _ in 0..cores.div_ceil(2) {
        let mut client = fixture.simple();
        for page in 0..16 {
            client.request(WRITE, 0, page * 4096, 4096, &[1; 4096]);
        }
        stuck.push(client);
    }
    device.await_waiting(4 * cores);
    let mut other = fixture.structured();
    other.request(READ, 0, 40 * MIB, 1 << 20, &[]);
    let expected = device.bytes(40 << 20..41 << 20);
    assert!(other.assemble(40 * MIB, 1 << 20) == expected);
    device.shut(0..0);
}

#[test]
fn a_write_left_half_sent_gives_back_what_it_had() {
    let fixture = serve();
    let device = &fixture.device;
    let data = noise(7, 1 << 20);
    // More than there are buffers or workers.
    let cores = thread::available_parallelism().unwrap().get();
    for _ in 0..40.max(5 * cores) {
        let mut client = fixture.simple();
        client.request(WRITE, 0, 0, 1 << 20, &data[..100_000]);
        client.stream.shutdown(Shutdown::Write).expect("open");
        client.assert_closed();
    }
    // Only a worker lets the request behind a large one that waits pass.
    let mut client = fixture.simple();
    device.shut(MIB..MIB + 1);
    let slow = client.request(WRITE, 0, MIB, 256 << 10, &data[..256 << 10]);
    device.await_waiting(1);
    let quick = client.request(READ, 0, 0, 512, &[]);
    assert_eq!(any_reply(&mut client), (quick, 0));
    client.receive(512);
    device.shut(0..0);
    assert_eq!(any_reply(&mut client), (slow, 0));
}

#[test]
fn a_large_request_that_fails_in_part_fails_once() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(0, 4 << 20);
    device.break_range(MIB + 4096..MIB + 8192);
    let mut client = fixture.structured();
    client.request(WRITE, 0, 0, 4 << 20, &noise(9, 4 << 20));
    assert_eq!(client.structured_error().0, ENOSPC);
    client.request(READ, 0, 0, 4 << 20, &[]);
    let chunks = client.structured_reply();
    let errors = chunks.iter().filter(|c| c.kind == CHUNK_ERROR_OFFSET);
    assert_eq!(errors.count(), 1);
    assert_eq!(chunks.last().expect("chunks").be32(0), EIO);
    client.request(READ, 0, 8192, 512, &[]);
    assert_eq!(client.assemble(8192, 512), device.bytes(8192..8704));
}
