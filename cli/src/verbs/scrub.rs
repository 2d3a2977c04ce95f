//! `uzram scrub`, and what else reads all that is spilled.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;
use uzram::{Device, Scrubbed};

use crate::args::JobArgs;
use crate::base::output;
use crate::base::table::count;
use crate::runtime::client;
use crate::runtime::progress::Progress;
use crate::runtime::rundir::RunRoot;
use crate::runtime::stop::Stopper;
use crate::runtime::target;

/// Pages of a kind that are named.
const NAMED: usize = 20;

/// `uzram scrub`: fails if any page that is spilled cannot be read back.
pub(crate) fn scrub(args: &JobArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = client::connect_to_server(&dir)?;
    let mut progress = Progress::new(client.stat()?.written_back_pages, "spilled pages checked");
    let mut found = Found::default();
    let mut next = Some(0);
    while let Some(from) = next {
        next = found.add(&client.scrub(from)?);
        progress.show(found.checked);
    }
    progress.end();
    if args.report.json {
        output::json(&json!({
            "checked": found.checked,
            "damaged": found.damaged.count,
            "unreadable": found.unreadable.count,
        }))?;
    }
    let checked = format!("{} spilled pages checked", count(found.checked));
    match (found.bad(), args.report.json) {
        (Some(bad), _) => bail!("{checked}, {bad}"),
        (None, true) => Ok(()),
        (None, false) => output::report(format_args!("{checked}, all intact")),
    }
}

/// Reads all of the image that a device was restored from and is to have so many pages.
///
/// # Errors
/// Which pages are damaged; that a stop was requested.
pub(crate) fn verify_image(
    device: &Device,
    image: &Path,
    pages: u64,
    stopper: &Stopper,
) -> Result<()> {
    let mut progress = Progress::new(pages, "pages verified");
    let (mut found, mut next) = (Found::default(), Some(0));
    while let Some(from) = next {
        stopper.check()?;
        next = found.add(&device.scrub(from));
        progress.show(found.checked);
    }
    progress.end();
    match found.bad() {
        None => Ok(()),
        Some(bad) => bail!(
            "{}: not all pages of the image are intact: {bad}",
            image.display()
        ),
    }
}

#[derive(Default)]
struct Found {
    checked: u64,
    damaged: Pages,
    unreadable: Pages,
}

impl Found {
    /// Adds what a step found; returns where the next goes on.
    fn add(&mut self, step: &Scrubbed) -> Option<u64> {
        self.checked += step.intact + (step.damaged.len() + step.unreadable.len()) as u64;
        self.damaged.add(&step.damaged);
        self.unreadable.add(&step.unreadable);
        step.next
    }

    /// What is wrong, if anything is.
    fn bad(&self) -> Option<String> {
        let damaged = self.damaged.describe("damaged");
        let unreadable = self.unreadable.describe("not to be read");
        let bad: Vec<_> = [damaged, unreadable].into_iter().flatten().collect();
        (!bad.is_empty()).then(|| bad.join("; "))
    }
}

/// How many pages, and the first of them.
#[derive(Default)]
struct Pages {
    count: u64,
    first: Vec<u64>,
}

impl Pages {
    fn add(&mut self, pages: &[u64]) {
        self.count += pages.len() as u64;
        let room = NAMED - self.first.len();
        self.first.extend(pages.iter().take(room));
    }

    /// `3 damaged: 5, 9, 12`, if there are any.
    fn describe(&self, kind: &str) -> Option<String> {
        if self.count == 0 {
            return None;
        }
        let named: Vec<_> = self.first.iter().map(u64::to_string).collect();
        let mut text = format!("{} {kind}: {}", count(self.count), named.join(", "));
        let others = self.count - named.len() as u64;
        if others > 0 {
            text.push_str(&format!(" and {} more", count(others)));
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_pages_are_named_and_all_are_counted() {
        let mut pages = Pages::default();
        assert_eq!(pages.describe("damaged"), None);
        pages.add(&[5, 9]);
        assert_eq!(
            pages.describe("damaged").as_deref(),
            Some("2 damaged: 5, 9")
        );
        let more: Vec<u64> = (100..1118).collect();
        pages.add(&more);
        let text = pages.describe("damaged").unwrap();
        assert!(text.starts_with("1,020 damaged: 5, 9, 100, "), "{text}");
        assert!(text.ends_with(" 117 and 1,000 more"), "{text}");
    }
}
