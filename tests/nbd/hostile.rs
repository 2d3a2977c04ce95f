//! What no honest client sends: the shapes of the published bugs of NBD servers. After each one
//! another client is served.

use std::io::{Cursor, Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use uzram::nbd::{ConnectionError, Export, serve_stream};

use crate::client::*;
use crate::device::{MemoryDevice, SIZE};
use support::attack::rounds;
use support::{HANG, noise};

#[test]
fn names_of_any_length_in_any_option() {
    let fixture = serve();
    for length in [257, 4096, 4097, u32::MAX] {
        for option in [EXPORT_NAME, INFO, GO, LIST_META_CONTEXT, SET_META_CONTEXT] {
            // The option claims the name and brings as much of it as is reasonable.
            let mut client = fixture.connect();
            client.greet(3);
            let name = "a".repeat(length.min(5000) as usize);
            if option == EXPORT_NAME {
                client.send_option_header(option, length);
                // It may hang up before it has read this.
                drop(client.stream.write_all(name.as_bytes()));
                client.assert_closed();
                continue;
            }
            let mut data = info_request(&name, &[]);
            data[..4].copy_from_slice(&length.to_be_bytes());
            assert!(client.verdict(option, &data) >= 1 << 31);
            client.go(NAME);
        }
    }
    fixture.assert_serves();
}

#[test]
fn options_of_4_gib() {
    let fixture = serve();
    for option in [
        LIST,
        STARTTLS,
        INFO,
        GO,
        STRUCTURED_REPLY,
        SET_META_CONTEXT,
        77,
    ] {
        for length in [(64 << 10) + 1, 1 << 31, u32::MAX] {
            let mut client = fixture.connect();
            client.greet(3);
            client.send_option_header(option, length);
            let replies = client.option_replies(option);
            assert_eq!(replies.last().expect("a reply").0, REP_ERR_TOO_BIG);
            client.assert_closed();
        }
    }
    fixture.assert_serves();
}

#[test]
fn anything_but_the_handshake_first() {
    let fixture = serve();
    for flags in [4, 0x8000_0001, u32::MAX] {
        let mut client = fixture.connect();
        client.greet(flags);
        client.assert_closed();
    }
    let mut client = fixture.connect();
    client.greet(3);
    client.request(READ, 0, 0, 4096, &[]);
    client.assert_closed();

    let mut client = fixture.connect();
    client.receive(18);
    client.send(b"GET / HTTP/1.1\r\n\r\n");
    client.assert_closed();

    let mut client = fixture.simple();
    client.send_option(LIST, &[0; 64]);
    client.assert_closed();
    fixture.assert_serves();
}

#[test]
fn a_metadata_query_for_structured_replies_that_were_never_agreed() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    let data = queries("x", &["base:allocation"]);
    assert_eq!(client.verdict(SET_META_CONTEXT, &data), REP_ERR_INVALID);
    client.go(NAME);
    client.request(BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(client.simple_reply(0).0, EINVAL);
    fixture.assert_serves();
}

#[test]
fn ranges_near_4_gib_and_past_2_to_the_64() {
    let fixture = serve();
    let mut client = fixture.structured();
    for length in [u32::MAX, u32::MAX - 511, 1 << 31] {
        for offset in [0, 4096, SIZE - 4096, u64::MAX - 4095, u64::MAX] {
            for command in [READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] {
                client.request(command, 0, offset, length, &[]);
                assert_ne!(client.structured_error().0, 0);
            }
        }
    }
    client.request(BLOCK_STATUS, 0, 0, SIZE as u32, &[]);
    assert_eq!(client.structured_reply().len(), 2);
    fixture.assert_serves();
}

#[test]
fn a_payload_that_nobody_would_drain() {
    let fixture = serve();
    for length in [(64 << 20) + 1, u32::MAX] {
        let mut client = fixture.structured();
        client.request(WRITE, 0, 0, length, &noise(1, 100_000));
        assert_eq!(
            client.structured_error().0,
            if length == u32::MAX || u64::from(length) > SIZE {
                ENOSPC
            } else {
                EINVAL
            }
        );
        client.assert_closed();
    }
    fixture.assert_serves();
}

#[test]
fn half_a_write_and_gone() {
    let fixture = serve();
    for (length, sent) in [(4096, 2000), (256 << 10, 100_000), (8 << 20, 3_000_000)] {
        let mut client = fixture.simple();
        client.request(WRITE, 0, 0, length, &noise(2, sent));
        drop(client);
        fixture.assert_serves();
    }
    // A write that fits the buffer takes effect whole or not at all.
    let mut client = fixture.simple();
    client.request(WRITE, 0, 32 << 20, 128 << 10, &noise(2, 100_000));
    client.stream.shutdown(Shutdown::Write).expect("open");
    client.assert_closed();
    assert_eq!(fixture.device.bytes(32 << 20..(32 << 20) + 4096), [0; 4096]);
}

#[test]
fn four_hundred_reads_of_1_mib_that_are_never_read() {
    alone(
        "four_hundred_reads_of_1_mib_that_are_never_read",
        unread_reads,
    );
}

fn unread_reads() {
    let fixture = serve();
    let mut writer = fixture.simple();
    writer.request(WRITE, 0, 0, 1 << 20, &noise(6, 1 << 20));
    writer.simple_reply(0);
    for mut client in [fixture.simple(), fixture.structured()] {
        let before = resident_bytes();
        let reads: Vec<u8> = (0..400)
            .flat_map(|cookie| request_bytes(READ, 0, cookie, 0, 1 << 20))
            .collect();
        client.send(&reads);
        fixture.assert_serves();
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 64 << 20, "{grown} bytes more");
        drop(client);
        fixture.assert_serves();
    }
}

