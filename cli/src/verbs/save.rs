//! `uzram save`, and the last image of a device that is stopped or unmounted.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, absolute};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use rustix::fs::Access;
use rustix::io::Errno;
use uzram::control::Client;
use uzram::{ImageFile, SaveProgress, Saved};

use crate::args::SaveArgs;
use crate::base::name::Name;
use crate::base::output;
use crate::base::table::{bytes, count};
use crate::base::undo::{Interrupt, Interrupted};
use crate::runtime::attachments::Owner;
use crate::runtime::client::{self, LONG, TIMEOUT};
use crate::runtime::layers;
use crate::runtime::progress::Progress;
use crate::runtime::rundir::{RunDir, RunRoot};
use crate::runtime::server::STOP_TIMEOUT;
use crate::runtime::target;

/// How often it is asked how far it is.
const EVERY: Duration = Duration::from_millis(200);

/// `uzram save`.
pub(crate) fn save(args: &SaveArgs, root: &RunRoot) -> Result<()> {
    let saved = save_to(&target::find(&args.name, root)?, &args.file, false)?;
    if args.json {
        return output::json(&saved);
    }
    say(&args.file, saved)
}

/// A device's last save, which is to be told of.
#[must_use]
pub(crate) struct LastSave<'a> {
    file: &'a Path,
    saved: Saved,
}

impl LastSave<'_> {
    /// Says what was saved, once what comes after it was `done`: that nobody reads it is no reason to leave
    /// that out.
    pub(crate) fn say_after(self, done: Result<()>) -> Result<()> {
        let said = say(self.file, self.saved);
        done.and(said)
    }
}

/// Saves a device that is about to be stopped and that nobody uses.
pub(crate) fn save_last<'a>(dir: &RunDir, file: &'a Path) -> Result<LastSave<'a>> {
    let saved = save_to(dir, file, true)?;
    Ok(LastSave { file, saved })
}

/// Saves a device that nobody uses, if it is to be, and has `stop` end it.
pub(crate) fn save_and(
    dir: &RunDir,
    file: Option<&Path>,
    stop: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match file {
        Some(file) => save_last(dir, file)?.say_after(stop()),
        None => stop(),
    }
}

/// Finds out what can be found out of whether the device of `owner` can be saved to `file`, once it is
/// unmounted.
pub(crate) fn check_target(owner: &Owner, file: &Path) -> Result<()> {
    let (name, shown) = (owner.dir.name(), file.display());
    if let Some(origin) = &owner.record.origin {
        let origin = origin.display();
        bail!("{name} cannot be saved: most of it is in {origin}, its --origin; copy that");
    }
    let path = uzram::follow_links(file).with_context(|| format!("cannot save to {shown}"))?;
    let path = absolute(path).with_context(|| format!("cannot make sense of {shown}"))?;
    let parent = path.parent().unwrap_or(&path);
    let there = parent.canonicalize().and_then(|dir| {
        rustix::fs::access(&dir, Access::WRITE_OK | Access::EXEC_OK)?;
        fs::read_dir(&dir)?;
        Ok(dir)
    });
    let there = there.with_context(|| format!("cannot save to {shown}: {}", parent.display()))?;
    if let Some(at) = owner
        .record
        .mountpoint
        .as_ref()
        .filter(|at| there.starts_with(at))
    {
        let at = at.display();
        bail!("cannot save to {shown}: it is on {at}, which is unmounted first");
    }
    Ok(())
}

fn say(file: &Path, saved: Saved) -> Result<()> {
    output::report(format_args!(
        "{} saved, {} pages: {} in {}",
        bytes(saved.pages * uzram::PAGE_SIZE as u64),
        count(saved.pages),
        bytes(saved.bytes),
        file.display()
    ))
}

