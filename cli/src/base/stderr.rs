//! Everything that goes to stderr: errors, warnings, the log.
//!
//! Whoever reads stderr may stop reading, and no thread of a server may wait for that: it has data to
//! destage. So lines are queued, and a thread writes them. What does not fit in [`MAX_BYTES`] is
//! dropped and counted, and the count is written where the lines would have been. [`flush`] waits for
//! what is queued, in bounded time; `main` does so at its end.
//!
//! One lock, a leaf, held to look at the queue and never to write.

use std::borrow::Cow;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use uzram::human_size;

use crate::base::{capabilities, printable, wording};

/// Bytes that wait to be written, at most.
const MAX_BYTES: usize = 256 << 10;

/// Bytes of a line, at most: several are to fit.
const MAX_LINE: usize = MAX_BYTES / 4;

/// How long the lines before an end may take to be written.
pub(crate) const LAST_LINES: Duration = Duration::from_secs(2);

/// What stands in the place of lines that were dropped, before how many.
const DROPPED: &str = "uzram: lines dropped here, because nobody read stderr: ";

static STDERR: Queue = Queue::new();

/// Queues a line, without its newline.
pub(crate) fn line(text: &str) {
    let text = wording::ours(text);
    STDERR.push(&format!("{}\n", printable::lines(&text)), io::stderr);
}

/// Waits until all that was queued is written, for at most `timeout`.
pub(crate) fn flush(timeout: Duration) {
    STDERR.flush(timeout);
}

/// Waits for the last lines when dropped, also on the way out of a panic.
pub(crate) struct Flushed;

impl Drop for Flushed {
    fn drop(&mut self) {
        flush(LAST_LINES);
    }
}

/// Queues what is logged.
pub(crate) struct Log {
    pub(crate) has_colours: bool,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event { coloured: None }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Event {
        let coloured = self.has_colours.then_some(*event.level());
        Event { coloured }
    }
}

/// An event of the log: it comes whole, in one call.
pub(crate) struct Event {
    /// Its level, if that is to be coloured.
    coloured: Option<Level>,
}

impl Event {
    fn shown(&self, text: &str) -> String {
        let text = wording::ours(text.trim_end_matches('\n'));
        let line = printable::line(&text);
        let Some(level) = self.coloured else {
            return format!("{line}\n");
        };
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            _ => 34,
        };
        let word = level.as_str();
        let line = line.replacen(word, &format!("\x1b[{colour}m{word}\x1b[0m"), 1);
        format!("{line}\n")
    }
}

impl Write for Event {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let shown = self.shown(&String::from_utf8_lossy(text));
        STDERR.push(&shown, io::stderr);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has panics say what they have to say here.
pub(crate) fn take_panics() {
    std::panic::set_hook(Box::new(|panic| line(&describe(panic))));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let current = thread::current();
    let name = current.name().unwrap_or("without a name");
    let place = panic.location().map(ToString::to_string);
    let place = place.unwrap_or_default();
    let why = panic.payload_as_str().unwrap_or("no message");
    let mut text = format!("uzram: this is a bug: thread {name} panicked at {place}: {why}");
    // Captured if RUST_BACKTRACE asks for it.
    let backtrace = std::backtrace::Backtrace::capture();
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        text.push_str(&format!("\n{backtrace}"));
    }
    text
}

/// A line, or as much of it as may be queued and how much that leaves out.
fn shortened(line: &str) -> Cow<'_, str> {
    if line.len() <= MAX_LINE {
        return Cow::Borrowed(line);
    }
    let kept = &line[..line.floor_char_boundary(MAX_LINE)];
    let left = (line.len() - kept.len()) as u64;
    Cow::Owned(format!("{kept}... and {} more\n", human_size(left)))
}

/// Lines on their way to a file that may not take them.
struct Queue {
    state: Mutex<State>,
    /// Lines came, or were written.
    changed: Condvar,
}

struct State {
    waiting: Vec<u8>,
    /// Lines that did not fit since the last that did.
    dropped: u64,
    /// Whether there is a thread that writes.
    has_writer: bool,
    is_writing: bool,
}

impl State {
    /// All that waits, and how much is missing after it.
    fn take(&mut self) -> Vec<u8> {
        let mut batch = std::mem::take(&mut self.waiting);
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            let missing = format!("{DROPPED}{dropped}\n");
            batch.extend_from_slice(missing.as_bytes());
        }
        batch
    }
}

