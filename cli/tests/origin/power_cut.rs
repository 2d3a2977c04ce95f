//! The server is killed at any moment, over and over, and what is in the image is held against the
//! record of what was acknowledged: each page is some one write of it, whole, not older than the
//! last one that a flush had made durable, and not one that was never made.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::client::{Client, PAGE};
use support::Random;
use support::World;

const PAGES: u64 = 4096;

/// Connections that write, each to pages of its own.
const WRITERS: u64 = 3;

/// What a page holds after its `version`th write: no two are the same, every line of it tells, and
/// it compresses to something.
fn contents(page: u64, version: u64) -> Vec<u8> {
    let mut numbers = Random(page << 32 | version);
    let mut bytes = Vec::with_capacity(PAGE);
    while bytes.len() < PAGE {
        bytes.extend(page.to_le_bytes());
        bytes.extend(version.to_le_bytes());
        bytes.extend((numbers.below(u64::MAX) as u32).to_le_bytes());
        bytes.extend([0; 12]);
    }
    bytes
}

/// What is known of a page.
#[derive(Clone, Debug, Default)]
struct History {
    /// The last version that was sent, and that was acknowledged.
    sent: u64,
    acknowledged: u64,
    /// The last that is durable.
    durable: u64,
    /// Versions that are zeroes.
    zeroes: Vec<u64>,
}

impl History {
    /// The next version, which is on its way from here on.
    fn send(&mut self, zeroes: bool) -> u64 {
        self.sent += 1;
        if zeroes {
            self.zeroes.push(self.sent);
        }
        self.sent
    }

    /// Which version `found` is; fails if it may not be what the page is.
    fn accept(&mut self, page: u64, found: &[u8]) -> Result<(), String> {
        let version = if found.iter().all(|&byte| byte == 0) {
            let known = self.zeroes.iter().rev().copied();
            known
                .chain((self.durable == 0).then_some(0))
                .next()
                .ok_or("zeroes")?
        } else {
            let version = u64::from_le_bytes(found[8..16].try_into().unwrap());
            if found != contents(page, version) {
                return Err(format!("page {page} is torn"));
            }
            version
        };
        if !(self.durable..=self.sent).contains(&version) {
            return Err(format!("page {page} is version {version}: {self:?}"));
        }
        *self = Self {
            sent: self.sent,
            acknowledged: version,
            durable: version,
            zeroes: self
                .zeroes
                .last()
                .copied()
                .filter(|&v| v == version)
                .into_iter()
                .collect(),
        };
        Ok(())
    }
}

type Record = Mutex<Vec<History>>;

/// Writes, discards and flushes until the server is gone.
fn work(socket: &Path, record: &Record, writer: u64, numbers: &mut Random) {
    let Ok(mut client) = Client::connect(socket) else {
        return;
    };
    let own = PAGES / WRITERS;
    loop {
        let most = if numbers.below(4) == 0 { 64 } else { 4 };
        let count = 1 + numbers.below(most);
        // Half of it goes to a few pages, which are written again while they are on their way.
        let range = if numbers.below(2) == 0 {
            40
        } else {
            own - count
        };
        let first = writer * own + numbers.below(range);
        let pages = first..first + count;
        let offset = first * PAGE as u64;
        let length = count as usize * PAGE;
        let done = match numbers.below(16) {
            0 => flush(&mut client, record),
            kind @ (1 | 2) => {
                change(record, pages.clone(), true);
                let done = if kind == 1 {
                    client.trim(offset, length)
                } else {
                    client.write_zeroes(offset, length)
                };
                done.map(|()| acknowledge(record, pages, false))
            }
            kind => {
                let versions = change(record, pages.clone(), false);
                let pairs = pages.clone().zip(versions);
                let data: Vec<u8> = pairs.flat_map(|(p, v)| contents(p, v)).collect();
                let fua = kind == 3;
                let done = client.write(offset, &data, fua);
                done.map(|()| acknowledge(record, pages, fua))
            }
        };
        if done.is_err() {
            return;
        }
    }
}

