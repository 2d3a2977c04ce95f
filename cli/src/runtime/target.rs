//! The device that a command line is about, by its name or by where it is.

use std::path::Path;

use anyhow::{Result, anyhow};
use uzram::mounts;

use crate::args::Target;
use crate::base::failure::{self, Said};
use crate::base::output::StdoutGone;
use crate::runtime::attachments;
use crate::runtime::rundir::{RunDir, RunRoot};

/// The directory in RUNDIR of a device. One that is named need not be there.
///
/// # Errors
/// That no device is at the path.
pub(crate) fn find(target: &Target, root: &RunRoot) -> Result<RunDir> {
    let path = match target {
        Target::Name(name) => return Ok(root.dir(name)),
        Target::Path(path) => mounts::absolute(path)?,
    };
    let mut dead = None;
    for dir in root.dirs()? {
        if !is_at(&dir, &path)? {
            continue;
        }
        if dir.holder()?.is_some() {
            return Ok(dir);
        }
        dead = Some(dir);
    }
    dead.ok_or_else(|| anyhow!("{target}: no device of uzram is there; see uzram list"))
}

/// Whether a device is mounted at `path`, or is the block device or the FUSE directory there.
fn is_at(dir: &RunDir, path: &Path) -> Result<bool> {
    let Some(record) = dir.record() else {
        return Ok(false);
    };
    if [&record.mountpoint, &record.fuse]
        .into_iter()
        .flatten()
        .any(|at| at == path)
    {
        return Ok(true);
    }
    for device in attachments::of(dir, &record)? {
        if device.path() == path
            || device
                .mounts()?
                .iter()
                .any(|mount| mount.mountpoint == path)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Does `work` for each of several devices, whatever becomes of the others. A failure is said when it happens; that of an
/// only device is the whole's.
pub(crate) fn each(
    targets: &[Target],
    root: &RunRoot,
    mut work: impl FnMut(&RunDir) -> Result<()>,
) -> Result<()> {
    let mut failed = None;
    for target in targets {
        let error = match find(target, root).and_then(|dir| work(&dir)) {
            Ok(()) => continue,
            Err(error) if targets.len() == 1 || error.is::<StdoutGone>() => return Err(error),
            Err(error) => error,
        };
        failure::complain(&error);
        let usage = failure::exit_code(&error) == failure::USAGE;
        failed = Some(failed.unwrap_or(true) && usage);
    }
    failed.map_or(Ok(()), |usage| Err(Said::all(usage).into()))
}
