//! `uzram down`: the devices of configuration files are stopped.

use std::path::Path;

use anyhow::Result;

use crate::args::DownArgs;
use crate::base::failure;
use crate::base::old_image::OldImage;
use crate::base::output;
use crate::runtime::rundir::{RunDir, RunRoot, Turn};
use crate::settings::config::{Entry, Files};
use crate::verbs::stop;
use crate::verbs::swapon;
use crate::verbs::umount::{self, Down};
use crate::verbs::up::{down_command, each};

/// `uzram down`: in the reverse order.
pub(crate) fn down(args: &DownArgs, root: &RunRoot) -> Result<()> {
    let asked = args.which.config()?;
    let files = Files::read(asked)?;
    let mut entries = files.select(&args.which.names())?;
    entries.reverse();
    if entries.is_empty() {
        return output::report(format_args!("{} describes no devices", files.shown()));
    }
    each(&entries, |_, entry| {
        let dir = root.dir(&entry.name);
        let _turn = Turn::to_change(&dir)?;
        if !dir.exists()? {
            return output::report(format_args!("{} is not up", entry.name));
        }
        let save = match dir.owner()? {
            Some(_) => entry.save(),
            None => {
                warn_of_loss(entry);
                None
            }
        };
        let command = down_command(entry, asked);
        take_down(entry, &dir, save.as_deref(), &command, root)
    })
}

/// Takes down one that is up, saved to `save` first, where an image that is not its own is kept.
fn take_down(
    entry: &Entry,
    dir: &RunDir,
    save: Option<&Path>,
    command: &str,
    root: &RunRoot,
) -> Result<()> {
    let record = dir.record();
    let began_with = record
        .as_ref()
        .and_then(|record| record.began_with.as_ref());
    let kept = save
        .map(|file| OldImage::keep(file, began_with))
        .transpose()?;
    let name = &entry.name;
    let down = match record
        .as_ref()
        .and_then(|record| record.mountpoint.as_ref())
    {
        Some(mountpoint) => umount::unmount(mountpoint, save, Down { name, command }, root),
        None if entry.swap_priority().is_some() => swapon::down(dir),
        None => stop::stop_unused(dir, save),
    };
    if let Some(kept) = kept.flatten() {
        kept.settle();
    }
    down
}

/// Says of a device whose server is dead what its image does not have.
fn warn_of_loss(entry: &Entry) {
    if let Some(image) = entry.save() {
        failure::warn(&format!(
            "the server of {} is dead: what was written since it was saved to {} is lost",
            entry.name,
            image.display()
        ));
    }
}