fn change(record: &Record, pages: std::ops::Range<u64>, zeroes: bool) -> Vec<u64> {
    let mut record = record.lock().unwrap();
    pages
        .map(|page| record[page as usize].send(zeroes))
        .collect()
}

fn acknowledge(record: &Record, pages: std::ops::Range<u64>, durable: bool) {
    let mut record = record.lock().unwrap();
    for page in pages {
        let history = &mut record[page as usize];
        history.acknowledged = history.sent;
        if durable {
            history.durable = history.sent;
        }
    }
}

/// A flush is of all that was acknowledged, over any connection, before it was sent.
fn flush(client: &mut Client, record: &Record) -> std::io::Result<()> {
    let before: Vec<u64> = record
        .lock()
        .unwrap()
        .iter()
        .map(|h| h.acknowledged)
        .collect();
    client.flush()?;
    for (history, version) in record.lock().unwrap().iter_mut().zip(before) {
        history.durable = history.durable.max(version);
    }
    Ok(())
}

/// What the rounds came to.
#[derive(Debug, Default)]
struct Totals {
    versions: u64,
    durable: u64,
    lost: u64,
}

fn cut(rounds: u64, seed: u64) {
    let world = World::new();
    // Not in memory, where direct I/O would be something else.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("image");
    File::create(&path)
        .unwrap()
        .set_len(PAGES * PAGE as u64)
        .unwrap();
    let socket = world.path("nbd");
    let (origin, nbd) = (
        format!("--origin={}", path.display()),
        format!("--nbd=unix:{}", socket.display()),
    );
    let record = Record::new(vec![History::default(); PAGES as usize]);
    let mut totals = Totals::default();
    for round in 0..rounds {
        let mut numbers = Random(seed + round);
        let pool = ["zsmalloc", "zbud", "z3fold"][round as usize % 3];
        let pool = format!("--pool={pool}");
        let shards = format!("--shards={}", 1 + round % 2);
        let mut server = world.serve(&["x", &origin, &nbd, "--mem-limit=1M", &pool, &shards]);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (socket, record) = (&socket, &record);
                scope.spawn(move || {
                    let mut numbers = Random(((seed + round) << 8) | writer);
                    work(socket, record, writer, &mut numbers);
                });
            }
            thread::sleep(Duration::from_millis(20 + numbers.below(250)));
            server.kill_9();
        });
        // What the server had asked of the disk is done, or not: it is no longer there.
        let mut image = Vec::new();
        File::open(&path)
            .and_then(|mut file| file.read_to_end(&mut image))
            .unwrap();
        let mut record = record.lock().unwrap();
        for (page, found) in image.chunks(PAGE).enumerate() {
            let history = &mut record[page];
            let (sent, durable) = (history.sent, history.durable);
            let accepted = history.accept(page as u64, found);
            accepted.unwrap_or_else(|error| panic!("round {round}, seed {seed}: {error}"));
            totals.durable += u64::from(durable > 0);
            totals.lost += sent - history.durable;
        }
    }
    totals.versions = record
        .lock()
        .unwrap()
        .iter()
        .map(|history| history.sent)
        .sum();
    assert!(
        totals.durable > 0 && totals.versions > rounds * 100,
        "{totals:?}"
    );
    println!("{rounds} rounds with seed {seed}: {totals:?}");
    drop(fs::remove_file(&path));
}

#[test]
fn what_a_flush_made_durable_outlives_the_server() {
    cut(20, 1);
}

/// For `scripts/soak.sh power`: as many rounds as `UZRAM_SOAK_ROUNDS` says.
#[test]
#[ignore = "takes minutes"]
fn as_often_as_asked() {
    let rounds = std::env::var("UZRAM_SOAK_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = now.unwrap().as_secs();
    cut(rounds.unwrap_or(500), seed);
}
