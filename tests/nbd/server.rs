//! Starting, limits and stopping.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nbd::client::{NbdClient, handshake};
use rustix::io::Errno;
use support::{HANG, eventually, noise};
use uzram::nbd::{Address, Server, ServerConfig};
use uzram::{Device, DeviceConfig, PageState};

use crate::client::*;
use crate::device::MemoryDevice;

/// A generous bound on what must be quick.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn tcp_and_unix_serve_the_same_device() {
    let fixture = serve_with(|config| {
        config
            .addresses
            .push("tcp:127.0.0.1:0".parse().expect("an address"));
    });
    let tcp = &fixture.server.addresses()[1];
    let mut over_tcp = connect_tcp(tcp);
    over_tcp.greet(3);
    over_tcp.go(NAME);
    over_tcp.request(WRITE, 0, 4096, 5, b"hello");
    assert_eq!(over_tcp.simple_reply(0).0, 0);
    let mut over_unix = fixture.simple();
    over_unix.request(READ, 0, 4096, 5, &[]);
    assert_eq!(over_unix.simple_reply(5).1, b"hello");
}

#[test]
fn the_nbd_crates_client_reads_and_writes() {
    let fixture = serve();
    let mut stream = fixture.connect().stream;
    let export = handshake(&mut stream, NAME.as_bytes()).expect("the handshake");
    let mut client = NbdClient::new(&mut stream, &export);
    client.write_all(&noise(4, 10_000)).expect("a write");
    std::io::Seek::seek(&mut client, std::io::SeekFrom::Start(0)).expect("a seek");
    let mut read = vec![0; 10_000];
    client.read_exact(&mut read).expect("a read");
    assert_eq!(read, noise(4, 10_000));
}

