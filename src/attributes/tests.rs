//! Names, modes, values and formats.

use std::fs;

use support::noise_page;

use super::*;
use crate::block_device::BlockDevice;
use crate::stats::Stats;
use crate::units::PAGE_SIZE;

fn device() -> Device {
    Device::new(&DeviceConfig::new(1 << 20)).expect("a 1 MiB device")
}

#[test]
fn names_are_unique_and_found() {
    for attribute in Attribute::ALL {
        assert_eq!(Attribute::from_name(attribute.name()), Some(attribute));
    }
    assert_eq!(Attribute::from_name("disk"), None);
}

#[test]
fn modes_agree_with_what_show_and_store_do() {
    let device = device();
    for attribute in Attribute::ALL {
        let shown = attribute.show(&device);
        assert_eq!(shown.is_ok(), attribute.is_readable(), "{attribute:?}");
        if let Err(error) = shown {
            assert_eq!(error.errno(), Errno::ACCESS);
        }
        let refused = matches!(attribute.store(&device, "?"),
            Err(error) if error.errno() == Errno::ACCESS);
        assert_eq!(refused, !attribute.is_writable(), "{attribute:?}");
    }
}

#[test]
fn statistics_have_zrams_columns() {
    let stats = Stats {
        orig_data_size: 4096 * 1_000_000,
        compr_data_size: 2,
        mem_used_total: 3,
        mem_limit: 4,
        mem_used_max: 5,
        same_pages: 6,
        pages_compacted: 7,
        huge_pages: 8,
        huge_pages_since: 9,
        backing_bytes_used: 4097,
        bd_reads: 11,
        bd_writes: 12,
        failed_reads: 13,
        failed_writes: 14,
        notify_free: 15,
        ..Stats::default()
    };
    assert_eq!(
        mm_stat(&stats),
        "4096000000        2        3        4        5        6        7        8        9\n"
    );
    assert_eq!(bd_stat(&stats), "       2       11       12\n");
    assert_eq!(io_stat(&stats), "      13       14 0       15\n");
}

