//! A device that is not used leaves the processor alone.

use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use support::eventually;
use support::noise_page;
use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE};

/// How long a device is left alone before it is looked at, and meanwhile.
const SETTLES: Duration = Duration::from_secs(3);
const WATCHED: Duration = Duration::from_secs(4);

/// The writeback thread of a device, by its directory in `/proc`.
struct WritebackThread(PathBuf);

impl WritebackThread {
    fn all() -> Vec<PathBuf> {
        let tasks = fs::read_dir("/proc/self/task").expect("lists").flatten();
        let is_one = |task: &PathBuf| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("uzram-writeb"))
        };
        tasks.map(|task| task.path()).filter(is_one).collect()
    }

    /// How often it has gone to sleep.
    fn sleeps(&self) -> u64 {
        let status = fs::read_to_string(self.0.join("status")).expect("reads");
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|n| n.trim().parse().ok()).expect("a count")
    }

    /// How long it has run.
    fn run_time(&self) -> Duration {
        let stat = fs::read_to_string(self.0.join("schedstat")).expect("reads");
        let nanoseconds = stat.split(' ').next().and_then(|n| n.parse().ok());
        Duration::from_nanos(nanoseconds.expect("a time"))
    }
}

/// A new device, and its writeback thread: the one that was not there before.
fn device(config: &DeviceConfig) -> (Device, WritebackThread) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().expect("no panic");
    let before = WritebackThread::all();
    let device = Device::new(config).expect("a device");
    // It has its name once it runs.
    loop {
        let new = WritebackThread::all();
        if let Some(new) = new.into_iter().find(|thread| !before.contains(thread)) {
            return (device, WritebackThread(new));
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_writeback_thread_sleeps_while_nothing_is_accessed() {
    let (device, thread) = device(&DeviceConfig::new(64 << 20));
    let page = vec![1; PAGE_SIZE];
    for at in 0..1000 {
        let mut page = page.clone();
        page[..8].copy_from_slice(&u64::to_le_bytes(at));
        device.write(at * PAGE_SIZE as u64, &page).expect("room");
    }
    std::thread::sleep(SETTLES);
    let before = thread.sleeps();
    std::thread::sleep(WATCHED);
    assert_eq!(thread.sleeps(), before);
    // A generation begins with its first access, and ends though nothing follows.
    let mut read = vec![0; PAGE_SIZE];
    device.read(0, &mut read).expect("readable");
    std::thread::sleep(SETTLES);
    let after = thread.sleeps();
    assert!((1..=4).contains(&(after - before)), "{before}, {after}");
    // Of both generations nothing has been accessed for long by now, as the clock has it.
    assert_eq!(device.mark_idle(Some(Duration::from_secs(1))), 1000);
    assert_eq!(device.mark_idle(Some(Duration::from_secs(6))), 999);
}

/// An image of pages that do not compress.
fn save_noise(path: &Path, pages: u64) {
    let (device, _) = device(&DeviceConfig::new(64 << 20));
    for at in 0..pages {
        device
            .write(at * PAGE_SIZE as u64, &noise_page(at))
            .expect("room");
    }
    device.save(path).expect("saved");
}

#[test]
fn the_writeback_thread_sleeps_though_some_of_an_image_cannot_leave_it() {
    const PAGES: u64 = 2000;
    let dir = tempfile::tempdir().expect("a directory");
    let [whole, damaged] = ["whole", "damaged"].map(|name| dir.path().join(name));
    save_noise(&whole, PAGES);
    let mut image = fs::read(&whole).expect("there");
    image[1 << 20] ^= 1;
    fs::write(&damaged, image).expect("written");
    let limit = |bytes| {
        let mut config = DeviceConfig::new(64 << 20);
        config.mem_limit = bytes;
        config
    };
    // What is restored, the memory there is for it, pages that stay in the image, and how often the thread
    // looks whether they still have to.
    type Case<'a> = (
        &'a Path,
        Option<u64>,
        RangeInclusive<u64>,
        RangeInclusive<u64>,
    );
    let cases: [Case<'_>; 3] = [
        (&whole, None, 0..=0, 0..=2),
        (&whole, Some(1 << 20), 1000..=1900, 2..=10),
        (&damaged, None, 1..=1, 0..=2),
    ];
    let devices = cases.map(|(image, bytes, left, looks)| {
        let (device, thread) = device(&limit(bytes));
        assert_eq!(device.restore(image).expect("an image"), PAGES);
        (device, thread, left, looks)
    });
    for (device, _, left, _) in &devices {
        eventually("restored", || {
            left.contains(&device.stats().written_back_pages)
        });
    }
    std::thread::sleep(SETTLES);
    let before = devices
        .each_ref()
        .map(|(_, thread, ..)| (thread.sleeps(), thread.run_time()));
    std::thread::sleep(WATCHED);
    for ((device, thread, left, looks), (sleeps, run_time)) in devices.into_iter().zip(before) {
        let there = device.stats().written_back_pages;
        assert!(left.contains(&there), "{there} pages are left");
        let (sleeps, run_time) = (thread.sleeps() - sleeps, thread.run_time() - run_time);
        assert!(looks.contains(&sleeps), "{there} left: {sleeps} sleeps");
        assert!(
            run_time < WATCHED / 40,
            "{there} left: ran for {run_time:?}"
        );
    }
}