#[test]
fn a_thousand_connections_that_never_speak() {
    alone(
        "a_thousand_connections_that_never_speak",
        silent_connections,
    );
}

fn silent_connections() {
    let fixture = serve();
    let mut established = fixture.simple();
    let before = resident_bytes();
    let mut silent = Vec::new();
    for i in 0..1000 {
        silent.push(fixture.connect());
        if i % 100 == 0 {
            fixture.assert_has_room();
        }
    }
    fixture.assert_has_room();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    established.request(READ, 0, 0, 1, &[]);
    assert_eq!(established.simple_reply(1).0, 0);
}

#[test]
fn a_thousand_connections_with_unread_replies_and_half_sent_writes() {
    alone(
        "a_thousand_connections_with_unread_replies_and_half_sent_writes",
        busy_connections,
    );
}

fn busy_connections() {
    let fixture = serve();
    let mut writer = fixture.simple();
    writer.request(WRITE, 0, 0, 4 << 20, &noise(6, 4 << 20));
    writer.simple_reply(0);
    drop(writer);
    let before = resident_bytes();
    let mut clients = Vec::new();
    for i in 0..1000 {
        let mut client = fixture.connect();
        // Those beyond the limit are hung up on at any point of this.
        let opened = client.stream.read_exact(&mut [0; 18]).is_ok();
        let mut said = 3u32.to_be_bytes().to_vec();
        said.extend(b"IHAVEOPT");
        let go = info_request(NAME, &[]);
        said.extend(GO.to_be_bytes());
        said.extend((go.len() as u32).to_be_bytes());
        said.extend(go);
        if i % 4 == 0 {
            said.extend(request_bytes(READ, 0, 0, 0, 64 << 20));
        } else if i % 2 == 0 {
            said.extend((0..8).flat_map(|c| request_bytes(READ, 0, c, 0, 1 << 20)));
        } else {
            said.extend(request_bytes(WRITE, 0, 0, 0, 64 << 20));
            said.extend(noise(i, 100_000));
        }
        if opened && client.stream.write_all(&said).is_ok() {
            clients.push(client);
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert!(clients.len() >= 100, "{}", clients.len());
    drop(clients);
    // Their places come free as their threads end.
    fixture.assert_has_room();
}

/// Runs a test's `body` in a process of its own, where it can tell what it costs.
fn alone(test: &str, body: fn()) {
    const ALONE: &str = "UZRAM_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", &format!("hostile::{test}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}");
    assert!(said.contains("1 passed"), "{said}");
}

/// This process's resident set.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages = statm.split(' ').nth(1).expect("a second field");
    pages.parse::<u64>().expect("a number") * 4096
}

/// A stream on which a recorded client speaks up to a point and then hangs up.
struct Recorded<'a> {
    said: Cursor<&'a [u8]>,
    heard: Vec<u8>,
}

impl Read for Recorded<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.said.read(buf)
    }
}

impl Write for Recorded<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.heard.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything an honest client says in a short life.
fn conversation() -> Vec<u8> {
    let mut said = 3u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        said.extend(b"IHAVEOPT");
        said.extend(number.to_be_bytes());
        said.extend((data.len() as u32).to_be_bytes());
        said.extend(data);
    };
    option(STRUCTURED_REPLY, &[]);
    option(LIST, &[]);
    option(SET_META_CONTEXT, &queries(NAME, &["base:allocation"]));
    option(INFO, &info_request(NAME, &[0, 3]));
    option(GO, &info_request(NAME, &[0, 3]));
    said.extend(request_bytes(WRITE, 0, 1, 100, 600));
    said.extend(noise(1, 600));
    said.extend(request_bytes(READ, 0, 2, 0, 4096));
    said.extend(request_bytes(BLOCK_STATUS, REQ_ONE, 3, 0, 65_536));
    said.extend(request_bytes(WRITE_ZEROES, NO_HOLE, 4, 0, 4096));
    // Its answer may come after those to what is behind it: that is nothing.
    said.extend(request_bytes(TRIM, FUA, 5, 0, 4096));
    said.extend(request_bytes(DISC, 0, 6, 0, 0));
    said
}

