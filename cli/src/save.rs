//! `uzram save`, and the last image of a device that is stopped or unmounted.

use std::path::{Path, absolute};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use uzram::Saved;
use uzram::control::Client;

use crate::args::SaveArgs;
use crate::manage::LONG;
use crate::output;
use crate::progress::Progress;
use crate::rundir::{RunDir, RunRoot};
use crate::stat::PATIENCE;
use crate::table::{bytes, count};

/// How often it is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// `uzram save`.
pub(crate) fn save(args: &SaveArgs, root: &RunRoot) -> Result<()> {
    let saved = save_to(&root.dir(&args.name), &args.file, false)?;
    if args.json {
        return output::json(&saved);
    }
    say(&args.file, saved)
}

/// Saves a device that is about to be stopped and that nobody uses.
pub(crate) fn save_last(dir: &RunDir, file: &Path) -> Result<()> {
    let saved = save_to(dir, file, true)?;
    say(file, saved)
}

fn say(file: &Path, saved: Saved) -> Result<()> {
    output::line(format_args!(
        "{} saved, {} pages: {} in {}",
        bytes(saved.pages * uzram::PAGE_SIZE as u64),
        count(saved.pages),
        bytes(saved.bytes),
        file.display()
    ))
}

fn save_to(dir: &RunDir, file: &Path, last: bool) -> Result<Saved> {
    dir.require_owner()?;
    let socket = dir.control_socket();
    let path =
        absolute(file).with_context(|| format!("cannot make sense of {}", file.display()))?;
    let mut saver = Client::connect(&socket, PATIENCE)?.with_timeout(LONG);
    let mut watcher = Client::connect(&socket, PATIENCE)?;
    let pages = watcher.stat()?.orig_data_size / uzram::PAGE_SIZE as u64;
    let mut progress = Progress::new(pages, "pages saved");
    let (done, saved) = mpsc::channel();
    thread::spawn(move || done.send(saver.save(&path, last)));
    let saved = loop {
        match saved.recv_timeout(EVERY) {
            Ok(saved) => break saved?,
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the save came to no end")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(now) = watcher.save_progress()? {
            progress.show(now.pages);
        }
    };
    progress.end();
    Ok(saved)
}
