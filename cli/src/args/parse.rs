//! Values on the command line. An error says what would be right; clap adds which option it is.

use std::path::{Path, PathBuf};

use uzram::nbd::Address;
use uzram::{
    Algorithm, Attribute, BackingKeep, Error, OriginFormat, PoolKind, SectorSize, SyncPolicy,
};

use super::Target;
use crate::base::name::Name;
use crate::base::{ram, spelling, suggest};

/// Bytes, with an optional unit; or a share of this machine's memory.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    if ram::is_of_ram(text) {
        return ram::size(text, ram::mib().map_err(|error| format!("{error:#}"))?);
    }
    uzram::parse_size(text).map_err(|error| error.to_string())
}

/// The size of a device: as [`size`], and rounded up to whole pages unless it is in bytes.
pub(crate) fn device_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(bytes);
    }
    let pages = bytes.checked_next_multiple_of(uzram::PAGE_SIZE as u64);
    pages.ok_or_else(|| uzram::ParseSizeError::Overflow.to_string())
}

/// A name, with or without a level.
pub(crate) fn algorithm(text: &str) -> Result<Algorithm, String> {
    text.parse().map_err(reason)
}

/// `keep`, `remove` or `wipe`.
pub(crate) fn keep(text: &str) -> Result<BackingKeep, String> {
    text.parse().map_err(reason)
}

/// `zsmalloc`, `zbud` or `z3fold`.
pub(crate) fn pool(text: &str) -> Result<PoolKind, String> {
    text.parse().map_err(reason)
}

/// `flush`, `never` or a number of seconds.
pub(crate) fn sync(text: &str) -> Result<SyncPolicy, String> {
    text.parse().map_err(reason)
}

/// `detect` or `raw`.
pub(crate) fn origin_format(text: &str) -> Result<OriginFormat, String> {
    text.parse().map_err(reason)
}

/// `512` or `4096`.
pub(crate) fn sector_size(text: &str) -> Result<SectorSize, String> {
    text.parse().map_err(reason)
}

/// `unix:PATH` or `tcp:HOST:PORT`.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(reason)
}

/// `all`, or seconds.
pub(crate) fn idle(text: &str) -> Result<String, String> {
    if text == "all" || text.parse::<u64>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("use all, or an age in seconds".to_owned())
    }
}

/// What `uzram writeback` takes; how many pages the device has is known to its server.
pub(crate) fn selection(text: &str) -> Result<String, String> {
    uzram::Selection::parse(text, u64::MAX).map_err(reason)?;
    Ok(text.to_owned())
}

/// What `uzram recompress` takes.
pub(crate) fn recompression(text: &str) -> Result<String, String> {
    uzram::Recompression::parse(text).map_err(reason)?;
    Ok(text.to_owned())
}

/// One `KEY=VALUE` of `uzram set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) attribute: Attribute,
    pub(crate) value: String,
}

impl Assignment {
    /// Whether it may take long: it moves or recompresses much data.
    pub(crate) fn takes_long(&self) -> bool {
        matches!(
            self.attribute,
            Attribute::BackingDev | Attribute::Writeback | Attribute::Recompress
        )
    }

    /// The path of a backing in the value as the server understands it, if it is one.
    pub(crate) fn backing<'a>(&self, value: &'a str) -> Option<&'a Path> {
        let is_path = self.attribute == Attribute::BackingDev && !matches!(value, "" | "none");
        is_path.then(|| Path::new(value.strip_prefix(Attribute::FORCE).unwrap_or(value)))
    }

    /// The value as the server understands it, which has a working directory of its own. With `force`
    /// it may overwrite what is at a path.
    pub(crate) fn value_for_server(&self, force: bool) -> anyhow::Result<String> {
        match (self.attribute, self.value.as_str()) {
            (Attribute::BackingDev, path) if !matches!(path, "" | "none") => {
                let forced = path.strip_prefix(Attribute::FORCE);
                let is_forced = force || forced.is_some();
                let word = if is_forced { Attribute::FORCE } else { "" };
                Ok(format!("{word}{}", absolute(forced.unwrap_or(path))?))
            }
            (Attribute::AlgorithmParams, parameters) => {
                let words = parameters.split_ascii_whitespace();
                let words = words.map(|word| match word.strip_prefix("dict=") {
                    Some(path) => Ok(format!("dict={}", absolute(path)?)),
                    None => Ok(word.to_owned()),
                });
                Ok(words.collect::<anyhow::Result<Vec<_>>>()?.join(" "))
            }
            (_, value) => Ok(value.to_owned()),
        }
    }
}

