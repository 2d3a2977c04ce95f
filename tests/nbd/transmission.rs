//! Commands, their replies and their errors.

use std::sync::atomic::Ordering;

use support::noise;
use uzram::PageState;

use crate::client::*;
use crate::device::SIZE;

const MIB: u32 = 1 << 20;

#[test]
fn written_bytes_are_read_back_at_any_alignment_and_size() {
    let fixture = serve();
    let mut simple = fixture.simple();
    let mut structured = fixture.structured();
    for (offset, length) in [
        (0, 1),
        (4095, 2),
        (12_288, 4096),
        (65_537, 100_000),
        (262_144, 262_144),
        (1_000_001, 3_000_003),
        (8 << 20, 32 << 20),
        (4_000_003, 40 << 20),
        (8 << 20, 64 << 20),
    ] {
        let data = noise(offset ^ 7, length);
        simple.request(WRITE, 0, offset, length as u32, &data);
        assert_eq!(simple.simple_reply(0).0, 0);
        structured.request(READ, 0, offset, length as u32, &[]);
        assert!(structured.assemble(offset, length) == data, "{offset}");

        let data = noise(offset ^ 9, length);
        structured.request(WRITE, FUA, offset, length as u32, &data);
        assert_eq!(structured.simple_reply(0).0, 0);
        simple.request(READ, 0, offset, length as u32, &[]);
        let (error, read) = simple.simple_reply(length);
        assert!(error == 0 && read == data, "{offset}");
        let range = offset as usize..offset as usize + length;
        assert!(fixture.device.bytes(range) == data, "{offset}");
    }
}

#[test]
fn requests_sent_at_once_are_answered_each_in_order() {
    let fixture = serve();
    let mut client = fixture.simple();
    let mut batch = Vec::new();
    for i in 0..500u64 {
        batch.extend(request_bytes(WRITE, 0, i, i * 4096, 4096));
        batch.extend(noise(i, 4096));
        batch.extend(request_bytes(READ, 0, 1000 + i, i * 4096, 4096));
    }
    let mut writer = client.stream.try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || {
        std::io::Write::write_all(&mut writer, &batch).expect("the server receives");
    });
    for i in 0..500 {
        assert_eq!((client.be32(), client.be32()), (0x6744_6698, 0));
        assert_eq!(client.be64(), i);
        assert_eq!((client.be32(), client.be32()), (0x6744_6698, 0));
        assert_eq!(client.be64(), 1000 + i);
        assert_eq!(client.receive(4096), noise(i, 4096));
    }
    sender.join().expect("everything was sent");
}

#[test]
fn a_request_that_trickles_in_is_served_like_any_other() {
    let fixture = serve();
    let mut client = fixture.simple();
    let mut bytes = request_bytes(WRITE, 0, 1, 100, 50);
    bytes.extend(noise(5, 50));
    for byte in bytes {
        client.send(&[byte]);
    }
    assert_eq!(client.receive(16)[4..8], [0; 4]);
    assert_eq!(fixture.device.bytes(100..150), noise(5, 50));
}

#[test]
fn out_of_range_requests_fail_and_the_stream_stays_in_step() {
    let fixture = serve();
    let mut simple = fixture.simple();
    let mut structured = fixture.structured();
    for (command, error) in [
        (READ, EINVAL),
        (TRIM, EINVAL),
        (CACHE, EINVAL),
        (BLOCK_STATUS, EINVAL),
        (WRITE, ENOSPC),
        (WRITE_ZEROES, ENOSPC),
    ] {
        for offset in [SIZE - 1, SIZE, u64::MAX - 1, u64::MAX] {
            let payload: &[u8] = if command == WRITE { b"xy" } else { b"" };
            simple.request(command, 0, offset, 2, payload);
            assert_eq!(simple.simple_reply(0).0, error, "{command} {offset}");
            structured.request(command, 0, offset, 2, payload);
            assert_eq!(structured.structured_error().0, error, "{command} {offset}");
        }
    }
    structured.request(READ, 0, 0, 4096, &[]);
    assert_eq!(structured.assemble(0, 4096), [0; 4096]);
}

