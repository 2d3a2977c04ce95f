//! The device's attributes under zram's names, with zram's formats and errors.
//!
//! One table for every way to reach them: the files of the FUSE directory and the control
//! protocol. An attribute stands here only if the device really counts or does what it says.
//! Formats follow `drivers/block/zram/zram_drv.c` and
//! `Documentation/admin-guide/blockdev/zram.rst`. Locks nothing itself.

use std::time::Duration;

use rustix::io::Errno;

use crate::block_device::BlockDevice;
use crate::config::{Algorithm, BackingConfig, DeviceConfig};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recompression::Recompression;
use crate::selection::Selection;
use crate::size::parse_size;
use crate::stats::Stats;
use crate::units::PAGE_SIZE;

/// An attribute of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Attribute {
    /// Bytes in the device, stored with K, M, G or T. Larger at any time, smaller if nobody uses it
    /// and nothing is beyond; in zram it is fixed while the device is in use.
    Disksize,
    /// Most bytes of page frames, stored with K, M, G or T; 0 for no limit. zram's can only be
    /// stored, and is shown by `mm_stat`.
    MemLimit,
    /// Store 0 to start the maximum again from what is used now.
    MemUsedMax,
    /// The algorithms, the one in use in brackets. What is stored compresses new pages from here
    /// on; in zram it is fixed while the device is in use.
    CompAlgorithm,
    /// The algorithms for recompression, in zram's form: `#1:`, the one in use in brackets. Stored
    /// as `algo=NAME priority=1`; there is only the one priority.
    RecompAlgorithm,
    /// Store what a [`Recompression`] is read from to recompress those pages.
    Recompress,
    /// The backing's path, or `none`. A path stored spills there from here on, `none` to nothing:
    /// what the earlier backing holds is moved first, to the new one or to memory. In zram it is
    /// fixed while the device is in use.
    BackingDev,
    /// Most bytes of the backing that may be used, stored with K, M, G or T; 0 for all it has. Not
    /// in zram.
    BackingSize,
    /// Nine columns: `orig_data_size compr_data_size mem_used_total mem_limit mem_used_max` in
    /// bytes, `same_pages pages_compacted huge_pages huge_pages_since` in pages.
    MmStat,
    /// Three columns in units of 4 KiB: occupied, read from and written to the backing.
    BdStat,
    /// Four columns: failed reads, failed writes, invalid requests (a constant 0: none gets
    /// this far), pages freed by discard.
    IoStat,
    /// Store anything to compact the pool.
    Compact,
    /// Store `all`, or an age in seconds, to mark pages in memory as idle.
    Idle,
    /// Store what a [`Selection`] is read from to write those pages back.
    Writeback,
    /// Pages that may still be written back, by whatever cause; counts only once it is enabled.
    WritebackLimit,
    /// 1: `writeback_limit` counts.
    WritebackLimitEnable,
    /// Most bytes to write to the backing in any twenty-four hours, stored with K, M, G or T; 0 for
    /// no limit. Not in zram.
    WritebackDailyLimit,
    /// Store 1 to forget all data.
    Reset,
    /// 1: a device that exists is set up.
    Initstate,
}

impl Attribute {
    /// Every attribute, in the order a listing shows them.
    pub const ALL: [Self; 19] = [
        Self::Disksize,
        Self::MemLimit,
        Self::MemUsedMax,
        Self::CompAlgorithm,
        Self::RecompAlgorithm,
        Self::Recompress,
        Self::BackingDev,
        Self::BackingSize,
        Self::MmStat,
        Self::BdStat,
        Self::IoStat,
        Self::Compact,
        Self::Idle,
        Self::Writeback,
        Self::WritebackLimit,
        Self::WritebackLimitEnable,
        Self::WritebackDailyLimit,
        Self::Reset,
        Self::Initstate,
    ];

