//! Sizes as people write them: a number, which may have a fraction, and a unit.
//!
//! Crates for this read K as 1000 or KB as 1024, where zramctl(8) has K for 1024 and KB for 1000, and take more than it does:
//! `1e3`, `1_000`.

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Not a number with at most one unit.
    #[error("a size is a number of bytes with an optional unit, like 512M, 1.5GiB or 2GB")]
    Malformed,
    /// More than 64 bits hold.
    #[error("a size is less than 16777216T")]
    Overflow,
}

/// Reads a size, in bytes: digits, with or without a fraction, then an optional unit in either case.
///
/// Units are those of zramctl(8): K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024, KB, MB, GB, TB powers of 1000, and B
/// is a byte. A space may stand before the unit. A fraction of a byte is cut off.
///
/// # Errors
/// [`ParseSizeError::Malformed`] for anything else, an empty text included;
/// [`ParseSizeError::Overflow`] from 2^64 on.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.strip_prefix(' ') {
        Some("") => return Err(ParseSizeError::Malformed),
        Some(unit) => unit_bytes(unit)?,
        None => unit_bytes(unit)?,
    };
    let (whole, fraction) = match number.split_once('.') {
        None => (number, ""),
        Some((_, "")) => return Err(ParseSizeError::Malformed),
        Some(parts) => parts,
    };
    if whole.is_empty() || fraction.contains('.') {
        return Err(ParseSizeError::Malformed);
    }
    let whole: u64 = whole.parse().map_err(|_| ParseSizeError::Overflow)?;
    let whole = whole.checked_mul(unit).ok_or(ParseSizeError::Overflow)?;
    // Long division, a digit at a time: exact however many digits there are.
    let mut bytes = 0;
    let mut place = u128::from(unit) << 64;
    for digit in fraction.bytes() {
        place /= 10;
        bytes += place * u128::from(digit - b'0');
    }
    // What was cut off of the places is far less than half of 2^-32 bytes.
    let bytes = (bytes + (1 << 32)) >> 64;
    let bytes = u64::try_from(bytes).map_err(|_| ParseSizeError::Overflow)?;
    whole.checked_add(bytes).ok_or(ParseSizeError::Overflow)
}

/// The bytes of a unit.
fn unit_bytes(unit: &str) -> Result<u64, ParseSizeError> {
    let lower = unit.to_ascii_lowercase();
    let (prefix, base) = match lower.as_str() {
        "" | "b" => return Ok(1),
        _ if lower.ends_with("ib") => (&lower[..lower.len() - 2], 1024_u64),
        _ if lower.ends_with('b') => (&lower[..lower.len() - 1], 1000),
        _ => (lower.as_str(), 1024),
    };
    let exponent = match prefix {
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(ParseSizeError::Malformed),
    };
    Ok(base.pow(exponent))
}

/// Writes a size as people do: `count` bytes with three significant digits and a binary unit: `1.21 GiB`.
pub fn human_size(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 999.5 would be shown with four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 99.95 || (count.is_power_of_two() && v.fract() == 0.0) => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_zramctl_takes_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1K", 1 << 10),
            ("3m", 3 << 20),
            ("8G", 8 << 30),
            ("16t", 16 << 40),
            ("1KiB", 1 << 10),
            ("2 MiB", 2 << 20),
            ("1gib", 1 << 30),
            ("1KB", 1000),
            ("2GB", 2_000_000_000),
            ("1.5G", 3 << 29),
            ("0.1K", 102),
            ("0.3MB", 300_000),
            ("2.25TiB", 9 << 38),
            ("0.0000000001G", 0),
            ("1.99999999999999999999999999999999999999999K", 2048),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "", "K", ".5G", "1.", "1.G", "1..5G", "1.2.3", "-1", "+1", "1  K", " 1", "1\n", "0x10",
            "1P", "1iB", "1KK", "1 ", "1e3", "é", "1é",
        ] {
            assert_eq!(parse_size(text), Err(ParseSizeError::Malformed), "{text:?}");
        }
        for text in ["18446744073709551616", "16777216T", "99999999999999999999K"] {
            assert_eq!(parse_size(text), Err(ParseSizeError::Overflow), "{text}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (4096, "4 KiB"),
            (5000, "4.88 KiB"),
            (64 << 20, "64 MiB"),
            (1000 << 10, "0.98 MiB"),
            (1 << 30, "1 GiB"),
            (1_300_000_000, "1.21 GiB"),
            (13_000_000_000, "12.1 GiB"),
            (150_000_000_000, "140 GiB"),
            (16 << 40, "16 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_size(count), text);
        }
    }
}
