//! How far something is that takes long: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::table::count;

/// How often it is said how far it is, where there is no bar.
const EVERY: Duration = Duration::from_secs(2);

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
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {percent}% of {len} pages, {eta}");
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
        } else if self.said.elapsed() >= EVERY {
            self.said = Instant::now();
            // Whoever reads it may have gone; that is no reason to stop.
            let _ = writeln!(
                io::stderr(),
                "{} of {} {}",
                count(done),
                count(total),
                self.what
            );
        }
    }

    pub(crate) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}
