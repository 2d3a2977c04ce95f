//! A device that another process left in memory.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use super::*;
use crate::algorithm::Priority;
use crate::memory::{DeviceMemory, FileKeeper};
use crate::sector_size::SectorSize;
use crate::spill::{BackingConfig, MemoryBacking};
use crate::sync::Mutex;

/// What keeps open files.
#[derive(Default)]
struct Kept(Mutex<HashMap<String, OwnedFd>>);

impl FileKeeper for Kept {
    fn keep(&self, name: &str, file: BorrowedFd<'_>) -> io::Result<()> {
        let file = file.try_clone_to_owned()?;
        self.0.lock().insert(name.to_owned(), file);
        Ok(())
    }

    fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }

    fn take(&self, name: &str) -> Option<OwnedFd> {
        self.0.lock().remove(name)
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.0.lock().keys().cloned().collect();
        names.sort_unstable();
        names
    }
}

/// A device in memory that outlives it, and what keeps its files.
struct Outliving {
    device: Device,
    memory: DeviceMemory,
    kept: Arc<Kept>,
}

impl Outliving {
    fn build(config: &DeviceConfig, memory: DeviceMemory, kept: Kept) -> crate::Result<Self> {
        let kept = Arc::new(kept);
        let memory = memory.with_files(Arc::clone(&kept) as _);
        let builder = crate::DeviceBuilder::from(config.clone());
        Ok(Self {
            device: builder.memory(memory.clone()).build()?,
            memory,
            kept,
        })
    }

    fn new(config: &DeviceConfig) -> Self {
        let memory = DeviceMemory::new().expect("memory");
        Self::build(config, memory, Kept::default()).expect("a device")
    }

    /// What another process finds if this one dies now, with a copy of what was spilled in `dir`.
    fn adopted(&self, config: &DeviceConfig, dir: &Path) -> crate::Result<Self> {
        let (memory, key) = self.memory.copy();
        let kept = Kept::default();
        for (number, (name, _)) in self.kept.0.lock().iter().enumerate() {
            let copy = dir.join(format!("copy-{number}"));
            let original = match name.as_str() {
                "image" => dir.join("image"),
                _ => dir.join("spill"),
            };
            std::fs::copy(original, &copy).expect("space");
            let copy = File::options().read(true).write(true).open(copy);
            kept.0
                .lock()
                .insert(name.clone(), copy.expect("there").into());
        }
        Self::build(config, DeviceMemory::open(memory, key)?, kept)
    }
}

fn config(dir: &Path) -> DeviceConfig {
    let mut config = DeviceConfig::new(1000 * PAGE);
    config.shards = Some(2);
    config.mem_limit = Some(64 * PAGE);
    let mut backing = BackingConfig::new(dir.join("spill"));
    backing.encrypt = true;
    config.backing = Some(backing);
    config
}

#[test]
fn a_device_is_as_it_was_and_spills_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let first = Outliving::new(&config);
    for page in 0..700 {
        write(&first.device, page, page + 1).expect("room");
    }
    first.device.discard(0, 10 * PAGE).expect("room");
    assert!(first.device.stats().written_back_pages > 100);
    assert_eq!(first.kept.names(), ["backing-0"]);
    let before = first.device.stats();
    let second = first.adopted(&config, dir.path()).expect("adopted");
    second.device.check();
    let after = second.device.stats();
    assert_eq!(
        (
            after.orig_data_size,
            after.compr_data_size,
            after.written_back_pages
        ),
        (
            before.orig_data_size,
            before.compr_data_size,
            before.written_back_pages
        )
    );
    for page in 10..700 {
        expect(&second.device, page, page + 1);
    }
    for page in 700..1000 {
        write(&second.device, page, page + 1).expect("room");
    }
    for page in 10..1000 {
        expect(&second.device, page, page + 1);
    }
    second.device.check();
}

#[test]
fn what_was_set_stays_set() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let first = Outliving::new(&config);
    let device = &first.device;
    device.set_mem_limit(Some(100 * PAGE)).expect("a limit");
    device
        .set_algorithm(Algorithm::Zstd { level: 5 })
        .expect("an algorithm");
    let second_priority = Priority::SECONDARY[0];
    let recompress = Algorithm::Zstd { level: 9 };
    device
        .set_algorithm_of(second_priority, recompress)
        .expect("an algorithm");
    device
        .set_writeback_daily_limit(Some(1 << 30))
        .expect("a limit");
    device.set_writeback_limit(77);
    device.enable_writeback_limit(true);
    device.resize(2000 * PAGE).expect("room to grow");
    device
        .set_backing_size(Some(16 << 20))
        .expect("more than is used");
    device.set_sector_size(SectorSize::of_bytes(4096));
    eventually("remembered", || {
        let adopted = first.adopted(&config, dir.path()).expect("adopted");
        let device = &adopted.device;
        assert_eq!(device.mem_limit(), Some(100 * PAGE));
        assert_eq!(device.algorithm(), Algorithm::Zstd { level: 5 });
        assert_eq!(device.algorithm_of(second_priority), Some(recompress));
        assert_eq!(device.writeback_daily_limit(), Some(1 << 30));
        assert_eq!(device.size(), 2000 * PAGE);
        assert_eq!(device.backing_size(), Some(16 << 20));
        // Nobody waits for these.
        (device.writeback_limit(), device.has_writeback_limit()) == (77, true)
            && device.sector_size() == SectorSize::of_bytes(4096)
    });
}

#[test]
fn a_restored_device_is_read_from_its_image_still() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let saved = Device::new(&DeviceConfig::new(1000 * PAGE)).expect("a device");
    for page in 0..500 {
        write(&saved, page, page + 3).expect("room");
    }
    let image = dir.path().join("image");
    saved.save(&image).expect("space");
    let mut unspilling = config.clone();
    unspilling.backing = None;
    // No room for all: most stay in the image.
    let first = Outliving::new(&unspilling);
    assert_eq!(first.device.restore(&image).expect("an image"), 500);
    assert_eq!(first.kept.names(), ["image"]);
    let second = first.adopted(&unspilling, dir.path()).expect("adopted");
    for page in 0..500 {
        expect(&second.device, page, page + 3);
    }
    second.device.check();
}

#[test]
fn another_device_than_was_asked_for_is_refused_and_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = config(dir.path());
    let first = Outliving::new(&config);
    write(&first.device, 5, 5).expect("room");
    let mut plain = config.clone();
    plain.backing = None;
    let refused = first.adopted(&plain, dir.path());
    let refused = refused
        .err()
        .expect("what is spilled is encrypted")
        .to_string();
    assert!(refused.contains("encrypt"), "{refused}");
    let [memory, key] = first
        .memory
        .as_fds()
        .map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
    let busy = DeviceMemory::open(memory, key)
        .expect_err("it is in use")
        .to_string();
    assert!(busy.contains("another process"), "{busy}");
    expect(&first.device, 5, 5);
}

#[test]
fn a_store_that_would_not_outlive_the_process_is_refused() {
    let memory = DeviceMemory::new().expect("memory");
    let built = Device::builder(100 * PAGE)
        .memory(memory.with_files(Arc::new(Kept::default())))
        .spill_to(Arc::new(MemoryBacking::new(4)))
        .build();
    let refused = built.err().expect("it is in this process").to_string();
    assert!(
        refused.contains("would not outlive the process"),
        "{refused}"
    );
}