/// Has the server save; Ctrl-C has it end that, and says what has become of it.
fn save_to(dir: &RunDir, file: &Path, last: bool) -> Result<Saved> {
    dir.require_owner()?;
    let interrupt = Interrupt::install()?;
    let socket = dir.control_socket();
    let path =
        absolute(file).with_context(|| format!("cannot make sense of {}", file.display()))?;
    let mut saver = Client::connect(&socket, TIMEOUT)?.with_timeout(LONG);
    check_place(&path, dir, &mut saver)?;
    // With our rights: the server need have none to the place.
    let image = ImageFile::create(&path)?;
    let handed = image.as_fd().try_clone_to_owned()?;
    let pages = Client::connect(&socket, TIMEOUT)?.stat()?.orig_data_size / uzram::PAGE_SIZE as u64;
    let mut progress = Progress::new(pages, "pages saved");
    let hang_up = saver.hang_up()?;
    let (done, saved) = mpsc::channel();
    let target = path.clone();
    thread::Builder::new()
        .name("uzram-save".to_owned())
        .spawn(move || done.send(saver.save(handed, &target, last)))
        .context("cannot start the thread that waits for the save")?;
    let saved = loop {
        match saved.recv_timeout(EVERY) {
            Ok(saved) => break saved,
            Err(RecvTimeoutError::Disconnected) => return Err(anyhow!("the save came to no end")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt.check().is_err() {
            hang_up.hang_up();
            progress.end();
            let is_over = wait_for_end(&socket);
            return Err(interrupted(dir.name(), last, is_over));
        }
        if let Ok(Some(now)) = ask(&socket) {
            progress.show(now.pages);
        }
    };
    progress.end();
    let saved = saved.map_err(|error| match fate(dir, &error) {
        Fate::Serves => error.into(),
        Fate::Silent => Unserved::silent(&error, dir),
        Fate::Gone => Unserved::gone(dir, file),
    })?;
    image.commit()?;
    Ok(saved)
}

/// Refuses a place that lies on the device, or is where it spills to; the server may not be able to tell.
fn check_place(path: &Path, dir: &RunDir, client: &mut Client) -> Result<()> {
    layers::check(path, dir.name(), dir.root())?;
    let id = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let backing = client::backing(client)?;
    if let Some(backing) = backing.and_then(|backing| id(Path::new(&backing)))
        && id(path) == Some(backing)
    {
        bail!(
            "save: {} is the backing of the device; save to another file",
            path.display()
        );
    }
    Ok(())
}

/// The device is not, or perhaps not, served any more after its save failed.
#[derive(Debug)]
pub(crate) struct Unserved(String);

impl Unserved {
    fn gone(dir: &RunDir, file: &Path) -> Error {
        let (name, file) = (dir.name(), file.display());
        let mut text = format!(
            "the server of {name} ended before {file} was complete: what was on {name} is lost, and nothing \
             was saved"
        );
        if dir.exists().unwrap_or(false) {
            text.push_str(&format!("; {}", dir.how_to_clear()));
        }
        Self(text).into()
    }

    fn silent(error: &uzram::Error, dir: &RunDir) -> Error {
        let name = dir.name();
        Self(format!("{error}; {name} does not answer: see uzram list")).into()
    }
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unserved {}

/// What has become of a server whose save failed.
enum Fate {
    Serves,
    Gone,
    Silent,
}

fn fate(dir: &RunDir, error: &uzram::Error) -> Fate {
    let is_stopping = match error {
        uzram::Error::Remote { errno, .. } if *errno == Errno::INTR => true,
        uzram::Error::Remote { .. } => return Fate::Serves,
        // It hung up, or said nothing for long.
        _ => false,
    };
    let deadline = Instant::now() + STOP_TIMEOUT;
    loop {
        match dir.holder() {
            Ok(None) => return Fate::Gone,
            _ if !is_stopping && ask(&dir.control_socket()).is_ok() => return Fate::Serves,
            _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            _ => return Fate::Silent,
        }
    }
}

/// How far a save is. A server that does not say may be saving all the same.
fn ask(socket: &Path) -> uzram::Result<Option<SaveProgress>> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    Client::connect(socket, TIMEOUT)?.save_progress()
}

/// Whether a save ends, whose client has gone.
fn wait_for_end(socket: &Path) -> bool {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        match ask(socket) {
            Ok(None) => return true,
            Ok(Some(_)) => thread::sleep(Duration::from_millis(20)),
            Err(_) => return false,
        }
    }
    false
}

fn interrupted(name: &Name, last: bool, is_over: bool) -> Error {
    let mut text = match is_over {
        true => "interrupted: nothing was saved".to_owned(),
        false => {
            format!("interrupted: {name} was told to end the save, and has not said that it did")
        }
    };
    if last {
        text.push_str(&format!("; {name} is not stopped"));
    }
    Interrupted::error(text)
}