#[test]
fn stores_check_their_values() {
    let device = device();
    let errno = |a: Attribute, v: &str| -> Option<Errno> {
        a.store(&device, v).err().map(|e| e.errno().into())
    };
    assert_eq!(errno(Attribute::MemLimit, "64M\n"), None);
    assert_eq!(errno(Attribute::MemLimit, "0"), None);
    for bad in ["", "-1", "lots", "1X", "4096", "18446744073709551616"] {
        assert_eq!(errno(Attribute::MemLimit, bad), Some(Errno::INVAL), "{bad}");
    }
    assert_eq!(errno(Attribute::MemUsedMax, "0\n"), None);
    assert_eq!(errno(Attribute::MemUsedMax, "1"), Some(Errno::INVAL));
    assert_eq!(errno(Attribute::Reset, "1\n"), None);
    assert_eq!(errno(Attribute::Reset, "0"), Some(Errno::INVAL));
    assert_eq!(errno(Attribute::Compact, "1\n"), None);
    for good in ["all", "all\n", "0", "86400\n", "18446744073709551615"] {
        assert_eq!(errno(Attribute::Idle, good), None, "{good}");
    }
    for bad in ["", "none", "-1", "1s", "all 1"] {
        assert_eq!(errno(Attribute::Idle, bad), Some(Errno::INVAL), "{bad}");
    }
    for limit in [Attribute::WritebackLimit, Attribute::WritebackLimitEnable] {
        assert_eq!(errno(limit, "1\n"), None);
        assert_eq!(limit.show(&device).expect("readable"), "1\n");
        for bad in ["", "-1", "1M", "x"] {
            assert_eq!(errno(limit, bad), Some(Errno::INVAL), "{bad}");
        }
    }
    assert_eq!(errno(Attribute::WritebackLimit, "102400"), None);
    let left = Attribute::WritebackLimit.show(&device);
    assert_eq!(left.expect("readable"), "102400\n");
    assert_eq!(errno(Attribute::WritebackLimitEnable, "0"), None);
    for (value, shown) in [("20G\n", "21474836480\n"), ("0", "0\n")] {
        assert_eq!(errno(Attribute::WritebackDailyLimit, value), None);
        let limit = Attribute::WritebackDailyLimit.show(&device);
        assert_eq!(limit.expect("readable"), shown);
    }
    for bad in ["", "-1", "lots", "1023K"] {
        let refused = errno(Attribute::WritebackDailyLimit, bad);
        assert_eq!(refused, Some(Errno::INVAL), "{bad}");
    }
    assert_eq!(errno(Attribute::Writeback, "idle\n"), Some(Errno::NODEV));
    assert_eq!(errno(Attribute::Writeback, "cold"), Some(Errno::INVAL));
    assert_eq!(
        errno(Attribute::Writeback, "page_index=256"),
        Some(Errno::RANGE)
    );
    for (value, expected) in [
        ("2M", None),
        ("1M\n", None),
        ("5M", Some(Errno::FBIG)),
        ("0", Some(Errno::INVAL)),
        ("4097", Some(Errno::INVAL)),
    ] {
        assert_eq!(errno(Attribute::Disksize, value), expected, "{value}");
    }
    assert_eq!(errno(Attribute::Disksize, "x"), Some(Errno::INVAL));
    assert_eq!(
        errno(Attribute::Recompress, ""),
        Some(Errno::INVAL),
        "no algorithm"
    );
    for (attribute, value, shown) in [
        (
            Attribute::CompAlgorithm,
            "zstd:9\n",
            "lz4 lz4hc [zstd:9] deflate\n",
        ),
        (
            Attribute::CompAlgorithm,
            "lz4",
            "[lz4] lz4hc zstd deflate\n",
        ),
        (
            Attribute::RecompAlgorithm,
            "algo=lz4",
            "#1: [lz4] lz4hc zstd deflate\n",
        ),
        (
            Attribute::RecompAlgorithm,
            "algo=zstd priority=1\n",
            "#1: lz4 lz4hc [zstd] deflate\n",
        ),
    ] {
        assert_eq!(errno(attribute, value), None, "{value}");
        assert_eq!(attribute.show(&device).expect("readable"), shown);
    }
    for bad in [
        "",
        "zstd",
        "algo=",
        "algo=lzma",
        "algo=zstd priority=4",
        "algo=lz4 level=1",
    ] {
        let refused = errno(Attribute::RecompAlgorithm, bad);
        assert_eq!(refused, Some(Errno::INVAL), "{bad}");
    }
    assert_eq!(
        errno(Attribute::Recompress, "type=idle threshold=99\n"),
        None
    );
    assert_eq!(errno(Attribute::Recompress, "idle"), Some(Errno::INVAL));
    assert_eq!(errno(Attribute::CompAlgorithm, "lzma"), Some(Errno::INVAL));
    for bad in [
        "",
        "/dev/null",
        "/",
        "spill",
        "force:",
        "force:/dev/null",
        "force:/",
        "force:spill",
    ] {
        let refused = errno(Attribute::BackingDev, bad);
        assert_eq!(refused, Some(Errno::INVAL), "{bad}");
    }
    assert_eq!(errno(Attribute::BackingDev, "none\n"), None);
    assert_eq!(errno(Attribute::BackingSize, "8M"), Some(Errno::BUSY));
}

#[test]
fn a_backing_comes_changes_and_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = device();
    for name in ["a", "b"] {
        let path = dir.path().join(name).display().to_string();
        Attribute::BackingDev.store(&device, &path).expect("made");
        let shown = Attribute::BackingDev.show(&device).expect("readable");
        assert_eq!(shown, format!("{path}\n"));
    }
    assert!(!dir.path().join("a").exists());
    Attribute::BackingSize
        .store(&device, "8M\n")
        .expect("grown");
    let errno = |v: &str| -> Result<(), Errno> {
        Attribute::BackingSize
            .store(&device, v)
            .map_err(|e| e.errno().into())
    };
    assert_eq!(errno("1M"), Err(Errno::INVAL));
    let shown = Attribute::BackingSize.show(&device).expect("readable");
    assert_eq!(shown, "8388608\n");
    Attribute::BackingDev.store(&device, "none").expect("gone");
    assert!(!dir.path().join("b").exists());

    let path = dir.path().join("precious");
    fs::write(&path, "data").expect("written");
    let shown = path.display().to_string();
    let refused = Attribute::BackingDev.store(&device, &shown);
    assert!(
        refused
            .expect_err("precious")
            .to_string()
            .contains("BackingConfig::force")
    );
    assert_eq!(fs::read(&path).expect("there"), b"data");
    let forced = format!("force:{shown}\n");
    Attribute::BackingDev
        .store(&device, &forced)
        .expect("its data is of no worth");
    let now = Attribute::BackingDev.show(&device).expect("readable");
    assert_eq!(now, format!("{shown}\n"));
}

