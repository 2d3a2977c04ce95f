//! The kernel's zram, where this machine has a `/dev/zram0` that nobody uses.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use uzram::PAGE_SIZE;

use crate::Contender;

const DEVICE: &str = "/dev/zram0";
const ATTRIBUTES: &str = "/sys/block/zram0";

/// Held while the device is used, so that benchmarks take turns.
const LOCK: &str = "/tmp/zram0.lock";

/// Bytes of a request: direct I/O wants its memory aligned, so data is copied there.
const REQUEST: usize = 1 << 20;

/// `/dev/zram0` with lz4, empty at first, and reset at the end.
pub(crate) struct Zram {
    device: Option<File>,
    /// Memory for requests, of which the part from `aligned` on is used.
    buffer: Vec<u8>,
    aligned: usize,
    _lock: File,
}

impl Zram {
    /// Takes the device; `None`, with a line that says why, if that is not possible.
    pub(crate) fn new(size: u64) -> Option<Self> {
        Self::open(size)
            .inspect_err(|why| eprintln!("SKIPPED: kernel zram: {why}"))
            .ok()
    }

    fn open(size: u64) -> Result<Self, String> {
        if !Path::new(ATTRIBUTES).exists() {
            return Err(format!("no {DEVICE} on this machine"));
        }
        let lock = File::create(LOCK).map_err(|error| format!("{LOCK}: {error}"))?;
        lock.lock().map_err(|error| format!("{LOCK}: {error}"))?;
        if read("disksize")?.trim() != "0" {
            return Err(format!("{DEVICE} is in use"));
        }
        set("comp_algorithm", "lz4")?;
        set("disksize", &size.to_string())?;
        let device = OpenOptions::new()
            .write(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32)
            .open(DEVICE)
            .map_err(|error| format!("{DEVICE}: {error}"));
        let buffer = vec![0; REQUEST + PAGE_SIZE];
        let mut zram = Self {
            device: None,
            aligned: buffer.as_ptr().align_offset(PAGE_SIZE),
            buffer,
            _lock: lock,
        };
        zram.device = Some(device?);
        Ok(zram)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        self.device = None;
        // Others have it open for a moment after it was closed: whatever looks at new devices.
        for _ in 0..50 {
            if set("reset", "1").is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        eprintln!("{DEVICE} cannot be reset");
    }
}

impl Contender for Zram {
    fn write(&mut self, at: u64, data: &[u8]) {
        let buffer = &mut self.buffer[self.aligned..][..data.len()];
        buffer.copy_from_slice(data);
        let device = self.device.as_ref().expect("open until it is dropped");
        device.write_all_at(buffer, at).expect("no limit");
    }

    fn compact(&mut self) {
        set("compact", "1").expect("an attribute of every zram");
    }

    fn density(&self) -> f64 {
        let stat = read("mm_stat").expect("an attribute of every zram");
        // orig_data_size, compr_data_size, mem_used_total, ...
        let columns: Vec<f64> = stat
            .split_whitespace()
            .filter_map(|column| column.parse().ok())
            .collect();
        columns[2] / columns[1]
    }
}

fn read(name: &str) -> Result<String, String> {
    std::fs::read_to_string(Path::new(ATTRIBUTES).join(name))
        .map_err(|error| format!("{name}: {error}"))
}

fn set(name: &str, value: &str) -> Result<(), String> {
    std::fs::write(Path::new(ATTRIBUTES).join(name), value)
        .map_err(|error| format!("{name}: {error}"))
}
