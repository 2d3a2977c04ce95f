//! A device that spills to a backing of this program's own: here a file that has no name.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use uzram::Device;
use uzram::backing::{Backing, Store, conformance};

struct Nameless(File);

impl Store for Nameless {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn discard(&self, _segment: Range<u64>) {
        // The space is used again.
    }

    fn path(&self) -> &Path {
        Path::new("a file without a name")
    }
}

impl Backing for Nameless {
    fn capacity(&self) -> io::Result<u64> {
        Ok(1 << 30)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

fn nameless() -> io::Result<Nameless> {
    let path = std::env::temp_dir().join(format!("uzram-own-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(path)?;
    Ok(Nameless(file))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // This belongs in a test of the program's.
    conformance::run(|| nameless().expect("a file"));

    let device = Device::builder(64 << 20)
        .spill_to(Arc::new(nameless()?))
        .build()?;
    for page in 0..1024_u64 {
        device.write_at(page * 4096, &page.to_le_bytes().repeat(512))?;
    }
    device.evict(1 << 20)?;
    assert!(device.stats().written_back_pages > 0);
    let mut read = [0; 8];
    device.read_at(1023 * 4096, &mut read)?;
    assert_eq!(read, 1023_u64.to_le_bytes());
    Ok(())
}