#[test]
fn settings_are_shown_as_zram_shows_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("spill");
    let mut config = DeviceConfig::new(1 << 20);
    config.algorithm = Algorithm::Zstd { level: 3 };
    config.mem_limit = Some(65536 + 17);
    config.backing = Some(BackingConfig::new(path.clone()));
    let (plain, device) = (device(), Device::new(&config).expect("a device"));
    let show = |a: Attribute, d: &Device| a.show(d).expect("readable");
    assert_eq!(
        show(Attribute::CompAlgorithm, &plain),
        "[lz4] lz4hc zstd deflate\n"
    );
    assert_eq!(show(Attribute::RecompAlgorithm, &plain), "");
    assert_eq!(
        show(Attribute::CompAlgorithm, &device),
        "lz4 lz4hc [zstd:3] deflate\n"
    );
    assert_eq!(show(Attribute::BackingDev, &plain), "none\n");
    assert_eq!(
        show(Attribute::BackingDev, &device),
        format!("{}\n", path.display())
    );
    assert_eq!(show(Attribute::MemLimit, &plain), "0\n");
    assert_eq!(show(Attribute::MemLimit, &device), "65536\n");
}

/// A device with a page of each kind.
fn varied() -> Device {
    let mut config = DeviceConfig::new(1 << 20);
    config.recompress = vec![Algorithm::Zstd { level: 3 }];
    let device = Device::new(&config).expect("a device");
    let noise = noise_page(1);
    let text = b"static int zs_compact(struct zs_pool *pool)\n";
    let text: crate::Page = std::array::from_fn(|i| text[i * i % text.len()]);
    let page = PAGE_SIZE as u64;
    device.write(page, &[7; PAGE_SIZE]).expect("room");
    device.write(3 * page, &noise).expect("room");
    device.write(5 * page, &text).expect("room");
    device.write(100 * page, &text).expect("room");
    device
}

#[test]
fn block_state_has_zrams_lines() {
    let device = varied();
    device.mark_idle(None);
    device
        .read(100 * PAGE_SIZE as u64, &mut [0; 10])
        .expect("readable");
    let flags = || {
        let text = Attribute::BlockState.show(&device).expect("readable");
        let lines = text.lines().map(|line| {
            assert_eq!(line.len(), 39, "{line:?}");
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            let [page, time, flags] = fields[..] else {
                panic!("{line:?}");
            };
            let time: f64 = time.parse().expect("seconds");
            assert_eq!(time == 0.0, flags.starts_with('s'), "{line:?}");
            assert!(time < device_time() + 1.0);
            (page.parse().expect("a number"), flags.to_owned())
        });
        lines.collect::<Vec<(u64, String)>>()
    };
    let expected = |rows: [(u64, &str); 4]| rows.map(|(page, flags)| (page, flags.to_owned()));
    assert_eq!(
        flags(),
        expected([(1, "s....."), (3, "..hi.."), (5, "...i.."), (100, "......")])
    );
    device.recompress(&Recompression::ALL).expect("set");
    let after = flags();
    assert_eq!(after[1].1, "..hi.n");
    assert!(
        matches!(after[2].1.as_str(), "...ir." | "...i.n"),
        "{after:?}"
    );
}

fn device_time() -> f64 {
    crate::time::Timepiece::default().now().as_secs_f64()
}