#[test]
fn oversized_requests_fail_and_the_stream_stays_in_step() {
    let fixture = serve();
    let mut simple = fixture.simple();
    let mut structured = fixture.structured();
    let over = 64 * MIB + 1;
    for length in [over, u32::MAX] {
        structured.request(READ, 0, 0, length, &[]);
        let within = u64::from(length) <= SIZE;
        let expected = if within { EOVERFLOW } else { EINVAL };
        assert_eq!(structured.structured_error().0, expected);
        simple.request(READ, 0, 0, length, &[]);
        assert_eq!(simple.simple_reply(0).0, EINVAL);
        simple.request(BLOCK_STATUS, 0, 0, length, &[]);
        assert_eq!(simple.simple_reply(0).0, EINVAL);
    }
    structured.request(CACHE, 0, 0, over, &[]);
    assert_eq!(structured.structured_error().0, EOVERFLOW);
    structured.request(READ, DF, 0, 2 * MIB, &[]);
    assert_eq!(structured.structured_error().0, EOVERFLOW);
    structured.request(READ, 0, 0, 4096, &[]);
    assert_eq!(structured.assemble(0, 4096), [0; 4096]);
    // The payload of one that is refused for another reason is read to its end.
    let most = 64 * MIB;
    let beyond = SIZE - u64::from(most) + 1;
    structured.request(WRITE, 0, beyond, most, &noise(1, most as usize));
    assert_eq!(structured.structured_error().0, ENOSPC);
    structured.request(READ, 0, SIZE - 4096, 4096, &[]);
    assert_eq!(structured.assemble(SIZE - 4096, 4096), [0; 4096]);
}

#[test]
fn unknown_commands_and_flags_fail_and_the_stream_stays_in_step() {
    let fixture = serve();
    let mut client = fixture.structured();
    for command in [8, 9, 255, u16::MAX] {
        client.request(command, 0, 0, 4096, &[]);
        assert_eq!(client.structured_error().0, EINVAL);
    }
    for (command, flags) in [
        (READ, NO_HOLE),
        (READ, 1 << 5),
        (WRITE, DF),
        (WRITE, 1 << 15),
        (TRIM, REQ_ONE),
        (FLUSH, FAST_ZERO),
        (CACHE, NO_HOLE),
        (BLOCK_STATUS, DF),
        (WRITE_ZEROES, REQ_ONE),
    ] {
        let payload: &[u8] = if command == WRITE { b"data" } else { b"" };
        client.request(command, flags, 0, 4, payload);
        assert_eq!(client.structured_error().0, EINVAL, "{command} {flags:#x}");
    }
    client.request(FLUSH, 0, 4096, 0, &[]);
    assert_eq!(client.structured_error().0, EINVAL);
    let mut simple = fixture.simple();
    simple.request(READ, DF, 0, 4096, &[]);
    assert_eq!(simple.simple_reply(0).0, EINVAL);
    simple.request(12, 0, 0, 0, &[]);
    assert_eq!(simple.simple_reply(0).0, EINVAL);
}

#[test]
fn length_0_is_no_reason_to_hang_up() {
    let fixture = serve();
    let mut simple = fixture.simple();
    let mut structured = fixture.structured();
    for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
        for offset in [0, 77, SIZE] {
            simple.request(command, 0, offset, 0, &[]);
            assert_eq!(simple.simple_reply(0).0, 0, "{command}");
        }
    }
    structured.request(READ, 0, 0, 0, &[]);
    let chunks = structured.structured_reply();
    assert_eq!((chunks.len(), chunks[0].kind), (1, CHUNK_NONE));
    structured.request(BLOCK_STATUS, 0, 0, 0, &[]);
    assert_eq!(structured.structured_error().0, EINVAL);
}

#[test]
fn flush_and_fua_reach_the_device() {
    let fixture = serve();
    let flushes = || fixture.device.flushes.load(Ordering::SeqCst);
    let mut client = fixture.simple();
    for (command, flags, length, payload, expected) in [
        (WRITE, 0, 1, &b"x"[..], 0),
        (FLUSH, 0, 0, b"", 1),
        (WRITE, FUA, 1, b"x", 2),
        (TRIM, FUA, 4096, b"", 3),
        (WRITE_ZEROES, FUA, 4096, b"", 4),
        (FLUSH, FUA, 0, b"", 5),
        (READ, FUA, 0, b"", 5),
        (CACHE, FUA, 4096, b"", 5),
    ] {
        client.request(command, flags, 0, length, payload);
        assert_eq!(client.simple_reply(0).0, 0);
        assert_eq!(flushes(), expected, "{command}");
    }
}

