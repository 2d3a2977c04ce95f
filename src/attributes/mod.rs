//! The device's attributes under zram's names, with zram's formats and errors.
//!
//! One table for every way to reach them: the files of the FUSE directory and the control
//! protocol. An attribute stands here only if the device really counts or does what it says.
//! Formats follow `drivers/block/zram/zram_drv.c` and
//! `Documentation/admin-guide/blockdev/zram.rst`. Locks nothing itself.

mod formats;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use self::formats::{
    algorithms, bd_stat, classes, debug_stat, io_stat, mm_stat, recomp_algorithms,
};
use crate::algorithm::{Algorithm, Priority};
use crate::config::DeviceConfig;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::recompression::Recompression;
use crate::sector_size::SectorSize;
use crate::selection::Selection;
use crate::size::parse_size;
use crate::spill::BackingConfig;

/// An attribute of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// The algorithms for recompression, in zram's form: a line for each priority that has one, with
    /// that in brackets. Stored as `algo=NAME priority=N`, N from 1, which it is by default, to 3.
    RecompAlgorithm,
    /// Store `algo=NAME` or `priority=N`, for one of the algorithms that are set, with `level=N`,
    /// `dict=PATH` or both: in zram before the device is set up, here at any time.
    AlgorithmParams,
    /// Store what a [`Recompression`] is read from to recompress those pages.
    Recompress,
    /// The backing's path, or `none`. A path stored spills there from here on, `none` to nothing:
    /// what the earlier backing holds is moved first, to the new one or to memory. In zram it is
    /// fixed while the device is in use. After [`Attribute::FORCE`] the path is of something whose
    /// contents are of no worth.
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
    /// A version, and two figures: writes that waited for memory, and a constant 0.
    DebugStat,
    /// A line for each page that holds data: its number, when it was last accessed, and a letter or a
    /// dot for each of `s`ame-filled, `w`ritten back, `h`uge, `i`dle, `r`ecompressed and
    /// i`n`compressible. In zram it is in debugfs. Times are seconds since the machine was started, 0
    /// where none is kept, and the latest that they can be: ages are known to generations.
    BlockState,
    /// The pool by size class, as zsmalloc has it in debugfs.
    Classes,
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
    /// Bytes in the sectors of the block device that was made of it last, 512 or 4096; 0 if none was.
    /// What is stored is what the next one has, unless the contents say otherwise. Not in zram.
    SectorSize,
}

/// Whoever stores a path need not be where this process is.
const FROM_ROOT: &str = "a path from the root is needed";

impl Attribute {
    /// What stands before the path of a backing whose contents are of no worth: `force:/dev/sdb2`.
    pub const FORCE: &str = "force:";

    /// Every attribute, in the order a listing shows them.
    pub const ALL: [Self; 24] = [
        Self::Disksize,
        Self::MemLimit,
        Self::MemUsedMax,
        Self::CompAlgorithm,
        Self::RecompAlgorithm,
        Self::AlgorithmParams,
        Self::Recompress,
        Self::BackingDev,
        Self::BackingSize,
        Self::MmStat,
        Self::BdStat,
        Self::IoStat,
        Self::DebugStat,
        Self::BlockState,
        Self::Classes,
        Self::Compact,
        Self::Idle,
        Self::Writeback,
        Self::WritebackLimit,
        Self::WritebackLimitEnable,
        Self::WritebackDailyLimit,
        Self::Reset,
        Self::Initstate,
        Self::SectorSize,
    ];