#[test]
fn block_state_goes_on_where_it_ended() {
    let device = Device::new(&DeviceConfig::new(64 << 20)).expect("a device");
    for page in (0..16384).step_by(3) {
        let data = [page as u8 | 1; PAGE_SIZE];
        device.write(page * PAGE_SIZE as u64, &data).expect("room");
    }
    let (mut next, mut pages, mut steps) = (Some(0), Vec::new(), 0);
    while let Some(from) = next {
        let states = device.block_states(from);
        assert!(states.text.len() <= 48 << 10);
        let line = |line: &str| line[..12].trim().parse::<u64>().expect("a number");
        pages.extend(states.text.lines().map(line));
        next = states.next;
        steps += 1;
    }
    assert!(steps > 4 && pages.into_iter().eq((0..16384).step_by(3)));
}

#[test]
fn classes_add_up() {
    let device = varied();
    let text = Attribute::Classes.show(&device).expect("readable");
    let mut lines = text.lines();
    let header = lines.next().expect("a header").split_whitespace().count();
    let (mut sum, mut total) = ([0; 4], None);
    for line in lines.filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| fields[at].parse::<u64>().expect("a number");
        if fields[0] == "Total" {
            total = Some([1, 2, 3, 4].map(number));
            continue;
        }
        assert_eq!(fields.len(), header, "{line:?}");
        for (sum, at) in sum.iter_mut().zip([2, 3, 4, 6]) {
            *sum += number(at);
        }
    }
    assert_eq!(total, Some(sum));
    assert_eq!(sum[1], device.stats().resident_pages);
    assert_eq!(sum[2] * PAGE_SIZE as u64, device.stats().mem_used_total);
}

/// What a reader of zram's attributes takes them for.
#[test]
fn every_attribute_has_the_format_of_zrams() {
    let device = varied();
    let numbers = |text: &str, count: usize| {
        let fields: Vec<_> = text.split_ascii_whitespace().collect();
        assert_eq!(fields.len(), count, "{text:?}");
        assert!(
            fields.iter().all(|field| field.parse::<u64>().is_ok()),
            "{text:?}"
        );
    };
    let bracketed = |text: &str| {
        let used = text
            .split_ascii_whitespace()
            .filter(|word| word.starts_with('['));
        assert_eq!(used.count(), 1, "{text:?}");
    };
    for attribute in Attribute::ALL.into_iter().filter(|a| a.is_readable()) {
        let text = attribute.show(&device).expect("readable");
        assert!(text.ends_with('\n'), "{attribute:?}: {text:?}");
        match attribute {
            Attribute::MmStat => numbers(&text, 9),
            Attribute::BdStat => numbers(&text, 3),
            Attribute::IoStat => numbers(&text, 4),
            Attribute::DebugStat => {
                let figures = text.strip_prefix("version: 1\n").expect("a version");
                assert_eq!(figures.len(), 18);
                numbers(figures, 2);
            }
            Attribute::CompAlgorithm => bracketed(&text),
            Attribute::RecompAlgorithm => {
                bracketed(text.strip_prefix("#1: ").expect("a priority"));
            }
            Attribute::BackingDev => assert_eq!(text, "none\n"),
            Attribute::Disksize
            | Attribute::MemLimit
            | Attribute::BackingSize
            | Attribute::Initstate
            | Attribute::SectorSize
            | Attribute::WritebackLimit
            | Attribute::WritebackLimitEnable
            | Attribute::WritebackDailyLimit => numbers(&text, 1),
            Attribute::BlockState | Attribute::Classes => assert!(text.lines().count() >= 4),
            Attribute::MemUsedMax
            | Attribute::AlgorithmParams
            | Attribute::Recompress
            | Attribute::Compact
            | Attribute::Idle
            | Attribute::Writeback
            | Attribute::Reset => panic!("{attribute:?} can be read"),
        }
    }
}

#[test]
fn the_documentation_lists_every_attribute() {
    let page = include_str!("../../docs/attributes.md");
    for attribute in Attribute::ALL {
        let row = |line: &str| {
            let cell = line.split('|').nth(2).unwrap_or_default();
            line.starts_with('|') && cell.contains(&format!("`{}`", attribute.name()))
        };
        assert!(page.lines().any(row), "{}", attribute.name());
    }
}