/// The value that is meant: a share of this machine's memory is so many bytes.
fn value_of(attribute: Attribute, value: &str) -> Result<String, String> {
    let is_size = matches!(
        attribute,
        Attribute::Disksize
            | Attribute::MemLimit
            | Attribute::BackingSize
            | Attribute::WritebackDailyLimit
    );
    let bytes = match attribute {
        _ if !is_size => return Ok(value.to_owned()),
        Attribute::Disksize => device_size(value)?,
        _ => size(value)?,
    };
    Ok(bytes.to_string())
}

fn absolute(path: &str) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?.into_os_string().into_string();
    path.map_err(|path| anyhow::anyhow!("{} is not UTF-8", path.display()))
}

/// `KEY=VALUE`, where KEY is an attribute that can be written.
pub(crate) fn assignment(text: &str) -> Result<Assignment, String> {
    let Some((key, value)) = text.split_once('=') else {
        return Err("use KEY=VALUE, as in mem_limit=1G".to_owned());
    };
    match Attribute::from_name(&spelling::attribute(key)) {
        Some(attribute) if attribute.is_writable() => Ok(Assignment {
            attribute,
            value: value_of(attribute, value)?,
        }),
        Some(_) => Err(format!("{key} is read-only; {}", settable())),
        None => Err(match suggest::nearest(key, names(Attribute::is_writable)) {
            Some(meant) => format!("there is no attribute {key:?}{}", suggest::question(meant)),
            None => format!("there is no attribute {key:?}; {}", settable()),
        }),
    }
}

/// A word of `uzram stat` behind the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AttributeOrDevice {
    Attribute(Attribute),
    Device(Target),
}

/// An attribute that can be read; else a device, unless the word looks like an attribute.
pub(crate) fn attribute_or_device(text: &str) -> Result<AttributeOrDevice, String> {
    let meant = suggest::nearest(text, names(Attribute::is_readable));
    match (Attribute::from_name(&spelling::attribute(text)), meant) {
        (Some(known), _) if known.is_readable() => Ok(AttributeOrDevice::Attribute(known)),
        (Some(_), _) => Err(format!("it can only be set; {}", readable())),
        (None, Some(meant)) => Err(format!(
            "there is no such attribute{}",
            suggest::question(meant)
        )),
        (None, None) => text.parse().map(AttributeOrDevice::Device),
    }
}

/// A word of `uzram up` and `uzram down`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceOrFile {
    Device(Name),
    File(PathBuf),
}

/// A configuration file, if the word has a slash or one of their endings; else a device.
pub(crate) fn device_or_file(text: &str) -> Result<DeviceOrFile, String> {
    match text.contains('/') || text.ends_with(".toml") || text.ends_with(".conf") {
        true => Ok(DeviceOrFile::File(PathBuf::from(text))),
        false => text.parse().map(DeviceOrFile::Device),
    }
}

/// What attributes can be read, for a message.
pub(crate) fn readable() -> String {
    let names = names(Attribute::is_readable);
    format!("what can be read: {}", names.join(", "))
}

fn settable() -> String {
    let names = names(Attribute::is_writable);
    format!("what can be set: {}", names.join(", "))
}

fn names(wanted: impl Fn(Attribute) -> bool) -> Vec<&'static str> {
    let wanted = Attribute::ALL.into_iter().filter(|a| wanted(*a));
    wanted.map(Attribute::name).collect()
}

/// The library's reason without the option's name, which clap gives.
fn reason(error: Error) -> String {
    match error {
        Error::InvalidConfig { reason, .. } | Error::Refused { reason, .. } => reason,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments() {
        let parsed = assignment("mem_limit=1G").unwrap();
        assert_eq!(parsed.attribute.name(), "mem_limit");
        assert_eq!(parsed.value, (1 << 30).to_string());
        for bad in ["mem_limit", "=1", "nothing=1", "mm_stat=1"] {
            assert!(assignment(bad).is_err(), "{bad}");
        }
    }
}
