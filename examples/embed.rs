//! A compressed RAM disk of 1 GiB in this process, which spills to a file above 64 MiB.
//!
//! Run it with: cargo run --example embed

use uzram::{BackingConfig, Device, DeviceConfig};

fn main() -> uzram::Result<()> {
    let spill = std::env::temp_dir().join(format!("uzram-embed-{}", std::process::id()));
    let mut config = DeviceConfig::new(1 << 30);
    config.mem_limit = Some(64 << 20);
    config.backing = Some(BackingConfig::new(spill));
    let device = Device::new(&config)?;

    device.write_at(4096, b"hello")?;
    let mut read = [0; 5];
    device.read_at(4096, &mut read)?;
    assert_eq!(&read, b"hello");

    let stats = device.stats();
    let (stored, memory) = (stats.orig_data_size, stats.mem_used_total);
    println!("{stored} bytes of pages are in {memory} bytes of memory");
    Ok(())
}
