//! The control protocol over a real socket: every request, every bound, and both ends' deaths.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;
use serde_json::{Value, json};
use tempfile::TempDir;
use uzram::control::{Client, IDLE_TIMEOUT, MAX_CLIENTS, MAX_LINE_BYTES, Request, Server};
use uzram::{BlockDevice, Device, DeviceConfig, Error, Who};

/// Far longer than anything here takes, far shorter than a hang.
const HANG: Duration = Duration::from_secs(20);

const MIB: u64 = 1 << 20;

struct Served {
    server: Server,
    device: Arc<Device>,
    dir: TempDir,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let device = Arc::new(Device::new(&DeviceConfig::new(MIB)).expect("a device"));
        let path = dir.path().join("control.sock");
        let server = Server::start(&path, Arc::clone(&device)).expect("serves");
        Self {
            server,
            device,
            dir,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path(), HANG).expect("connects")
    }

    /// A connection to say anything over.
    fn raw(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(self.path()).expect("connects");
        stream.set_read_timeout(Some(HANG)).expect("sets");
        BufReader::new(stream)
    }
}

fn ask(connection: &mut BufReader<UnixStream>, line: &[u8]) -> Value {
    connection.get_mut().write_all(line).expect("writes");
    receive(connection)
}

fn receive(connection: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    connection.read_line(&mut line).expect("reads");
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn remote(error: &Error) -> Errno {
    assert!(matches!(error, Error::Remote { .. }), "{error:?}");
    assert!(!error.to_string().contains('\n'));
    error.errno().into()
}

#[test]
fn every_request_is_answered() {
    let served = Served::start();
    let mut client = served.client();
    served.device.write(0, &[1; 8192]).expect("writes");
    let stats = client.stat().expect("stat");
    assert_eq!((stats.disksize, stats.orig_data_size), (MIB, 8192));
    assert_eq!(client.get("disksize").expect("get"), "1048576\n");
    client.set("mem_limit", "64M").expect("set");
    client.compact().expect("compact");
    let scrubbed = client.scrub(0).expect("scrub");
    assert_eq!((scrubbed.next, scrubbed.intact), (None, 0));
    assert_eq!(client.mark_idle("all").expect("idle"), 0);
    client.reset().expect("reset");
    assert_eq!(client.stat().expect("stat").orig_data_size, 0);

    let statistics = client.call(&Request::Stat).expect("stat");
    for key in [
        "disksize",
        "mem_used_total",
        "backing_bytes_live",
        "rss_bytes",
    ] {
        assert!(statistics[key].is_u64(), "{key} in {statistics}");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let served = Served::start();
    let mut client = served.client();
    let mut set = |name: &str, value: &str| remote(&client.set(name, value).expect_err("no"));
    assert_eq!(set("mem_limit", "lots\nand lots"), Errno::INVAL);
    assert_eq!(set("mm_stat", "1"), Errno::ACCESS);
    assert_eq!(set("disksize", "15T"), Errno::FBIG);
    assert_eq!(set("colour", "red"), Errno::NOENT);
    assert_eq!(set("idle", "some"), Errno::INVAL);
    assert_eq!(set("writeback", "cold"), Errno::INVAL);
    assert_eq!(set("writeback", "page_index=1000"), Errno::RANGE);
    let unwritable = client.write_back("type=idle").expect_err("no backing");
    assert_eq!(remote(&unwritable), Errno::NODEV);
    let unreadable = client.get("compact").expect_err("no");
    assert_eq!(remote(&unreadable), Errno::ACCESS);

    let user = served.device.enter(Who::default());
    served.device.write(0, &[1; 4096]).expect("writes");
    assert_eq!(remote(&client.reset().expect_err("no")), Errno::BUSY);
    let set = client.set("reset", "1").expect_err("no");
    assert_eq!(remote(&set), Errno::BUSY);
    assert_eq!(client.stat().expect("goes on").orig_data_size, 4096);
    drop(user);
    client.set("reset", "1").expect("nobody uses it any more");
    assert_eq!(client.stat().expect("stat").orig_data_size, 0);
}

#[test]
fn a_bad_request_does_not_end_the_connection() {
    let served = Served::start();
    let mut raw = served.raw();
    for bad in [
        &b"\n"[..],
        b"stat\n",
        b"{\"op\":\"format\"}\n",
        b"{\"op\":\"set\",\"attribute\":\"mem_limit\",\"value\":64}\n",
        b"\xff\xfe\n",
    ] {
        let reply = ask(&mut raw, bad);
        assert_eq!(reply["errno"], 22, "{reply}");
    }
    // Two in one go are answered in order.
    let first = ask(
        &mut raw,
        b"{\"op\":\"get\",\"attribute\":\"initstate\"}\n{\"op\":\"reset\"}\n",
    );
    assert_eq!(first, json!({"ok": "1\n"}));
    assert_eq!(receive(&mut raw), json!({"ok": null}));
}

#[test]
fn a_line_too_long_is_the_last() {
    let served = Served::start();
    let mut raw = served.raw();
    // The server may close while this is still being written.
    let _ = raw.get_mut().write_all(&vec![b' '; 2 * MAX_LINE_BYTES]);
    let mut line = String::new();
    if raw.read_line(&mut line).is_ok_and(|len| len > 0) {
        assert!(line.contains("\"errno\":7"), "{line}");
    }
    assert!(!matches!(raw.read_line(&mut line), Ok(1..)), "closed");
    served.client().stat().expect("others are served");
}

#[test]
fn a_new_client_takes_the_place_of_the_one_idle_for_longest() {
    const STAT: &[u8] = b"{\"op\":\"get\",\"attribute\":\"initstate\"}\n";
    let served = Served::start();
    let mut clients: Vec<_> = (0..MAX_CLIENTS).map(|_| served.raw()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, STAT), json!({"ok": "1\n"}));
    }
    assert_eq!(ask(&mut served.raw(), STAT), json!({"ok": "1\n"}));
    let last = receive(&mut clients[0]);
    assert_eq!(last["turned_away"], true, "{last}");
    assert_eq!(last["errno"], 11, "{last}");
    assert!(!matches!(clients[0].read_line(&mut String::new()), Ok(1..)));
    for client in &mut clients[1..] {
        assert_eq!(ask(client, STAT), json!({"ok": "1\n"}));
    }
}

