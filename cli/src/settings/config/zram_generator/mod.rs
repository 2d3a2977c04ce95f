//! zram-generator.conf, as systemd's zram-generator 1.2 reads it (zram-generator.conf(5) and its source).
//!
//! A section that is there twice is one device, and of a key that is given twice the last counts. What
//! zram-generator ignores is ignored with a warning, as it does. What uzram cannot do is refused, with a
//! remedy in the keys of that file.

mod algorithms;
mod ini;

use std::collections::BTreeMap;
use std::path::{Component, Path};

use std::path::PathBuf;

use clap::ValueEnum;

use self::ini::Item;
use super::{ALLOW_ENOSPC, Entry, Key, MOUNTPOINT, Parsed, SWAP_PRIORITY, Value, Wrong};
use crate::args::FsType;
use crate::base::ram;

/// What zram-generator takes for a device that says nothing of its size.
const DEFAULT_SIZE: &str = "min(ram / 2, 4096)";

/// The priority that it swaps with to a device that says nothing of it.
const DEFAULT_PRIORITY: &str = "100";

/// The keys of a section.
const KEYS: [&str; 11] = [
    "host-memory-limit",
    "zram-size",
    "zram-resident-limit",
    "compression-algorithm",
    "writeback-device",
    "swap-priority",
    "mount-point",
    "fs-type",
    "options",
    "zram-fraction",
    "max-zram-size",
];

/// The devices of a file, on a machine with `ram` MiB of memory.
pub(super) fn parse(text: &str, ram: u64) -> Result<Parsed, Wrong> {
    let mut warnings = Vec::new();
    let sections = sections(text, &mut warnings)?;
    let mut entries = Vec::new();
    for section in sections {
        let device = Device {
            section,
            ram,
            keys: Vec::new(),
            warnings: &mut warnings,
        };
        entries.extend(device.entry()?);
    }
    Ok(Parsed { entries, warnings })
}

/// What the file says of a device: each key's value and its line.
struct Section {
    line: usize,
    name: String,
    said: BTreeMap<&'static str, (usize, String)>,
}

/// Where a key is.
#[derive(Clone, Copy)]
enum Place {
    /// Before the first section.
    Outside,
    /// In a section that is no device's.
    Ignored,
    /// In the section of that index.
    Device(usize),
}

/// Gathers the sections of devices, in the order in which they begin.
fn sections(text: &str, warnings: &mut Vec<Wrong>) -> Result<Vec<Section>, Wrong> {
    let mut sections: Vec<Section> = Vec::new();
    let mut place = Place::Outside;
    for (line, item) in ini::parse(text)? {
        let (key, value) = match item {
            Item::Section(name) => {
                let number = name.strip_prefix("zram");
                if number.is_none_or(|number| number.parse::<u64>().is_err()) {
                    let reason = format!("[{name}] is ignored: devices are [zramN]");
                    warnings.push(Wrong::new(line, reason));
                    place = Place::Ignored;
                    continue;
                }
                let at = sections.iter().position(|section| section.name == name);
                place = Place::Device(at.unwrap_or(sections.len()));
                if at.is_none() {
                    let said = BTreeMap::new();
                    sections.push(Section { line, name, said });
                }
                continue;
            }
            Item::Key(key, value) => (key, value),
        };
        if key.starts_with("set!") {
            let reason = "uzram runs no programs: write their value where the variable is used";
            return Err(Wrong::new(line, format!("{key}: {reason}")));
        }
        let known = match key.as_str() {
            // What it was called before.
            "memory-limit" => Some("host-memory-limit"),
            key => KEYS.into_iter().find(|known| *known == key),
        };
        match (place, known) {
            (Place::Device(at), Some(known)) => {
                sections[at].said.insert(known, (line, value));
            }
            (Place::Ignored, _) => {}
            (Place::Device(_), None) => {
                warnings.push(Wrong::new(
                    line,
                    format!("{key} is ignored: there is no such key"),
                ));
            }
            (Place::Outside, _) => {
                let reason = format!("{key} is ignored: it stands before the first [zramN]");
                warnings.push(Wrong::new(line, reason));
            }
        }
    }
    Ok(sections)
}