/// The descriptors of a BLOCK_STATUS reply, for each context in order of its id.
fn statuses(chunks: &[Chunk]) -> Vec<Vec<(u32, u32)>> {
    let mut all = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        assert_eq!(chunk.kind, CHUNK_STATUS);
        assert_eq!(chunk.be32(0), i as u32 + 1);
        let count = (chunk.payload.len() - 4) / 8;
        let descriptor = |n: usize| (chunk.be32(4 + 8 * n), chunk.be32(8 + 8 * n));
        all.push((0..count).map(descriptor).collect());
    }
    all
}

#[test]
fn trimmed_and_zeroed_ranges_read_as_zeroes_and_say_what_they_are() {
    let fixture = serve();
    let mut client = fixture.structured();
    client.request(WRITE, 0, 0, MIB, &noise(3, MIB as usize));
    client.simple_reply(0);
    for (command, flags, offset) in [
        (TRIM, 0, 0),
        (WRITE_ZEROES, 0, 4096),
        (WRITE_ZEROES, NO_HOLE, 8192),
        (WRITE_ZEROES, FAST_ZERO | NO_HOLE, 12_288),
        (WRITE_ZEROES, FAST_ZERO, 16_384),
    ] {
        client.request(command, flags, offset, 4096, &[]);
        assert_eq!(client.simple_reply(0).0, 0);
    }
    client.request(WRITE_ZEROES, 0, 20_490, 10, &[]);
    assert_eq!(client.simple_reply(0).0, 0);
    client.request(READ, 0, 0, 65_536, &[]);
    let mut expected = noise(3, 65_536);
    expected[..20_480].fill(0);
    expected[20_490..20_500].fill(0);
    assert!(client.assemble(0, 65_536) == expected);

    client.request(BLOCK_STATUS, 0, 100, 65_436, &[]);
    let chunks = client.structured_reply();
    assert_eq!(
        statuses(&chunks),
        [
            vec![(8092, 3), (8192, 2), (4096, 3), (45_056, 0)],
            vec![(8092, 0), (8192, 1), (4096, 0), (45_056, 2)]
        ]
    );
}

#[test]
fn one_extent_means_one_extent() {
    let fixture = serve();
    fixture.device.set_state(1, PageState::WrittenBack);
    fixture.device.set_state(2, PageState::SameFilled);
    let mut client = fixture.structured();
    for (offset, expected) in [
        (0, [vec![(4096, 3)], vec![(4096, 0)]]),
        (4096, [vec![(8192, 0)], vec![(4096, 3)]]),
        (8191, [vec![(4097, 0)], vec![(1, 3)]]),
        (12_288, [vec![(65_536, 3)], vec![(65_536, 0)]]),
    ] {
        client.request(BLOCK_STATUS, REQ_ONE, offset, 65_536, &[]);
        let chunks = client.structured_reply();
        assert_eq!(statuses(&chunks), expected, "{offset}");
        assert!(chunks[1].done && !chunks[0].done);
    }
}