#[test]
fn what_makes_no_sense_does_not_start() {
    let start = |config: ServerConfig| {
        Server::start(config, Arc::new(MemoryDevice::new())).expect_err("it makes no sense")
    };
    let dir = tempfile::tempdir().expect("a directory");
    let here = || vec![Address::Unix(dir.path().join("nbd.sock"))];
    assert!(start(ServerConfig::new("x", Vec::new())).is_usage());
    assert!(start(ServerConfig::new("x".repeat(4097), here())).is_usage());
    let mut config = ServerConfig::new("x", here());
    config.max_connections = 0;
    assert!(start(config).is_usage());
    let nowhere = Address::Unix(dir.path().join("missing/nbd.sock"));
    let error = start(ServerConfig::new("x", vec![nowhere])).to_string();
    assert!(error.contains("missing/nbd.sock"), "{error}");
    // A later address that fails takes the earlier ones' sockets with it.
    let live = UnixListener::bind(dir.path().join("live.sock")).expect("a free path");
    let mut addresses = here();
    addresses.push(Address::Unix(dir.path().join("live.sock")));
    let error = start(ServerConfig::new("x", addresses)).to_string();
    assert!(error.contains("address in use"), "{error}");
    assert!(!dir.path().join("nbd.sock").exists());
    drop(live);
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once_and_a_place_comes_free() {
    let fixture = serve_with(|config| config.max_connections = 2);
    let mut first = fixture.simple();
    let mut second = fixture.simple();
    // An answer shows that the handshake is over on the other side as well.
    for client in [&mut first, &mut second] {
        client.request(READ, 0, 0, 1, &[]);
        assert_eq!(client.simple_reply(1).0, 0);
    }
    let mut third = fixture.connect();
    third.assert_closed();
    second.request(READ, 0, 0, 1, &[]);
    assert_eq!(second.simple_reply(1).0, 0);
    drop(first);
    let deadline = Instant::now() + SOON;
    loop {
        let mut client = fixture.connect();
        if client.stream.read_exact(&mut [0; 18]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the place never came free");
    }
}

#[test]
fn a_handshake_takes_a_place_and_the_oldest_gives_way() {
    let fixture = serve_with(|config| config.max_connections = 2);
    let mut established = fixture.simple();
    established.request(READ, 0, 0, 1, &[]);
    assert_eq!(established.simple_reply(1).0, 0);
    let mut older = fixture.connect();
    older.stream.read_exact(&mut [0; 18]).expect("a greeting");
    let mut newer = fixture.connect();
    newer.stream.read_exact(&mut [0; 18]).expect("a greeting");
    older.assert_closed();
    established.request(READ, 0, 0, 2, &[]);
    assert_eq!(established.simple_reply(2).0, 0);
}

#[test]
fn a_client_that_dawdles_in_the_handshake_is_cut_off() {
    let fixture = serve_with(|config| config.handshake_timeout = Duration::from_millis(200));
    let mut silent = fixture.connect();
    let mut chatty = fixture.connect();
    chatty.greet(3);
    // Progress does not buy time.
    let begun = Instant::now();
    let mut bytes = b"IHAVEOPT".iter().chain([0; 1 << 16].iter());
    while begun.elapsed() < SOON {
        let Some(byte) = bytes.next() else { break };
        if chatty.stream.write_all(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(begun.elapsed() < SOON);
    silent.receive(18);
    silent.assert_closed();
    fixture.assert_serves();
}

#[test]
fn a_client_in_transmission_may_be_silent() {
    let fixture = serve_with(|config| config.handshake_timeout = Duration::from_millis(200));
    let mut client = fixture.simple();
    std::thread::sleep(Duration::from_millis(500));
    client.request(READ, 0, 0, 1, &[]);
    assert_eq!(client.simple_reply(1).0, 0);
}

#[test]
fn shutdown_answers_what_was_received_and_leaves_nothing() {
    let fixture = serve();
    let mut client = fixture.simple();
    let mut silent = fixture.connect();
    silent.greet(3);
    let mut idle = fixture.structured();
    let mut bytes = Vec::new();
    for i in 0..100 {
        bytes.extend(request_bytes(WRITE, 0, i, i * 4096, 512));
        bytes.extend(noise(i, 512));
    }
    client.send(&bytes);
    let begun = Instant::now();
    fixture.server.shutdown(SOON);
    assert!(begun.elapsed() < SOON, "nothing had to be waited for");
    for i in 0..100u64 {
        let reply = client.receive(16);
        assert_eq!(reply[4..8], [0; 4]);
        assert_eq!(reply[8..], i.to_be_bytes()[..]);
    }
    client.assert_closed();
    silent.assert_closed();
    idle.assert_closed();
    assert!(!fixture.socket.exists());
}

#[test]
fn shutdown_does_not_wait_for_clients_that_go_on_or_do_not_read() {
    let fixture = serve_with(|config| {
        config
            .addresses
            .push("tcp:127.0.0.1:0".parse().expect("an address"));
    });
    let mut busy = connect_tcp(&fixture.server.addresses()[1]);
    busy.greet(3);
    busy.go(NAME);
    let mut writer = busy.stream.try_clone().expect("a second handle");
    let stubborn = std::thread::spawn(move || {
        let mut request = request_bytes(WRITE, 0, 0, 0, 4096);
        request.extend([7; 4096]);
        while writer.write_all(&request).is_ok() {}
    });
    let reader = std::thread::spawn(move || std::io::copy(&mut busy.stream, &mut std::io::sink()));
    let mut deaf = fixture.simple();
    for _ in 0..64 {
        deaf.request(READ, 0, 0, 1 << 20, &[]);
    }
    let begun = Instant::now();
    fixture.server.shutdown(Duration::from_millis(500));
    assert!(begun.elapsed() < SOON);
    stubborn.join().expect("the writer was cut off");
    // A reset is as good an end as any.
    drop(reader.join().expect("the reader was cut off"));
}

#[test]
fn shutdown_waits_for_no_payload_that_was_not_sent() {
    // Those that fit the buffer, and one that is executed piece by piece.
    for (length, sent) in [(4096, 1000), (128 << 10, 100_000), (8 << 20, 3_000_000)] {
        let fixture = serve();
        let mut client = fixture.simple();
        let whole = client.request(WRITE, 0, 0, 4, b"done");
        client.request(WRITE, 0, 1 << 20, length, &noise(2, sent));
        let begun = Instant::now();
        fixture.server.shutdown(HANG);
        assert!(begun.elapsed() < SOON, "{length}: {:?}", begun.elapsed());
        let reply = client.receive(16);
        assert_eq!(reply[4..8], [0; 4]);
        assert_eq!(reply[8..], whole.to_be_bytes());
        client.assert_closed();
        assert_eq!(fixture.device.bytes(0..4), b"done");
        let (start, end) = (1 << 20, (1 << 20) + length as usize);
        let unsent = &fixture.device.bytes(start..end)[sent..];
        assert!(unsent.iter().all(|byte| *byte == 0), "{length}");
        if length <= 128 << 10 {
            assert_eq!(fixture.device.state(256), PageState::Empty);
        }
    }
}

#[test]
fn shutdown_waits_for_what_is_under_way() {
    let fixture = serve();
    let device = &fixture.device;
    device.write_pattern(0, 4096);
    device.shut(0..1);
    let mut client = fixture.simple();
    let mut missing: HashSet<u64> = (0..64)
        .map(|_| client.request(READ, 0, 0, 4096, &[]))
        .collect();
    device.await_waiting(1);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| fixture.server.shutdown(HANG));
        eventually("closed to clients", || !fixture.socket.exists());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!stopped.is_finished(), "requests are left");
        device.shut(0..0);
        let expected = device.bytes(0..4096);
        for _ in 0..64 {
            assert_eq!(client.receive(8)[4..], [0; 4]);
            assert!(missing.remove(&client.be64()), "answered before");
            assert!(client.receive(4096) == expected);
        }
        client.assert_closed();
    });
    assert!(missing.is_empty());
}