    /// The file's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disksize => "disksize",
            Self::MemLimit => "mem_limit",
            Self::MemUsedMax => "mem_used_max",
            Self::CompAlgorithm => "comp_algorithm",
            Self::RecompAlgorithm => "recomp_algorithm",
            Self::Recompress => "recompress",
            Self::BackingDev => "backing_dev",
            Self::BackingSize => "backing_size",
            Self::MmStat => "mm_stat",
            Self::BdStat => "bd_stat",
            Self::IoStat => "io_stat",
            Self::Compact => "compact",
            Self::Idle => "idle",
            Self::Writeback => "writeback",
            Self::WritebackLimit => "writeback_limit",
            Self::WritebackLimitEnable => "writeback_limit_enable",
            Self::WritebackDailyLimit => "writeback_daily_limit",
            Self::Reset => "reset",
            Self::Initstate => "initstate",
        }
    }

    /// The attribute called `name`, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name() == name)
    }

    /// The file's permission bits: 0644, 0444 or 0200.
    pub const fn mode(self) -> u16 {
        match self {
            Self::Disksize
            | Self::MemLimit
            | Self::CompAlgorithm
            | Self::RecompAlgorithm
            | Self::BackingDev
            | Self::BackingSize
            | Self::WritebackLimit
            | Self::WritebackLimitEnable
            | Self::WritebackDailyLimit => 0o644,
            Self::MmStat | Self::BdStat | Self::IoStat | Self::Initstate => 0o444,
            Self::MemUsedMax
            | Self::Recompress
            | Self::Compact
            | Self::Idle
            | Self::Writeback
            | Self::Reset => 0o200,
        }
    }

    /// Whether [`Attribute::show`] has an answer.
    pub const fn is_readable(self) -> bool {
        self.mode() & 0o400 != 0
    }

    /// Whether [`Attribute::store`] may be called.
    pub const fn is_writable(self) -> bool {
        self.mode() & 0o200 != 0
    }

    /// What a read of the attribute gives, with its newline.
    ///
    /// # Errors
    /// [`Error::Refused`] (EACCES) if the attribute is write-only.
    pub fn show(self, device: &Device) -> Result<String> {
        match self {
            Self::Disksize => Ok(format!("{}\n", device.size())),
            Self::MemLimit => Ok(format!("{}\n", device.mem_limit().unwrap_or(0))),
            Self::CompAlgorithm => Ok(format!("{}\n", algorithms(Some(device.algorithm())))),
            Self::RecompAlgorithm => Ok(format!(
                "#1: {}\n",
                algorithms(device.recompression_algorithm())
            )),
            Self::BackingDev => Ok(match device.backing_path() {
                Some(path) => format!("{}\n", path.display()),
                None => "none\n".to_owned(),
            }),
            Self::BackingSize => Ok(format!("{}\n", device.backing_size().unwrap_or(0))),
            Self::MmStat => Ok(mm_stat(&device.stats())),
            Self::BdStat => Ok(bd_stat(&device.stats())),
            Self::IoStat => Ok(io_stat(&device.stats())),
            Self::Initstate => Ok("1\n".to_owned()),
            Self::WritebackLimit => Ok(format!("{}\n", device.writeback_limit())),
            Self::WritebackLimitEnable => {
                Ok(format!("{}\n", u8::from(device.has_writeback_limit())))
            }
            Self::WritebackDailyLimit => {
                Ok(format!("{}\n", device.writeback_daily_limit().unwrap_or(0)))
            }
            Self::MemUsedMax
            | Self::Recompress
            | Self::Compact
            | Self::Idle
            | Self::Writeback
            | Self::Reset => Err(self.refuse(Errno::ACCESS, "can only be written")),
        }
    }

    /// Takes `value`, with or without a newline at its end.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] (EINVAL) for a value that makes no sense; [`Error::Refused`],
    /// EACCES if the attribute is read-only, and what the device says.
    pub fn store(self, device: &Device, value: &str) -> Result<()> {
        let value = value.strip_suffix('\n').unwrap_or(value);
        match self {
            Self::Disksize => device.resize(self.size(value)?),
            Self::CompAlgorithm => {
                device.set_algorithm(self.algorithm(value)?);
                Ok(())
            }
            Self::RecompAlgorithm => {
                device.set_recompression_algorithm(self.recompression(value)?);
                Ok(())
            }
            Self::Recompress => {
                device.recompress(&Recompression::parse(value)?)?;
                Ok(())
            }
            Self::BackingDev => match value {
                "" => Err(self.invalid(value, "give a path, or none")),
                "none" => device.set_backing(None),
                path => device.set_backing(Some(&BackingConfig {
                    encrypt: device.encrypts(),
                    keep: device.backing_keep(),
                    ..BackingConfig::new(path)
                })),
            },
            Self::BackingSize => {
                let bytes = self.size(value)?;
                device.set_backing_size((bytes != 0).then_some(bytes))
            }
            Self::MemLimit => {
                let bytes = self.size(value)?;
                if (1..DeviceConfig::MIN_MEM_LIMIT).contains(&bytes) {
                    let least = DeviceConfig::MIN_MEM_LIMIT >> 10;
                    let reason = format!("the least is one zspage, {least}K; 0 is no limit");
                    return Err(self.invalid(value, &reason));
                }
                device.set_mem_limit((bytes != 0).then_some(bytes))
            }
            Self::MemUsedMax => match value.parse::<u64>() {
                Ok(0) => {
                    device.reset_mem_used_max();
                    Ok(())
                }
                _ => Err(self.invalid(value, "only 0 can be stored")),
            },
            Self::Compact => {
                device.compact();
                Ok(())
            }
            Self::Idle => {
                device.mark_idle(parse_idle(value)?);
                Ok(())
            }
            Self::Writeback => {
                device.write_back(Selection::parse(value, device.pages())?)?;
                Ok(())
            }
            Self::WritebackLimit => {
                device.set_writeback_limit(self.number(value)?);
                Ok(())
            }
            Self::WritebackLimitEnable => {
                device.enable_writeback_limit(self.number(value)? != 0);
                Ok(())
            }
            Self::WritebackDailyLimit => {
                let bytes = self.size(value)?;
                let set = device.set_writeback_daily_limit((bytes != 0).then_some(bytes));
                set.map_err(|error| match error {
                    Error::InvalidConfig { reason, .. } => self.invalid(value, &reason),
                    other => other,
                })
            }
            Self::Reset => match value.parse::<u16>() {
                Ok(1..) => device.reset(),
                _ => Err(self.invalid(value, "1 resets the device")),
            },
            Self::MmStat | Self::BdStat | Self::IoStat | Self::Initstate => {
                Err(self.refuse(Errno::ACCESS, "can only be read"))
            }
        }
    }

    fn size(self, value: &str) -> Result<u64> {
        parse_size(value).map_err(|error| self.invalid(value, &error.to_string()))
    }

    fn algorithm(self, value: &str) -> Result<Algorithm> {
        let algorithm = value.parse();
        algorithm.map_err(|_| self.invalid(value, "use lz4, zstd or zstd:LEVEL"))
    }

    /// Reads `algo=NAME`, with or without `priority=1`.
    fn recompression(self, value: &str) -> Result<Algorithm> {
        let mut algorithm = None;
        for parameter in value.split_ascii_whitespace() {
            match parameter.split_once('=') {
                Some(("algo", name)) => algorithm = Some(self.algorithm(name)?),
                Some(("priority", "1")) => {}
                _ => return Err(self.invalid(value, "use algo=NAME, and no priority but 1")),
            }
        }
        algorithm.ok_or_else(|| self.invalid(value, "use algo=NAME"))
    }

    fn number(self, value: &str) -> Result<u64> {
        let number = value.parse();
        number.map_err(|_| self.invalid(value, "use a number"))
    }

    fn invalid(self, value: &str, reason: &str) -> Error {
        Error::InvalidConfig {
            option: self.name(),
            reason: format!("{value:?}: {reason}"),
        }
    }

    fn refuse(self, errno: Errno, reason: &str) -> Error {
        Error::Refused {
            what: self.name(),
            reason: reason.to_owned(),
            errno,
        }
    }
}

