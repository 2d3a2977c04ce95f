//! Everything that goes to stdout: what a verb is there to print, and reports of what it did, which are
//! left out when only errors are to be said. A reader that goes away has read enough: that is
//! [`StdoutGone`], told from every other pipe that breaks.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::iter::repeat_n;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::base::printable;
use crate::base::stderr;

/// The reader of our stdout went away, which is no failure of ours.
#[derive(Debug)]
pub(crate) struct StdoutGone;

impl fmt::Display for StdoutGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads stdout any more")
    }
}

impl std::error::Error for StdoutGone {}

/// Whether only errors are to be said: it is so for the whole process, from its start.
static QUIET: AtomicBool = AtomicBool::new(false);

/// How much more is logged: it is so from the start, too.
static VERBOSE: AtomicU8 = AtomicU8::new(0);

/// Has nothing be said but errors, and what a verb is there to print; or has more logged.
pub(crate) fn be(quiet: bool, verbose: u8) {
    QUIET.store(quiet, Ordering::Relaxed);
    VERBOSE.store(verbose, Ordering::Relaxed);
}

/// The arguments that have another process say as much.
pub(crate) fn as_args() -> Vec<&'static str> {
    let verbose = usize::from(VERBOSE.load(Ordering::Relaxed));
    let quiet = is_quiet().then_some("--quiet");
    quiet
        .into_iter()
        .chain(repeat_n("--verbose", verbose))
        .collect()
}

/// Whether nothing but errors is to be said.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints what was done, unless only errors are to be said.
pub(crate) fn report(text: fmt::Arguments<'_>) -> Result<()> {
    match is_quiet() {
        true => Ok(()),
        false => line(text),
    }
}

/// Whether what goes to `stream` is coloured: <https://no-color.org>.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty())
}

/// Whether it is drawn on stderr how far something is.
pub(crate) fn draws() -> bool {
    io::stderr().is_terminal() && !is_quiet()
}

/// Prints `text` and a newline.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    self::text(&format!("{text}\n"))
}

/// Prints lines.
pub(crate) fn text(text: &str) -> Result<()> {
    print(&printable::lines(text))
}

/// Prints what is drawn on a terminal, with its colours. Others' words are none of it.
pub(crate) fn drawn(text: &str) -> Result<()> {
    print(text)
}

fn print(text: &str) -> Result<()> {
    // What was said before stands before it, where both go to one place.
    stderr::flush(stderr::LAST_LINES);
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutGone.into()),
        printed => Ok(printed?),
    }
}

/// Prints what was done: as JSON, which is `value`, or as `text` in a report.
pub(crate) fn done(as_json: bool, value: &Value, text: fmt::Arguments<'_>) -> Result<()> {
    match as_json {
        true => json(value),
        false => report(text),
    }
}

/// Prints `value` as JSON on one line.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)?;
    print(&format!("{}\n", printable::json(&text)))
}
