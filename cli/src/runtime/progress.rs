//! How far something is that takes long: a bar or a spinner on a terminal, else a line now and then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use uzram::Stats;

use crate::base::output;
use crate::base::stderr;
use crate::base::table::{bytes, count};
use crate::runtime::client;
use crate::runtime::rundir::RunDir;

/// How often it is said how far it is, where there is no bar.
const EVERY: Duration = Duration::from_secs(2);

/// How often a server is asked how far it is.
const POLL: Duration = Duration::from_millis(200);

/// Pages done, of how many.
pub(crate) struct Progress {
    total: u64,
    /// What becomes of the pages, as in `spilled pages checked`.
    what: &'static str,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    pub(crate) fn new(total: u64, what: &'static str) -> Self {
        let bar = output::draws().then(|| {
            let style =
                ProgressStyle::with_template("{bar:40} {percent}% of {human_len} pages, {eta}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style)
        });
        Self {
            total,
            what,
            bar,
            said: Instant::now(),
        }
    }

    /// Pages come and go meanwhile, so what is done may be more than there were.
    pub(crate) fn show(&mut self, done: u64) {
        let total = self.total.max(done);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if !output::is_quiet() && self.said.elapsed() >= EVERY {
            self.said = Instant::now();
            let (done, total) = (count(done), count(total));
            stderr::line(&format!("{done} of {total} {}", self.what));
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Has a server do `work`, which is one request, and shows meanwhile what `describe` makes of its
/// statistics before and now; only on a terminal.
pub(crate) fn watched<T>(
    dir: &RunDir,
    describe: impl Fn(&Stats, &Stats) -> String + Sync,
    work: impl FnOnce() -> T,
) -> Result<T> {
    if !output::draws() {
        return Ok(work());
    }
    let mut client = client::connect(dir)?;
    let before = client.stat()?;
    let spinner = ProgressBar::new_spinner();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let show = || {
            while !is_done.load(Ordering::Acquire) {
                // A server that does not say how far it is may still do what it was asked.
                if let Ok(now) = client.stat() {
                    spinner.set_message(describe(&before, &now));
                }
                spinner.tick();
                thread::park_timeout(POLL);
            }
            spinner.finish_and_clear();
        };
        let shown = thread::Builder::new().spawn_scoped(scope, show);
        let done = work();
        is_done.store(true, Ordering::Release);
        match shown {
            Ok(shown) => shown.thread().unpark(),
            Err(error) => tracing::debug!("it is not shown how far it is: {error}"),
        }
        Ok(done)
    })
}

/// `memory 12 MiB, from 40 MiB`.
pub(crate) fn memory_since(before: &Stats, now: &Stats) -> String {
    let (before, now) = (bytes(before.mem_used_total), bytes(now.mem_used_total));
    format!("memory {now}, from {before}")
}

/// Shows which of several steps is being done, where that can be drawn.
pub(crate) struct Steps {
    bar: ProgressBar,
}

impl Steps {
    pub(crate) fn new(count: u64) -> Self {
        let bar = if output::draws() {
            ProgressBar::new(count)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("[{pos}/{len}] {msg}") {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Goes on to the next step.
    pub(crate) fn next(&self, message: impl Into<String>) {
        self.bar.inc(1);
        self.bar.set_message(message.into());
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
