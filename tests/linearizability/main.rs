//! Clients that read and write the same pages at once, while the device evicts, writes back, cleans,
//! compacts and recompresses them: what they saw must have an order.
//!
//! Pages are the unit of writes, but part of a page can be written as well. So each half of a page
//! is a register of its own; pages below [`WHOLE`] are only ever written whole, and must never be
//! seen in two halves.

mod checker;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use nbd::client::{NbdClient, handshake};
use rustix::fs::OFlags;
use support::Random;
use uzram::fuse::{Mount, MountOptions};
use uzram::nbd::{Address, Server, ServerConfig};
use uzram::{
    Algorithm, BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, Recompression,
    Selection,
};

use checker::{Operation, Value, check};

const PAGE: u64 = PAGE_SIZE as u64;
const HALF: usize = PAGE_SIZE / 2;
/// Pages that the clients contend for.
const PAGES: u64 = 40;
/// Those of them that are only written whole.
const WHOLE: u64 = 20;
/// Pages behind them that push them out of memory.
const OTHERS: u64 = 2000;
const CLIENTS: u64 = 4;
const DURATION: Duration = Duration::from_secs(3);

/// A way to the device.
trait Disk {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;
}

impl Disk for Arc<Device> {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        BlockDevice::read(&**self, offset, buf).map_err(io::Error::other)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        BlockDevice::write(&**self, offset, data).map_err(io::Error::other)
    }
}

impl Disk for File {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }
}

impl Disk for NbdClient<UnixStream> {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(offset))?;
        self.read_exact(buf)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.seek(SeekFrom::Start(offset))?;
        self.write_all(data)
    }
}

/// Half a page that says its value throughout and compresses to about a third.
fn fill(value: Value, half: &mut [u8]) {
    let mut random = Random(value);
    for chunk in half.as_chunks_mut::<32>().0 {
        chunk.fill(0);
        if value != 0 {
            chunk[..8].copy_from_slice(&value.to_le_bytes());
            chunk[8..10].copy_from_slice(&(random.below(1 << 16) as u16).to_le_bytes());
        }
    }
}

/// The value that half a page says.
fn value(half: &[u8]) -> Value {
    let value = Value::from_le_bytes(half[..8].try_into().expect("8 bytes"));
    let mut expected = [0; HALF];
    fill(value, &mut expected);
    assert!(half == expected, "half a page of {value:#x} is torn");
    value
}

/// One client's operations, by register.
type History = Vec<Vec<Operation>>;

fn register(page: u64, half: u64) -> usize {
    (page * 2 + half) as usize
}

/// Reads and writes until `stop`.
fn client(number: u64, disk: &mut dyn Disk, began: Instant, stop: &AtomicBool) -> History {
    let mut history = vec![Vec::new(); register(PAGES, 0)];
    let mut random = Random(number);
    let mut buf = [0; PAGE_SIZE];
    let now = || began.elapsed().as_nanos() as u64 + 1;
    for count in 1.. {
        if stop.load(SeqCst) {
            break;
        }
        let page = random.below(PAGES);
        let operation = random.below(10);
        let written = (number + 1) << 40 | count;
        let halves = match operation {
            0..4 => 0..2,
            4..6 if page >= WHOLE => {
                let half = random.below(2);
                half..half + 1
            }
            _ => 0..2,
        };
        let bytes = halves.start as usize * HALF..halves.end as usize * HALF;
        let offset = page * PAGE + bytes.start as u64;
        let is_write = operation < 4 || halves.end - halves.start == 1;
        let begin = now();
        if is_write {
            let data = &mut buf[bytes];
            data.as_chunks_mut::<HALF>()
                .0
                .iter_mut()
                .for_each(|half| fill(written, half));
            disk.write(offset, data).expect("there is room");
        } else {
            disk.read(offset, &mut buf).expect("readable");
        }
        let end = now();
        let mut seen = [written; 2];
        if !is_write {
            seen = [value(&buf[..HALF]), value(&buf[HALF..])];
            assert!(
                page >= WHOLE || seen[0] == seen[1],
                "page {page} is in two halves: {seen:x?}"
            );
        }
        for half in halves {
            history[register(page, half)].push(Operation {
                is_write,
                value: seen[half as usize],
                begin,
                end,
            });
        }
    }
    history
}