/// The age that pages must have to be marked as idle: none for `all`, and for 0 seconds, as in zram.
///
/// # Errors
/// [`Error::InvalidConfig`] for anything else.
pub(crate) fn parse_idle(value: &str) -> Result<Option<Duration>> {
    match (value, value.parse()) {
        ("all", _) | (_, Ok(0)) => Ok(None),
        (_, Ok(seconds)) => Ok(Some(Duration::from_secs(seconds))),
        (_, Err(_)) => Err(Attribute::Idle.invalid(value, "use all, or an age in seconds")),
    }
}

fn algorithms(used: Option<Algorithm>) -> String {
    match used {
        None => "lz4 zstd".to_owned(),
        Some(Algorithm::Lz4) => "[lz4] zstd".to_owned(),
        Some(used @ Algorithm::Zstd { .. }) => format!("lz4 [{used}]"),
    }
}

fn mm_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} {:8} {:8} {:8} {:8} {:8} {:8} {:8}\n",
        s.orig_data_size,
        s.compr_data_size,
        s.mem_used_total,
        s.mem_limit,
        s.mem_used_max,
        s.same_pages,
        s.pages_compacted,
        s.huge_pages,
        s.huge_pages_since,
    )
}

/// The first column is what the spill occupies, rounded up: packed records share a block.
fn bd_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} {:8}\n",
        s.backing_bytes_used.div_ceil(PAGE_SIZE as u64),
        s.bd_reads,
        s.bd_writes,
    )
}