    /// The file's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disksize => "disksize",
            Self::MemLimit => "mem_limit",
            Self::MemUsedMax => "mem_used_max",
            Self::CompAlgorithm => "comp_algorithm",
            Self::RecompAlgorithm => "recomp_algorithm",
            Self::AlgorithmParams => "algorithm_params",
            Self::Recompress => "recompress",
            Self::BackingDev => "backing_dev",
            Self::BackingSize => "backing_size",
            Self::MmStat => "mm_stat",
            Self::BdStat => "bd_stat",
            Self::IoStat => "io_stat",
            Self::DebugStat => "debug_stat",
            Self::BlockState => "block_state",
            Self::Classes => "classes",
            Self::Compact => "compact",
            Self::Idle => "idle",
            Self::Writeback => "writeback",
            Self::WritebackLimit => "writeback_limit",
            Self::WritebackLimitEnable => "writeback_limit_enable",
            Self::WritebackDailyLimit => "writeback_daily_limit",
            Self::Reset => "reset",
            Self::Initstate => "initstate",
            Self::SectorSize => "sector_size",
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
            | Self::WritebackDailyLimit
            | Self::SectorSize => 0o644,
            Self::MmStat
            | Self::BdStat
            | Self::IoStat
            | Self::DebugStat
            | Self::BlockState
            | Self::Classes
            | Self::Initstate => 0o444,
            Self::MemUsedMax
            | Self::AlgorithmParams
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
            Self::CompAlgorithm => Ok(format!("{}\n", algorithms(device.algorithm()))),
            Self::RecompAlgorithm => Ok(recomp_algorithms(device)),
            Self::BackingDev => Ok(match device.backing_path() {
                Some(path) => format!("{}\n", path.display()),
                None => "none\n".to_owned(),
            }),
            Self::BackingSize => Ok(format!("{}\n", device.backing_size().unwrap_or(0))),
            Self::MmStat => Ok(mm_stat(&device.stats())),
            Self::BdStat => Ok(bd_stat(&device.stats())),
            Self::IoStat => Ok(io_stat(&device.stats())),
            Self::DebugStat => Ok(debug_stat(&device.stats())),
            Self::BlockState => Ok(device.block_state()),
            Self::Classes => Ok(classes(&device.class_stats())),
            Self::Initstate => Ok("1\n".to_owned()),
            Self::SectorSize => {
                let bytes = device.sector_size().map_or(0, SectorSize::bytes);
                Ok(format!("{bytes}\n"))
            }
            Self::WritebackLimit => Ok(format!("{}\n", device.writeback_limit())),
            Self::WritebackLimitEnable => {
                Ok(format!("{}\n", u8::from(device.has_writeback_limit())))
            }
            Self::WritebackDailyLimit => {
                Ok(format!("{}\n", device.writeback_daily_limit().unwrap_or(0)))
            }
            Self::MemUsedMax
            | Self::AlgorithmParams
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
        self.store_with(device, value, None)
    }

    /// The same, of a path that somebody else has opened.
    pub(crate) fn store_with(
        self,
        device: &Device,
        value: &str,
        handed: Option<HandedFile>,
    ) -> Result<()> {
        let value = value.strip_suffix('\n').unwrap_or(value);
        match self {
            Self::Disksize => device.resize(self.size(value)?),
            Self::CompAlgorithm => device.set_algorithm(self.algorithm(value)?),
            Self::RecompAlgorithm => {
                let (priority, algorithm) = self.recompression(value)?;
                device.set_algorithm_of(priority, algorithm)
            }
            Self::AlgorithmParams => self.set_params(device, value),
            Self::Recompress => {
                device.recompress(&Recompression::parse(value)?)?;
                Ok(())
            }
            Self::BackingDev => match value {
                "" | Self::FORCE => Err(self.invalid(value, "give a path, or none")),
                "none" => device.set_backing(None),
                value => {
                    let forced = value.strip_prefix(Self::FORCE);
                    let path = forced.unwrap_or(value);
                    if !Path::new(path).is_absolute() {
                        return Err(self.invalid(value, FROM_ROOT));
                    }
                    device.set_backing(Some(&BackingConfig {
                        encrypt: device.encrypts(),
                        keep: device.backing_keep(),
                        force: forced.is_some(),
                        handed,
                        ..BackingConfig::new(path)
                    }))
                }
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
            Self::SectorSize => {
                let size = match value {
                    "0" => None,
                    bytes => Some(bytes.parse().map_err(|_| {
                        self.invalid(value, "use 512 or 4096; 0 forgets what it was")
                    })?),
                };
                device.set_sector_size(size);
                Ok(())
            }
            Self::MmStat
            | Self::BdStat
            | Self::IoStat
            | Self::DebugStat
            | Self::BlockState
            | Self::Classes
            | Self::Initstate => Err(self.refuse(Errno::ACCESS, "can only be read")),
        }
    }

    fn size(self, value: &str) -> Result<u64> {
        parse_size(value).map_err(|error| self.invalid(value, &error.to_string()))
    }

    fn algorithm(self, value: &str) -> Result<Algorithm> {
        let algorithm = value.parse();
        algorithm.map_err(|error| match error {
            Error::InvalidConfig { reason, .. } => self.invalid(value, &reason),
            other => other,
        })
    }

    /// Reads `algo=NAME`, with or without a priority for recompression.
    fn recompression(self, value: &str) -> Result<(Priority, Algorithm)> {
        let wrong = || self.invalid(value, "use algo=NAME, and priority=1, 2 or 3");
        let (mut algorithm, mut priority) = (None, Priority::SECONDARY[0]);
        for parameter in value.split_ascii_whitespace() {
            match parameter.split_once('=').ok_or_else(wrong)? {
                ("algo", name) => algorithm = Some(self.algorithm(name)?),
                ("priority", number) => {
                    let secondary = Priority::parse(number).filter(|p| *p != Priority::PRIMARY);
                    priority = secondary.ok_or_else(wrong)?;
                }
                _ => return Err(wrong()),
            }
        }
        Ok((priority, algorithm.ok_or_else(wrong)?))
    }

    /// Reads parameters of one of the algorithms that are set, the primary one without a name or
    /// a priority, and sets them.
    fn set_params(self, device: &Device, value: &str) -> Result<()> {
        let wrong = |reason: &str| self.invalid(value, reason);
        let (mut priority, mut level, mut dictionary) = (Priority::PRIMARY, None, None);
        for parameter in value.split_ascii_whitespace() {
            let form = "use algo=NAME or priority=N, with level=N or dict=PATH";
            let (name, given) = parameter.split_once('=').ok_or_else(|| wrong(form))?;
            match name {
                "algo" => {
                    let is_it = |p: &Priority| {
                        let there = device.algorithm_of(*p);
                        there.is_some_and(|there| there.name() == given)
                    };
                    let mut all = (0..).map_while(Priority::new);
                    let none = || {
                        let reason = format!("the device has no algorithm {given:?}");
                        self.refuse(Errno::INVAL, &reason)
                    };
                    priority = all.find(is_it).ok_or_else(none)?;
                }
                "priority" => {
                    let number = Priority::parse(given);
                    priority = number.ok_or_else(|| wrong("priorities are 0 to 3"))?;
                }
                "level" => {
                    let number = given.parse().ok();
                    level = Some(number.ok_or_else(|| wrong("use a number for level"))?);
                }
                "dict" if !Path::new(given).is_absolute() => return Err(wrong(FROM_ROOT)),
                "dict" => dictionary = Some(Path::new(given)),
                "deflate.winbits" => {
                    return Err(wrong(
                        "deflate has one window here, of 32 KiB, and a page fits in any of 4 KiB or \
                         more: leave deflate.winbits out",
                    ));
                }
                _ => return Err(wrong(form)),
            }
        }
        device.set_algorithm_params(priority, level, dictionary)
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
            errno: errno.into(),
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