/// A device on its way from a section to options.
struct Device<'a> {
    section: Section,
    ram: u64,
    keys: Vec<Key>,
    warnings: &'a mut Vec<Wrong>,
}

impl Device<'_> {
    /// The device, if this machine is to have it.
    fn entry(mut self) -> Result<Option<Entry>, Wrong> {
        let line = self.section.line;
        if self.is_unwanted()? {
            return Ok(None);
        }
        let size = self.size()?;
        if size == 0 {
            return Ok(None);
        }
        let at = self.said("zram-size").map_or(line, |(line, _)| line);
        self.set(at, "size", size.to_string());
        self.set_limit(size)?;
        self.set_algorithms()?;
        self.set_use()?;
        let name = self.section.name.parse();
        Ok(Some(Entry {
            line,
            dir: PathBuf::new(),
            name: name.map_err(|reason| Wrong::new(line, reason))?,
            keys: self.keys,
        }))
    }

    fn said(&self, key: &str) -> Option<(usize, &str)> {
        let (line, value) = self.section.said.get(key)?;
        Some((*line, value))
    }

    /// Reads the value of a key, if it is given.
    fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Wrong> {
        let Some((line, value)) = self.said(key) else {
            return Ok(None);
        };
        let wrong = |reason| Wrong::new(line, format!("{key}: {reason}"));
        read(value).map(Some).map_err(wrong)
    }

    fn set(&mut self, line: usize, name: &str, word: String) {
        let (name, value) = (name.to_owned(), Value::Words(vec![word]));
        self.keys.push(Key { line, name, value });
    }

    fn warn(&mut self, line: usize, text: String) {
        self.warnings.push(Wrong::new(line, text));
    }

    /// Whether the machine has more memory than the device is for.
    fn is_unwanted(&self) -> Result<bool, Wrong> {
        let limit = self.read("host-memory-limit", mib_or_none)?;
        Ok(limit.flatten().is_some_and(|limit| self.ram > limit))
    }

    fn size(&self) -> Result<u64, Wrong> {
        let fraction = self.read("zram-fraction", |text| {
            let fraction = text.parse().ok().filter(|fraction: &f64| *fraction >= 0.0);
            fraction.ok_or_else(|| "use a number like 0.5".to_owned())
        })?;
        let most = self.read("max-zram-size", mib_or_none)?;
        let size = self.read("zram-size", |text| ram::bytes(text, self.ram))?;
        // These are older, and go before it.
        if fraction.is_some() || most.is_some() {
            let mib = (fraction.unwrap_or(0.5) * self.ram as f64).floor();
            let most = most.flatten().map_or(f64::INFINITY, |most| most as f64);
            return ram::whole_pages(mib.min(most)).ok_or_else(|| {
                let reason = "zram-fraction: that is more than the largest device, 16T";
                Wrong::new(self.section.line, reason)
            });
        }
        match size {
            Some(size) => Ok(size),
            None => ram::bytes(DEFAULT_SIZE, self.ram)
                .map_err(|reason| Wrong::new(self.section.line, reason)),
        }
    }

    /// The limit, as in zram also where pages have nowhere to leave for, and the backing.
    fn set_limit(&mut self, size: u64) -> Result<(), Wrong> {
        let backing = self.read("writeback-device", absolute)?;
        let is_spilled = backing.is_some();
        if let (Some((line, _)), Some(path)) = (self.said("writeback-device"), backing) {
            self.set(line, "backing", path);
        }
        let limit = self.read("zram-resident-limit", |text| ram::bytes(text, self.ram))?;
        let (Some((line, _)), Some(limit)) = (self.said("zram-resident-limit"), limit) else {
            return Ok(());
        };
        if limit == 0 {
            return Ok(());
        }
        self.set(line, "mem-limit", limit.to_string());
        if is_spilled {
            return Ok(());
        }
        let (name, value) = (ALLOW_ENOSPC.to_owned(), Value::Flag(true));
        self.keys.push(Key { line, name, value });
        if limit < size {
            let text = "zram-resident-limit: writes fail with ENOSPC once it is met, as in zram: give the device \
                        a writeback-device, or leave the limit out";
            self.warn(line, text.to_owned());
        }
        Ok(())
    }

    fn set_algorithms(&mut self) -> Result<(), Wrong> {
        let read = self.read("compression-algorithm", algorithms::parse)?;
        let (Some((line, _)), Some(read)) = (self.said("compression-algorithm"), read) else {
            return Ok(());
        };
        let names = std::iter::once("algorithm").chain(std::iter::repeat("recompress"));
        for (name, algorithm) in names.zip(read.algorithms) {
            self.set(line, name, algorithm);
        }
        for note in read.notes {
            self.warn(line, format!("compression-algorithm: {note}"));
        }
        Ok(())
    }

    /// What becomes of the device: swap space, unless it has a mount point or a file system.
    fn set_use(&mut self) -> Result<(), Wrong> {
        let fs = self.said("fs-type").map(|(line, fs)| (line, fs.to_owned()));
        let path = self.read("mount-point", absolute)?;
        let (Some((line, _)), Some(path)) = (self.said("mount-point"), path) else {
            return match fs {
                Some((line, fs)) if fs != "swap" => {
                    let reason = format!("fs-type: {fs} is to be mounted: add mount-point = DIR");
                    Err(Wrong::new(line, reason))
                }
                _ => self.set_swap(),
            };
        };
        self.set(line, MOUNTPOINT, path);
        if let Some((line, fs)) = fs {
            self.set_fs(line, &fs)?;
        }
        if let Some((line, options)) = self.said("options").filter(|(_, said)| !said.is_empty()) {
            let options = options.to_owned();
            self.set(line, "options", options);
        }
        Ok(())
    }

    fn set_fs(&mut self, line: usize, fs: &str) -> Result<(), Wrong> {
        if fs == "ext2" {
            let text = "fs-type: ext4 is made in place of ext2: with discard on any kernel";
            self.warn(line, text.to_owned());
            return Ok(());
        }
        let fs_type = FsType::from_str(fs, false).map_err(|_| {
            let names: Vec<_> = FsType::value_variants()
                .iter()
                .map(|fs| fs.name())
                .collect();
            let reason = format!(
                "fs-type: uzram makes no {fs}: use one of {}",
                names.join(", ")
            );
            Wrong::new(line, reason)
        })?;
        self.set(line, "fs", fs_type.name().to_owned());
        Ok(())
    }

    fn set_swap(&mut self) -> Result<(), Wrong> {
        if let Some((line, options)) = self.said("options") {
            let mut options = options.split(',').map(str::trim);
            let unfit = options.find(|option| {
                let name = option.split_once('=').map_or(*option, |(name, _)| name);
                !matches!(name, "" | "defaults" | "nofail" | "discard")
            });
            if let Some(unfit) = unfit {
                let reason = format!(
                    "options: uzram swaps with discard and nothing else: leave {unfit} out, and use \
                     swap-priority for pri="
                );
                return Err(Wrong::new(line, reason));
            }
        }
        let (line, priority) = self
            .said("swap-priority")
            .unwrap_or((self.section.line, DEFAULT_PRIORITY));
        let priority = priority.to_owned();
        self.set(line, SWAP_PRIORITY, priority);
        Ok(())
    }
}

/// Reads a path from the root, as zram-generator wants them.
fn absolute(text: &str) -> Result<String, String> {
    let is_up = |part| part == Component::ParentDir;
    let path = Path::new(text);
    if path.is_relative() || path.components().any(is_up) {
        return Err(format!(
            "{text:?} is no path from the root: use one, or leave the key out for none"
        ));
    }
    Ok(text.to_owned())
}

/// Reads so many MiB, or `none`.
fn mib_or_none(text: &str) -> Result<Option<u64>, String> {
    match text {
        "none" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| "use MiB, or none".to_owned()),
    }
}

#[cfg(test)]
mod tests;