/// The third column is unpadded in zram, too.
fn io_stat(s: &Stats) -> String {
    format!(
        "{:8} {:8} 0 {:8}\n",
        s.failed_reads, s.failed_writes, s.notify_free
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let errno = |a: Attribute, v: &str| a.store(&device, v).err().map(|e| e.errno());
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
            (Attribute::CompAlgorithm, "zstd:9\n", "lz4 [zstd:9]\n"),
            (Attribute::CompAlgorithm, "lz4", "[lz4] zstd\n"),
            (Attribute::RecompAlgorithm, "algo=lz4", "#1: [lz4] zstd\n"),
            (
                Attribute::RecompAlgorithm,
                "algo=zstd priority=1\n",
                "#1: lz4 [zstd]\n",
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
            "algo=zstd priority=2",
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
        for bad in ["", "/dev/null", "/"] {
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
        let errno = |v: &str| {
            Attribute::BackingSize
                .store(&device, v)
                .map_err(|e| e.errno())
        };
        assert_eq!(errno("1M"), Err(Errno::INVAL));
        let shown = Attribute::BackingSize.show(&device).expect("readable");
        assert_eq!(shown, "8388608\n");
        Attribute::BackingDev.store(&device, "none").expect("gone");
        assert!(!dir.path().join("b").exists());
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
        assert_eq!(show(Attribute::CompAlgorithm, &plain), "[lz4] zstd\n");
        assert_eq!(show(Attribute::RecompAlgorithm, &plain), "#1: lz4 zstd\n");
        assert_eq!(show(Attribute::CompAlgorithm, &device), "lz4 [zstd:3]\n");
        assert_eq!(show(Attribute::BackingDev, &plain), "none\n");
        assert_eq!(
            show(Attribute::BackingDev, &device),
            format!("{}\n", path.display())
        );
        assert_eq!(show(Attribute::MemLimit, &plain), "0\n");
        assert_eq!(show(Attribute::MemLimit, &device), "65536\n");
    }
}
