//! Sizes that depend on the machine's memory: a share of it, like `50%`, or an expression of `ram`, in MiB, that fasteval
//! evaluates, as it does for zram-generator.

use std::fs;

use anyhow::{Context, Result};

/// Memory of this machine in MiB: the variable `ram` of expressions.
pub(crate) fn mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: Option<u64> = total.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.map(|kib| kib / 1024)
        .context("/proc/meminfo has no MemTotal")
}

/// Whether a size is a share of the machine's memory or an expression of it, and no plain size.
pub(crate) fn is_of_ram(size: &str) -> bool {
    size.ends_with('%') || size.contains("ram")
}

/// The bytes of a size for which [`is_of_ram`] holds, on a machine with `ram` MiB, in whole pages.
pub(crate) fn size(text: &str, ram: u64) -> Result<u64, String> {
    let Some(share) = text.strip_suffix('%') else {
        return bytes(text, ram);
    };
    let percent: f64 = share
        .trim_end()
        .parse()
        .map_err(|_| "use a share of the memory like 50%".to_owned())?;
    whole_pages(ram as f64 * percent / 100.0)
        .ok_or_else(|| format!("{text} is no share of the memory: use 0% or more"))
}

/// The bytes that an expression gives on a machine with `ram` MiB, in whole pages, as the kernel rounds them.
pub(crate) fn bytes(expression: &str, ram: u64) -> Result<u64, String> {
    if prints(expression) {
        return Err("print() is no part of a size: leave it out".to_owned());
    }
    let mut names =
        |name: &str, args: Vec<f64>| (name == "ram" && args.is_empty()).then_some(ram as f64);
    let mib = fasteval::ez_eval(expression, &mut names).map_err(|error| {
        format!("{expression:?} is no expression of ram in MiB, as min(ram / 2, 4096) is: {error}")
    })?;
    whole_pages(mib).ok_or_else(|| {
        let most = uzram::MAX_DEVICE_BYTES >> 20;
        format!("{expression:?} is {mib} MiB: use 0 to {most}")
    })
}

/// The bytes of so many MiB, if there can be so many.
pub(crate) fn whole_pages(mib: f64) -> Option<u64> {
    let most = (uzram::MAX_DEVICE_BYTES >> 20) as f64;
    let bytes = (0.0..=most)
        .contains(&mib)
        .then(|| (mib * f64::from(1 << 20)) as u64);
    bytes.map(|bytes| bytes.next_multiple_of(uzram::PAGE_SIZE as u64))
}

/// Whether evaluating an expression would write to stderr: its text is text only in what is printed.
fn prints(expression: &str) -> bool {
    let mut names = expression.split(|c: char| !c.is_alphanumeric() && c != '_');
    names.any(|name| name == "print")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 8192;

    #[test]
    fn expressions_are_of_ram_in_mib() {
        for (expression, mib) in [
            ("min(ram / 2, 4096)", 4096),
            ("min(ram / 10, 2048)", 819),
            ("ram", 8192),
            ("max(1024, ram / 16) + 1", 1025),
            ("(ram - 192) * 0.25", 2000),
            ("512", 512),
            ("1k", 1000),
            ("round(100, 150.5)", 200),
            ("int(ram / 3) % 1000", 730),
            ("ceil(log(10, ram)) + floor(pi()) + abs(0 - e() / 10)", 7),
            ("(ram > 4096) * 1024 + 2 ^ 3", 1032),
        ] {
            let bytes = bytes(expression, RAM).unwrap();
            assert_eq!(bytes >> 20, mib, "{expression}");
            assert!(bytes.is_multiple_of(4096));
        }
        assert_eq!(bytes("1 / 1048576", RAM).unwrap(), 4096);
        assert_eq!(bytes("0", RAM).unwrap(), 0);
    }

    #[test]
    fn a_size_is_a_share_of_memory_or_an_expression() {
        for (text, mib) in [
            ("50%", 4096),
            ("12.5 %", 1024),
            ("200%", 16384),
            ("ram / 4", 2048),
        ] {
            assert!(is_of_ram(text));
            assert_eq!(size(text, RAM).unwrap(), mib << 20, "{text}");
        }
        for bad in ["%", "-5%", "x%", "NaN%", "5%%", "ram %"] {
            assert!(size(bad, RAM).is_err(), "{bad}");
        }
        assert!(!is_of_ram("512M"));
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "",
            "ram +",
            "memory / 2",
            "ram(2)",
            "-1",
            "1 / 0",
            "0 / 0",
            "ram * ram * ram",
            "ram / 2 # half of it",
            "print(ram)",
            "1 + print (\"x\")",
        ] {
            assert!(bytes(bad, RAM).is_err(), "{bad}");
        }
    }
}