#[test]
fn a_client_that_gave_way_comes_again() {
    let served = Served::start();
    let mut clients: Vec<Client> = (0..=MAX_CLIENTS).map(|_| served.client()).collect();
    for _ in 0..2 {
        for client in &mut clients {
            client.stat().expect("served");
        }
    }
    // What was to end a connection ends the one that there is now.
    let hang_up = clients[0].hang_up().expect("a descriptor");
    for client in &mut clients {
        client.stat().expect("served");
    }
    hang_up.hang_up();
    let error = clients[0].stat().expect_err("hung up");
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}

#[test]
fn any_number_of_clients_wait_their_turn() {
    // Each waits for many others.
    const TIMEOUT: Duration = Duration::from_secs(120);
    let served = Served::start();
    thread::scope(|scope| {
        for _ in 0..8 * MAX_CLIENTS {
            scope.spawn(|| {
                for _ in 0..2 {
                    let mut client = Client::connect(&served.path(), TIMEOUT).expect("connects");
                    client.stat().expect("served");
                    client.get("mm_stat").expect("served");
                }
            });
        }
    });
}

#[test]
fn shutdown_waits_for_nobody() {
    let served = Served::start();
    let path = served.path();
    let mode = fs::symlink_metadata(&path)
        .expect("exists")
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    let mut idle = served.client();
    idle.stat().expect("served");
    let mut half = served.raw();
    half.get_mut().write_all(b"{\"op\":").expect("writes");

    const { assert!(IDLE_TIMEOUT.as_secs() > HANG.as_secs()) };
    let start = Instant::now();
    served.server.shutdown();
    assert!(start.elapsed() < HANG);
    assert!(!path.exists());
    assert!(matches!(idle.stat(), Err(Error::Io { .. })));
    assert_eq!(Arc::strong_count(&served.device), 1, "every thread is gone");
    no_server(&path);
}

fn no_server(path: &Path) {
    let error = Client::connect(path, HANG).expect_err("nobody there");
    assert!(matches!(error, Error::Unusable { .. }), "{error:?}");
}

#[test]
fn one_server_lives_at_a_path() {
    let served = Served::start();
    let again = |path: &Path| Server::start(path, Arc::clone(&served.device));
    let error = again(&served.path()).expect_err("refused");
    assert!(error.to_string().contains("already listening"), "{error}");
    served.client().stat().expect("unharmed");

    let dead = served.dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).expect("binds"));
    no_server(&dead);
    let server = again(&dead).expect("replaces what a killed server left");
    Client::connect(&dead, HANG)
        .expect("connects")
        .stat()
        .expect("served");
    drop(server);
    assert!(!dead.exists());
    assert!(again(&served.dir.path().join("no/dir/s")).is_err());
}

#[test]
fn a_silent_server_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let _silent = UnixListener::bind(&path).expect("binds");
    let mut client = Client::connect(&path, Duration::from_millis(50)).expect("connects");
    let start = Instant::now();
    assert_eq!(
        client.stat().expect_err("no answer").errno(),
        Errno::TIMEDOUT
    );
    assert!(start.elapsed() < HANG);
}

/// Words of the protocol, in any order and number, beside bytes of any kind.
fn lines() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"op\"",
            "\"set\"",
            "\"get\"",
            "\"save\"",
            "\"value\"",
            "\"attribute\"",
            "\"mem_limit\"",
            "\"path\"",
            "null",
            "true",
            "-1",
            "1e999",
            "18446744073709551616",
            "\"\\u0000\"",
            "\"/\"",
        ])
        .prop_map(|word| word.as_bytes().to_vec()),
        vec(
            any::<u8>().prop_filter("ends a line", |byte| *byte != b'\n'),
            0..40
        ),
    ];
    vec(vec(word, 0..24).prop_map(|words| words.concat()), 1..6)
}

proptest! {
    #![proptest_config(support::attack::rounds(50))]

    /// Each is answered in one line of JSON, whatever it is, and the device goes on.
    #[test]
    fn lines_of_anything_are_answered(lines in lines()) {
        let served = Served::start();
        let mut raw = served.raw();
        for line in lines {
            let reply = ask(&mut raw, &[&line[..], b"\n"].concat());
            prop_assert!(reply["errno"].is_i64() || reply.get("ok").is_some(), "{}", reply);
        }
        served.client().stat().expect("others are served");
    }
}
