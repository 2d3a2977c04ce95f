//! Figures and tables for people.

use std::fmt::Write;

pub(crate) use uzram::human_size as bytes;

use crate::base::printable;

/// `count` with its thousands set apart: `310,000`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `ns` nanoseconds with three significant digits: `1.21 ms`.
pub(crate) fn duration(ns: u64) -> String {
    const UNITS: [&str; 4] = ["ns", "us", "ms", "s"];
    let mut value = ns as f64;
    let mut unit = 0;
    // 999.5 would be shown with four digits.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        v if v >= 99.95 || unit == 0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `whole / part` with two decimals; a dash if there is nothing to divide by.
pub(crate) fn ratio(whole: u64, part: u64) -> String {
    if part == 0 {
        return "-".to_owned();
    }
    format!("{:.2}", whole as f64 / part as f64)
}

/// How a column's cells are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of as many cells as there are `aligns`, each column as wide as its widest cell, two spaces apart.
pub(crate) fn columns(aligns: &[Align], rows: &[impl AsRef<[String]>]) -> String {
    // A cell is others' words, and no more than a cell.
    let rows: Vec<Vec<_>> = rows
        .iter()
        .map(|row| {
            row.as_ref()
                .iter()
                .map(|cell| printable::line(cell))
                .collect()
        })
        .collect();
    let mut widths = vec![0; aligns.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), align) in row.iter().zip(&widths).zip(aligns) {
            // Writing to a String cannot fail.
            let _ = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1000, "1.00 us"),
            (999_600, "1.00 ms"),
            (12_345_678, "12.3 ms"),
            (456_000_000, "456 ms"),
            (99_000_000_000, "99.0 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn counts_and_ratios() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(ratio(3, 2), "1.50");
        assert_eq!(ratio(3, 0), "-");
    }

    #[test]
    fn columns_line_up() {
        let rows =
            [["NAME", "SIZE"], ["a", "1 GiB"], ["héé", "4 KiB"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            columns(&[Align::Left, Align::Right], &rows),
            "NAME   SIZE\na     1 GiB\nhéé   4 KiB\n"
        );
    }
}