/// Does everything to the pages that leaves their data as it is.
fn disturb(device: &Device, stop: &AtomicBool) {
    let mut random = Random(77);
    let mut page = [0; PAGE_SIZE];
    while !stop.load(SeqCst) {
        match random.below(8) {
            0..3 => {
                for _ in 0..20 {
                    page.as_chunks_mut::<HALF>().0.iter_mut().for_each(|half| {
                        fill(random.below(1 << 30), half);
                    });
                    let at = PAGES + random.below(OTHERS);
                    device.write(at * PAGE, &page).expect("there is room");
                }
            }
            3 => {
                device.evict(random.below(1 << 20)).expect("there is room");
            }
            4 => {
                device.compact();
            }
            5 => {
                let pages = format!("page_indexes=0-{}", PAGES - 1);
                let selection = Selection::parse(&pages, device.pages()).expect("a selection");
                device.write_back(selection).expect("there is room");
            }
            6 => {
                let request = Recompression::parse("algo=zstd").expect("parameters");
                device.recompress(&request).expect("an algorithm");
            }
            _ => {
                let algorithm = match random.below(2) {
                    0 => Algorithm::Lz4,
                    _ => Algorithm::Zstd { level: 1 },
                };
                device
                    .set_algorithm(algorithm)
                    .expect("it is in this build");
            }
        }
    }
}

fn device(dir: &Path) -> Arc<Device> {
    let mut config = DeviceConfig::new((PAGES + OTHERS) * PAGE);
    config.shards = Some(2);
    config.mem_limit = Some(128 * PAGE);
    config.backing = Some(BackingConfig::new(dir.join("spill")));
    Arc::new(Device::new(&config).expect("a device"))
}

/// Has clients contend, each by a way of its own, and checks what they saw.
fn contend<D: Disk + Send>(device: &Device, mut connect: impl FnMut() -> D) {
    let (began, stop) = (Instant::now(), AtomicBool::new(false));
    let histories: Vec<History> = std::thread::scope(|scope| {
        let stop = &stop;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let mut disk = connect();
                scope.spawn(move || client(number, &mut disk, began, stop))
            })
            .collect();
        let disturber = scope.spawn(move || disturb(device, stop));
        while began.elapsed() < DURATION
            && !disturber.is_finished()
            && !clients.iter().any(ScopedJoinHandle::is_finished)
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, SeqCst);
        disturber.join().expect("nothing failed");
        clients
            .into_iter()
            .map(|client| client.join().expect("nothing was torn"))
            .collect()
    });
    let mut operations = 0;
    for register in 0..register(PAGES, 0) {
        let history: Vec<Operation> = histories
            .iter()
            .flat_map(|history| history[register].iter().copied())
            .collect();
        operations += history.len();
        if let Err(violation) = check(&history) {
            panic!(
                "half {} of page {}: {violation}",
                register % 2,
                register / 2
            );
        }
    }
    let stats = device.stats();
    assert!(operations > 1000, "only {operations} operations");
    assert!(
        stats.bd_reads > 0 && stats.recompressed_pages > 0,
        "{stats:?}"
    );
    device.check();
}

#[test]
fn the_device_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = device(dir.path());
    contend(&device, || Arc::clone(&device));
}

#[test]
fn connections_over_nbd() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = device(dir.path());
    let socket = dir.path().join("nbd.sock");
    let config = ServerConfig::new("disk", vec![Address::Unix(socket.clone())]);
    let served: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let server = Server::start(config, served).expect("the server starts");
    contend(&device, || {
        let mut stream = UnixStream::connect(&socket).expect("connects");
        let export = handshake(&mut stream, b"disk").expect("the handshake");
        NbdClient::new(stream, &export)
    });
    server.shutdown(Duration::from_secs(5));
}

#[test]
fn files_over_fuse() {
    let root = rustix::process::geteuid().is_root();
    if !root
        || OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .is_err()
    {
        // Straight to the descriptor: the harness keeps what a passing test prints to itself.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED: files_over_fuse: needs root and /dev/fuse"
        );
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let device = device(dir.path());
    let mountpoint = dir.path().join("mnt");
    std::fs::create_dir(&mountpoint).expect("a directory");
    let options = MountOptions::default();
    let mount = Mount::start(Arc::clone(&device), &mountpoint, options).expect("mounts");
    contend(&device, || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(mount.disk_path())
            .expect("opens disk")
    });
    mount.unmount().expect("unmounts");
}
