//! zram-generator.conf, as systemd's zram-generator documents it (zram-generator.conf(5)).

use std::fs;

use anyhow::{Context, Result};

use super::{Entry, Key, Value, Wrong};

/// What zram-generator takes for a device that says nothing of its size.
const DEFAULT_SIZE: &str = "min(ram / 2, 4096)";

/// The priority that it swaps with to a device that says nothing of it.
const DEFAULT_PRIORITY: &str = "100";

/// Memory of this machine in MiB: the variable `ram` of expressions.
pub(super) fn ram_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = total.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map(|kib| kib / 1024)
        .context("/proc/meminfo has no MemTotal")
}

/// The devices of a file, on a machine with `ram` MiB of memory.
pub(super) fn parse(text: &str, ram: u64) -> Result<Vec<Entry>, Wrong> {
    let mut sections: Vec<Section> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            sections.push(Section::new(number, name)?);
            continue;
        }
        let shape = || {
            Wrong::new(
                number,
                format!("{line:?} is neither [zramN] nor KEY = VALUE"),
            )
        };
        let (key, value) = line.split_once('=').ok_or_else(shape)?;
        let section = sections.last_mut().ok_or_else(|| {
            let reason = format!("{} stands outside of a device", key.trim());
            Wrong::new(number, reason)
        })?;
        section.add(number, key.trim(), value.trim(), ram)?;
    }
    let entries = sections.into_iter().map(|section| section.finish(ram));
    Ok(entries
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect())
}

/// A device as it is read.
struct Section {
    entry: Entry,
    /// The machine has more memory than the device is for.
    unwanted: bool,
}

impl Section {
    fn new(line: usize, name: &str) -> Result<Self, Wrong> {
        let number = name.strip_prefix("zram");
        if number.is_none_or(|number| number.parse::<u32>().is_err()) {
            return Err(Wrong::new(
                line,
                format!("[{name}] is no device: use [zramN]"),
            ));
        }
        let name = name.parse().map_err(|reason| Wrong::new(line, reason))?;
        Ok(Self {
            entry: Entry {
                line,
                name,
                keys: Vec::new(),
            },
            unwanted: false,
        })
    }

    fn add(&mut self, line: usize, key: &str, value: &str, ram: u64) -> Result<(), Wrong> {
        let wrong = |reason: String| Wrong::new(line, format!("{key}: {reason}"));
        let mut set = |name: &str, value: Value| {
            let name = name.to_owned();
            self.entry.keys.push(Key { line, name, value });
        };
        let word = |text: &str| Value::Words(vec![text.to_owned()]);
        let size = |text: &str| size(text, ram).map_err(wrong);
        match key {
            "zram-size" => set("size", word(&size(value)?)),
            "zram-resident-limit" => set("mem-limit", word(&size(value)?)),
            "compression-algorithm" => {
                for (name, value) in algorithms(value).map_err(wrong)? {
                    set(name, word(&value));
                }
            }
            "writeback-device" => set("backing", word(value)),
            "mount-point" => set(super::MOUNTPOINT, word(value)),
            "fs-type" => set("fs", word(value)),
            // What uzram mount mounts with.
            "options" if matches!(value, "" | "discard") => {}
            "options" => {
                let reason = "uzram mounts with discard and nothing else; for more: mount -o \
                              remount,...";
                return Err(wrong(reason.to_owned()));
            }
            "swap-priority" => set(super::SWAP_PRIORITY, word(value)),
            "host-memory-limit" => {
                let limit: u64 = match value {
                    "none" => u64::MAX,
                    text => text
                        .parse()
                        .map_err(|_| wrong("use MiB, or none".to_owned()))?,
                };
                self.unwanted = ram > limit;
            }
            "zram-fraction" | "max-zram-size" => {
                let reason = "zram-generator calls this obsolete; use zram-size, as in zram-size \
                              = min(ram * 0.5, 4096)";
                return Err(wrong(reason.to_owned()));
            }
            key if key.starts_with("set!") => {
                let reason = "uzram runs no programs for variables; write the value down";
                return Err(wrong(reason.to_owned()));
            }
            _ => return Err(wrong("zram-generator has no such key".to_owned())),
        }
        Ok(())
    }

