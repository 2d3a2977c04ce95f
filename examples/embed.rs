//! A compressed RAM disk of 1 GiB in this process, which spills to a file above 64 MiB.

use uzram::{BackingConfig, Device};

fn main() -> uzram::Result<()> {
    let spill = std::env::temp_dir().join(format!("uzram-embed-{}", std::process::id()));
    let device = Device::builder(1 << 30)
        .mem_limit(64 << 20)
        .backing(BackingConfig::new(spill))
        .build()?;
    device.write_at(4096, b"hello")?;
    let mut read = [0; 5];
    device.read_at(4096, &mut read)?;
    assert_eq!(&read, b"hello");
    Ok(())
}