#[test]
fn shutdown_does_not_wait_forever_for_the_device() {
    let fixture = serve();
    let device = &fixture.device;
    device.shut(0..1);
    let mut client = fixture.simple();
    for _ in 0..64 {
        client.request(READ, 0, 0, 4096, &[]);
    }
    device.await_waiting(1);
    let begun = Instant::now();
    fixture.server.shutdown(Duration::from_millis(100));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    client.assert_closed();
    // What waited ends in peace when the device comes to.
    device.shut(0..0);
    eventually("let go", || device.waiting() == 0);
}

#[test]
fn a_dropped_server_is_gone_and_another_can_take_its_place() {
    let fixture = serve();
    let address = fixture.server.addresses().to_vec();
    let device = Arc::clone(&fixture.device);
    let Fixture { server, socket, .. } = &fixture;
    let error = Server::start(ServerConfig::new(NAME, address.clone()), device)
        .expect_err("the first is alive");
    assert!(error.to_string().contains("address in use"), "{error}");
    server.shutdown(SOON);
    assert!(!socket.exists());
    let device = Arc::clone(&fixture.device);
    let second = Server::start(ServerConfig::new(NAME, address), device).expect("free again");
    assert!(socket.exists());
    fixture.assert_serves();
    drop(second);
    assert!(!socket.exists());
}

#[test]
fn a_device_is_not_reset_under_its_clients() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("nbd.sock");
    let device = Arc::new(Device::new(&DeviceConfig::new(1 << 20)).expect("a device"));
    let config = ServerConfig::new(NAME, vec![Address::Unix(socket.clone())]);
    let _server = Server::start(config, Arc::clone(&device) as _).expect("the server starts");
    let stored = || device.stats().orig_data_size;

    let mut silent = Client::new(UnixStream::connect(&socket).expect("it listens"));
    silent.greet(3);
    device
        .reset()
        .expect("a client in its handshake uses no data");

    let mut client = Client::new(UnixStream::connect(&socket).expect("it listens"));
    client.greet(3);
    client.go(NAME);
    client.request(WRITE, 0, 0, 4096, &[7; 4096]);
    assert_eq!(client.simple_reply(0).0, 0);
    let error = device.reset().expect_err("a client is connected");
    assert_eq!(error.errno(), Errno::BUSY);
    assert_eq!(stored(), 4096);

    client.request(DISC, 0, 0, 0, &[]);
    client.assert_closed();
    eventually("left", || !device.is_in_use());
    device.reset().expect("nobody is connected");
    assert_eq!(stored(), 0);
}