    /// The device, if this machine is to have it.
    fn finish(self, ram: u64) -> Result<Option<Entry>, Wrong> {
        let Self {
            mut entry,
            unwanted,
        } = self;
        let line = entry.line;
        let has = |entry: &Entry, name: &str| entry.keys.iter().any(|key| key.name == name);
        if !has(&entry, "size") {
            let size = size(DEFAULT_SIZE, ram).map_err(|reason| Wrong::new(line, reason))?;
            entry.keys.push(Key {
                line,
                name: "size".to_owned(),
                value: Value::Words(vec![size]),
            });
        }
        if has(&entry, super::MOUNTPOINT) {
            // It is about swap space, to zram-generator too.
            entry.keys.retain(|key| key.name != super::SWAP_PRIORITY);
        } else if !has(&entry, super::SWAP_PRIORITY) {
            entry.keys.push(Key {
                line,
                name: super::SWAP_PRIORITY.to_owned(),
                value: Value::Words(vec![DEFAULT_PRIORITY.to_owned()]),
            });
        }
        Ok((!unwanted).then_some(entry))
    }
}

/// The bytes that an expression in MiB gives, in whole pages.
fn size(expression: &str, ram: u64) -> Result<String, String> {
    let mut names = |name: &str, _: Vec<f64>| (name == "ram").then_some(ram as f64);
    let mib = fasteval::ez_eval(expression, &mut names)
        .map_err(|error| format!("{expression:?} is no expression of ram in MiB: {error}"))?;
    let most = (uzram::MAX_DEVICE_BYTES >> 20) as f64;
    if !(0.0..=most).contains(&mib) {
        return Err(format!("{expression:?} is {mib} MiB: use 0 to {most}"));
    }
    let bytes = (mib * f64::from(1 << 20)) as u64;
    Ok((bytes - bytes % uzram::PAGE_SIZE as u64).to_string())
}

