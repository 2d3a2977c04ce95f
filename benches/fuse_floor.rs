//! The floor of the FUSE figures: a block device that keeps nothing, served until stdin closes.
//!
//! `cargo bench --bench fuse_floor -- DIR BYTES [THREADS]` prints `ready`; measure `DIR/disk`, or a loop
//! device on it. What is left of a figure above this is the engine's; what is not, the
//! transport's.

use std::io::{self, Read};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use uzram::fuse::{Mount, MountOptions};
use uzram::{BlockDevice, Extent, PageState, Result, parse_size};

struct Nothing {
    bytes: u64,
}

impl BlockDevice for Nothing {
    fn size(&self) -> u64 {
        self.bytes
    }

    /// Leaves in `buf` what was there.
    fn read(&self, _offset: u64, _buf: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(&self, range: Range<u64>, visit: &mut dyn FnMut(Extent) -> ControlFlow<()>) {
        let _ = visit(Extent {
            offset: range.start,
            len: range.end - range.start,
            state: PageState::Resident,
        });
    }
}

fn main() -> ExitCode {
    // cargo adds its own "--bench".
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let (dir, bytes, threads) = match words.as_slice() {
        [dir, bytes] => (dir, parse_size(bytes), None),
        [dir, bytes, threads] => (dir, parse_size(bytes), threads.parse().ok()),
        _ => {
            eprintln!("usage: fuse_floor DIR BYTES [THREADS]");
            return ExitCode::from(2);
        }
    };
    let served = bytes.map_err(|error| error.to_string()).and_then(|bytes| {
        let mut options = MountOptions::default();
        options.threads = threads;
        Mount::start_bare(Arc::new(Nothing { bytes }), &PathBuf::from(dir), options)
            .map_err(|error| error.to_string())
    });
    match served {
        Ok(mount) => {
            println!("ready");
            // Ends with whoever started it; the mount goes when it is dropped.
            let _ = io::stdin().read(&mut [0]);
            drop(mount);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("fuse_floor: {error}");
            ExitCode::FAILURE
        }
    }
}
