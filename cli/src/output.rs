//! Everything that goes to stdout, so that a reader that goes away is an error like any other.

use std::fmt;
use std::io::{self, Write};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::args::ReportArgs;

/// Prints `text` and a newline.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text)?;
    stdout.write_all(b"\n")?;
    Ok(stdout.flush()?)
}

/// Prints `text` as it is.
pub(crate) fn text(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// Prints what was done, as `value` or as `text`.
pub(crate) fn done(report: ReportArgs, value: &Value, text: fmt::Arguments<'_>) -> Result<()> {
    match report.json {
        true => json(value),
        false => line(text),
    }
}

/// Prints `value` as JSON on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(format_args!("{}", serde_json::to_string(value)?))
}