/// The options for `lz4 zstd(level=3,type=idle)`: the first algorithm is for new pages, the others for
/// those that are recompressed.
fn algorithms(text: &str) -> Result<Vec<(&'static str, String)>, String> {
    const OPTIONS: [&str; 4] = ["algorithm", "recompress", "recompress", "recompress"];
    let words: Vec<_> = text.split_whitespace().collect();
    if words.len() > OPTIONS.len() {
        return Err("a device has four algorithms at most".to_owned());
    }
    let named = words.into_iter().zip(OPTIONS).map(|(word, option)| {
        let (name, parameters) = match word.split_once('(') {
            Some((name, rest)) => {
                let inner = rest
                    .strip_suffix(')')
                    .ok_or("a parenthesis is not closed")?;
                (name, inner)
            }
            None => (word, ""),
        };
        if name.is_empty() {
            return Err(format!(
                "({parameters}): there are no parameters for all algorithms"
            ));
        }
        if matches!(name, "lzo" | "lzo-rle" | "842") {
            return Err(format!(
                "uzram has no {name}: use lz4, or zstd for smaller pages"
            ));
        }
        let mut algorithm = name.to_owned();
        for parameter in parameters
            .split(',')
            .filter(|parameter| !parameter.is_empty())
        {
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("level", level) => algorithm = format!("{name}:{level}"),
                // The background recompression takes pages that are idle.
                ("type", "idle") if option == "recompress" => {}
                _ => return Err(format!("{parameter}: uzram knows level=N, and type=idle")),
            }
        }
        Ok((option, algorithm))
    });
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 8192;

    fn one(text: &str) -> Vec<(String, Value)> {
        let [entry] = parse(text, RAM).unwrap().try_into().unwrap();
        let keys = entry.keys.into_iter();
        keys.map(|key| (key.name, key.value)).collect()
    }

    fn word(name: &str, value: &str) -> (String, Value) {
        (name.to_owned(), Value::Words(vec![value.to_owned()]))
    }

    #[test]
    fn expressions_are_of_ram_in_mib() {
        for (expression, mib) in [
            ("min(ram / 2, 4096)", 4096),
            ("min(ram / 10, 2048)", 819),
            ("ram", 8192),
            ("max(1024, ram / 16) + 1", 1025),
            ("(ram - 192) * 0.25", 2000),
            ("512", 512),
        ] {
            let bytes: u64 = size(expression, RAM).unwrap().parse().unwrap();
            assert_eq!(bytes >> 20, mib, "{expression}");
            assert!(bytes.is_multiple_of(4096));
        }
        for bad in ["", "ram +", "memory / 2", "-1", "1 / 0", "ram * ram * ram"] {
            assert!(size(bad, RAM).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_sense_becomes_options() {
        let text = "# a comment\n[zram0]\nzram-size = ram / 4\ncompression-algorithm = lz4 \
                    zstd(level=3,type=idle)\nmount-point=/var/compressed\nfs-type = ext4\noptions = discard\n\
                    writeback-device = /dev/vdb1\nzram-resident-limit = 256\n";
        assert_eq!(
            one(text),
            [
                word("size", "2147483648"),
                word("algorithm", "lz4"),
                word("recompress", "zstd:3"),
                word("mountpoint", "/var/compressed"),
                word("fs", "ext4"),
                word("backing", "/dev/vdb1"),
                word("mem-limit", "268435456"),
            ]
        );
        let size = word("size", "4294967296");
        for (said, priority) in [("", "100"), ("swap-priority = 7\n", "7")] {
            let mut keys = one(&format!("[zram1]\n{said}"));
            keys.sort_by(|(a, _), (b, _)| a.cmp(b));
            assert_eq!(keys, [size.clone(), word("swap-priority", priority)]);
        }
        let mounted = one("[zram1]\nmount-point = /m\nswap-priority = 7\n");
        assert_eq!(mounted, [word("mountpoint", "/m"), size]);
        let several = "[zram1]\nzram-size = 1\nmount-point = /m\ncompression-algorithm = lz4 lz4hc zstd(level=9)\n";
        assert_eq!(
            one(several)[2..],
            [
                word("algorithm", "lz4"),
                word("recompress", "lz4hc"),
                word("recompress", "zstd:9"),
            ]
        );
        let small = "[zram0]\nhost-memory-limit = 4096\n[zram1]\nhost-memory-limit = none\n";
        let names = parse(small, RAM).unwrap();
        assert_eq!(names.len(), 1);
        assert_eq!(names[0].name.as_str(), "zram1");
    }

    #[test]
    fn what_does_not_is_refused_with_a_remedy() {
        for (line, words) in [
            ("compression-algorithm = lzo-rle", "use lz4"),
            ("compression-algorithm = lz4 zstd zstd zstd zstd", "four"),
            ("compression-algorithm = zstd(dict=/d)", "level=N"),
            ("zram-fraction = 0.5", "zram-size"),
            ("options = noatime", "remount"),
            ("set!top = /bin/x", "variables"),
            ("zram-sise = 1", "no such key"),
            ("zram-size = cores * 2", "expression"),
            ("nonsense", "KEY = VALUE"),
        ] {
            let wrong = parse(&format!("[zram0]\n\n{line}\n"), RAM).unwrap_err();
            assert_eq!(wrong.line, 3);
            assert!(wrong.reason.contains(words), "{words} in {}", wrong.reason);
        }
        assert_eq!(parse("[disk]\n", RAM).unwrap_err().line, 1);
        assert_eq!(parse("zram-size = 1\n", RAM).unwrap_err().line, 1);
    }
}