fn play(export: &Export, said: &[u8]) -> (Result<(), ConnectionError>, Vec<u8>) {
    let mut stream = Recorded {
        said: Cursor::new(said),
        heard: Vec::new(),
    };
    let ended = serve_stream(&mut stream, export);
    (ended, stream.heard)
}

fn export() -> Export {
    Export {
        name: NAME.to_owned(),
        device: Arc::new(MemoryDevice::new()),
        read_only: false,
    }
}

#[test]
fn hanging_up_at_every_byte_of_a_conversation() {
    let said = conversation();
    let (ended, whole) = play(&export(), &said);
    ended.expect("an honest conversation");
    let mut heard_before = 0;
    for cut in 0..said.len() {
        let (ended, heard) = play(&export(), &said[..cut]);
        if let Err(fault) = ended {
            assert!(
                matches!(fault, ConnectionError::Connection(_)),
                "{cut}: {fault}"
            );
        }
        // What was said in full was answered, and nothing else.
        assert!(whole.starts_with(&heard), "{cut}");
        assert!(heard.len() >= heard_before, "{cut}");
        heard_before = heard.len();
    }
    assert_eq!(heard_before, whole.len());
}

#[test]
fn hanging_up_at_every_byte_on_a_socket() {
    let said = conversation();
    let fixture = serve();
    for cut in 0..=said.len() {
        // One that still listens hears what a stream of the same bytes hears.
        let mut listener = fixture.connect().stream;
        listener
            .write_all(&said[..cut])
            .expect("it fits the socket");
        listener.shutdown(Shutdown::Write).expect("connected");
        let mut heard = Vec::new();
        listener.read_to_end(&mut heard).expect("a clean end");
        let (_, expected) = play(&export(), &said[..cut]);
        assert!(heard == expected, "{cut}: {} bytes", heard.len());

        // One that is gone leaves its answers unread.
        let mut gone = fixture.connect().stream;
        gone.write_all(&said[..cut]).expect("it fits the socket");
        drop(gone);
        if cut % 64 == 0 {
            fixture.assert_serves();
        }
    }
    fixture.assert_serves();
    let begun = Instant::now();
    fixture.server.shutdown(HANG);
    assert!(begun.elapsed() < HANG / 2, "somebody is still served");
}

#[test]
fn any_flipped_byte_of_a_conversation() {
    let said = conversation();
    let export = export();
    for at in 0..said.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut garbled = said.clone();
            garbled[at] ^= flip;
            // Any end will do but a panic or a hang.
            drop(play(&export, &garbled));
        }
    }
}

/// What is done to a conversation on its way: bytes changed, a piece left out, a piece said twice.
#[derive(Clone, Debug)]
enum Garble {
    Change(usize, u8),
    Cut(usize, usize),
    Repeat(usize, usize),
}

impl Garble {
    fn apply(&self, said: &mut Vec<u8>) {
        let len = said.len();
        match *self {
            Self::Change(at, byte) => said[at % len] = byte,
            Self::Cut(at, count) => {
                let at = at % len;
                said.drain(at..(at + count % 64).min(len - 1).max(at));
            }
            Self::Repeat(at, count) => {
                let at = at % len;
                let piece = said[at..(at + count % 64).min(len)].to_vec();
                said.splice(at..at, piece);
            }
        }
    }
}

fn garbles() -> impl Strategy<Value = Vec<Garble>> {
    // Most of the numbers of the protocol that matter have a byte of these.
    let byte = prop_oneof![
        any::<u8>(),
        Just(0),
        Just(1),
        Just(0x7f),
        Just(0x80),
        Just(0xff)
    ];
    let garble = prop_oneof![
        4 => (any::<usize>(), byte).prop_map(|(at, byte)| Garble::Change(at, byte)),
        1 => any::<(usize, usize)>().prop_map(|(at, count)| Garble::Cut(at, count)),
        1 => any::<(usize, usize)>().prop_map(|(at, count)| Garble::Repeat(at, count)),
    ];
    vec(garble, 1..12)
}

proptest! {
    #![proptest_config(rounds(300))]

    /// Any end will do but a panic or a hang; and the next client is served by the same export.
    #[test]
    fn a_conversation_garbled_at_random(garbles in garbles()) {
        let mut said = conversation();
        for garble in &garbles {
            garble.apply(&mut said);
        }
        let export = export();
        drop(play(&export, &said));
        let (ended, _) = play(&export, &conversation());
        ended.expect("an honest conversation");
    }
}