impl Queue {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                waiting: Vec::new(),
                dropped: 0,
                has_writer: false,
                is_writing: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Queues a line, to be written to what `open` gives.
    fn push<W: Write>(&'static self, line: &str, open: impl FnOnce() -> W + Send + Copy + 'static) {
        let line = shortened(line);
        let mut state = self.state.lock();
        if state.waiting.len() + line.len() > MAX_BYTES {
            state.dropped += 1;
            return;
        }
        state.waiting.extend_from_slice(line.as_bytes());
        if !state.has_writer {
            let writer = thread::Builder::new().name("stderr".to_owned());
            state.has_writer = writer
                .spawn(move || {
                    capabilities::renounce();
                    self.write_all(open());
                })
                .is_ok();
            if !state.has_writer {
                // The machine has no more threads: late is better than never.
                let batch = state.take();
                drop(state);
                let _ = open().write_all(&batch);
                return;
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Writes what comes, for ever.
    fn write_all(&self, mut out: impl Write) {
        let mut state = self.state.lock();
        loop {
            while state.waiting.is_empty() {
                self.changed.wait(&mut state);
            }
            let batch = state.take();
            state.is_writing = true;
            drop(state);
            // Without a stderr there is nobody left to tell.
            let _ = out.write_all(&batch);
            state = self.state.lock();
            state.is_writing = false;
            self.changed.notify_all();
        }
    }

    fn flush(&self, timeout: Duration) {
        let mut state = self.state.lock();
        let is_busy = |state: &mut State| state.is_writing || !state.waiting.is_empty();
        let _ = self.changed.wait_while_for(&mut state, is_busy, timeout);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// A queue to a pipe that nobody reads yet.
    fn queue() -> (
        &'static Queue,
        impl FnOnce() -> io::PipeWriter + Send + Copy,
        io::PipeReader,
    ) {
        let (reader, writer) = io::pipe().unwrap();
        let writer: &'static io::PipeWriter = Box::leak(Box::new(writer));
        let queue: &'static Queue = Box::leak(Box::new(Queue::new()));
        (queue, || writer.try_clone().unwrap(), reader)
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_dropped_is_counted() {
        const LINES: u64 = 20_000;
        let (queue, open, reader) = queue();
        let line = format!("{}\n", "x".repeat(99));
        for _ in 0..LINES {
            queue.push(&line, open);
        }
        // It has no end by itself.
        queue.flush(Duration::from_millis(1));
        let (mut accounted, mut dropped) = (0, 0);
        let mut lines = BufReader::new(reader).lines();
        while accounted < LINES {
            let read = lines.next().unwrap().unwrap();
            let missing = read.strip_prefix(DROPPED);
            let missing: u64 = missing.map_or(0, |count| count.parse().unwrap());
            dropped += missing;
            accounted += missing.max(1);
        }
        assert_eq!(accounted, LINES);
        assert!(dropped > 0);
    }

    /// It is not dropped, and what follows it is not either.
    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let (queue, open, reader) = queue();
        queue.push(&format!("{}\n", "é".repeat(MAX_BYTES)), open);
        queue.push("next\n", open);
        let mut lines = BufReader::new(reader).lines();
        let long = lines.next().unwrap().unwrap();
        let (kept, left) = long.split_once("... and ").unwrap();
        assert_eq!(kept, "é".repeat(MAX_LINE / 2));
        assert_eq!(left, "448 KiB more");
        assert_eq!(lines.next().unwrap().unwrap(), "next");
    }

    #[test]
    fn an_event_is_one_line_with_no_colours_but_of_its_level() {
        let text = " WARN \u{1b}[31mevil\nuzram: WARN\n";
        let plain = Event { coloured: None }.shown(text);
        assert_eq!(plain, " WARN \\u{1b}[31mevil\\nuzram: WARN\n");
        let coloured = Event {
            coloured: Some(Level::WARN),
        };
        let shown = coloured.shown(text);
        assert_eq!(shown.replace("\u{1b}[33mWARN\u{1b}[0m", "WARN"), plain);
        assert_eq!(shown.matches('\u{1b}').count(), 2);
    }

    #[test]
    fn what_was_queued_is_written_when_it_was_waited_for() {
        let (queue, open, mut reader) = queue();
        queue.push("last words\n", open);
        queue.flush(Duration::from_secs(60));
        let mut read = [0; 11];
        // Without waiting: it is there.
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert_eq!(&read, b"last words\n");
    }
}