#[test]
fn a_status_reply_is_cut_where_it_would_grow_too_long() {
    let fixture = serve();
    let pages = SIZE as usize / 4096;
    for page in (0..pages).step_by(2) {
        fixture.device.set_state(page, PageState::Resident);
    }
    let mut client = fixture.structured();
    client.request(BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
    for context in statuses(&client.structured_reply()) {
        assert_eq!(context.len(), 8192);
        assert!(context.iter().all(|&(length, _)| length == 4096));
    }
}

#[test]
fn block_status_without_a_context_is_refused() {
    let fixture = serve();
    let mut client = fixture.simple();
    client.request(BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(client.simple_reply(0).0, EINVAL);
}

#[test]
fn holes_are_sent_as_holes_unless_fragments_are_declined() {
    let fixture = serve();
    let mut client = fixture.structured();
    client.request(WRITE, 0, 16_384, 8192, &noise(8, 8192));
    client.simple_reply(0);
    client.request(READ, 0, 1000, 64_000, &[]);
    let kinds: Vec<_> = client
        .structured_reply()
        .iter()
        .map(|chunk| (chunk.kind, chunk.be64(0), chunk.payload.len()))
        .collect();
    assert_eq!(
        kinds,
        [
            (CHUNK_HOLE, 1000, 12),
            (CHUNK_DATA, 16_384, 8200),
            (CHUNK_HOLE, 24_576, 12)
        ]
    );
    client.request(READ, DF, 1000, 64_000, &[]);
    let chunks = client.structured_reply();
    assert_eq!((chunks.len(), chunks[0].kind), (1, CHUNK_DATA));
    assert_eq!(chunks[0].payload[8..], fixture.device.bytes(1000..65_000));
}

#[test]
fn a_large_empty_read_is_holes_alone() {
    let fixture = serve();
    let mut client = fixture.structured();
    client.request(READ, 0, 0, 32 * MIB, &[]);
    let chunks = client.structured_reply();
    let (end, holes) = chunks.split_last().expect("chunks");
    assert_eq!(end.kind, CHUNK_NONE);
    assert!(holes.iter().all(|chunk| chunk.kind == CHUNK_HOLE));
    let total: u32 = holes.iter().map(|chunk| chunk.be32(8)).sum();
    assert_eq!(total, 32 * MIB);
}

#[test]
fn failed_requests_name_their_errors_and_the_connection_goes_on() {
    let fixture = serve();
    let broken = 10 << 20;
    fixture.device.break_range(broken..broken + 4096);
    fixture
        .device
        .set_state(broken as usize / 4096, PageState::WrittenBack);
    let mut simple = fixture.simple();
    let mut structured = fixture.structured();

    simple.request(READ, 0, broken, 4096, &[]);
    assert_eq!(simple.simple_reply(4096).0, EIO);
    simple.request(CACHE, 0, broken - 4096, 8192, &[]);
    assert_eq!(simple.simple_reply(0).0, EIO);
    // In pieces: the one that fails is not the last.
    simple.request(WRITE, 0, broken - MIB as u64, 3 * MIB, &noise(1, 3 << 20));
    assert_eq!(simple.simple_reply(0).0, ENOSPC);
    simple.request(READ, 0, 0, 512, &[]);
    assert_eq!(simple.simple_reply(512), (0, vec![0; 512]));

    structured.request(WRITE, 0, broken, 4, b"data");
    let (error, message) = structured.structured_error();
    assert_eq!(
        (error, message.as_str()),
        (ENOSPC, "no space: a test took it")
    );
    structured.request(READ, 0, broken - 8192, 65_536, &[]);
    let chunks = structured.structured_reply();
    let last = chunks.last().expect("a chunk");
    assert_eq!(last.kind, CHUNK_ERROR_OFFSET);
    assert_eq!(last.be32(0), EIO);
    let at = last.be64(last.payload.len() - 8);
    assert!((broken - 8192..=broken).contains(&at), "{at}");
    structured.request(READ, 0, 0, 512, &[]);
    assert_eq!(structured.assemble(0, 512), [0; 512]);
}

#[test]
fn a_long_simple_read_that_fails_half_way_is_cut_off() {
    let fixture = serve();
    fixture.device.break_range(3 << 20..4 << 20);
    let mut client = fixture.simple();
    client.request(READ, 0, 0, 8 * MIB, &[]);
    assert_eq!((client.be32(), client.be32()), (0x6744_6698, 0));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut client.stream, &mut rest).expect("an end of file");
    assert!(rest.len() < 8 << 20);
    fixture.assert_serves();
}

#[test]
fn disconnect_answers_what_came_before_and_ignores_what_comes_after() {
    let fixture = serve();
    let mut client = fixture.simple();
    let mut bytes = request_bytes(WRITE, 0, 1, 0, 4);
    bytes.extend(b"data");
    bytes.extend(request_bytes(DISC, 0, 2, 0, 0));
    bytes.extend(request_bytes(WRITE, 0, 3, 0, 4));
    bytes.extend(b"late");
    client.send(&bytes);
    let reply = client.receive(16);
    assert_eq!(reply[4..8], [0; 4]);
    client.assert_closed();
    assert_eq!(fixture.device.bytes(0..4), b"data");
}

#[test]
fn large_reads_of_clients_that_say_no_more_cost_others_nothing() {
    let fixture = serve();
    let mut silent = Vec::new();
    for _ in 0..12 {
        let mut client = fixture.structured();
        client.request(READ, DF, 0, MIB, &[]);
        let chunks = client.structured_reply();
        assert_eq!(chunks.len(), 1);
        assert_eq!(
            (chunks[0].kind, chunks[0].payload.len()),
            (CHUNK_DATA, 8 + MIB as usize)
        );
        silent.push(client);
    }
    // Another's error is still told rather than hung up on.
    let mut client = fixture.simple();
    let broken = u64::from(MIB) - 4096;
    fixture.device.break_range(broken..broken + 4096);
    client.request(READ, 0, 0, MIB, &[]);
    assert_eq!(client.simple_reply(0).0, EIO);
    client.request(READ, 0, 0, 4096, &[]);
    assert_eq!(client.simple_reply(4096).0, 0);
}
