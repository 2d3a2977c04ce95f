//! Sizes as people write them: bytes with an optional K, M, G or T.

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// Not digits with at most one suffix.
    #[error("a size is a whole number of bytes with an optional K, M, G or T, like 512M")]
    Malformed,
    /// More than 64 bits hold.
    #[error("a size is less than 16777216T")]
    Overflow,
}

/// Reads a size: decimal digits, then an optional K, M, G or T in either case, a power of 1024.
///
/// # Errors
/// [`ParseSizeError::Malformed`] for anything else, an empty text included;
/// [`ParseSizeError::Overflow`] from 2^64 on.
pub fn parse_size(text: &str) -> Result<u64, ParseSizeError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ParseSizeError::Malformed);
    }
    let number: u64 = digits.parse().map_err(|_| ParseSizeError::Overflow)?;
    number
        .checked_mul(1 << shift)
        .ok_or(ParseSizeError::Overflow)
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
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("3m", 3 << 20),
            ("8G", 8 << 30),
            ("16t", 16 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "", "K", "-1", "+1", "1.5G", "1KB", "1 K", " 1", "1\n", "0x10", "1P", "é",
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
