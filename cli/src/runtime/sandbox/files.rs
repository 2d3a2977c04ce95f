//! The files that a strict server is kept to (Landlock): those that its options name, those of the system
//! that any program reads, and RUNDIR.
//!
//! Who names a file to the server later, for `save` or `backing_dev`, is refused unless it is in a directory
//! of these.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, path_beneath_rules,
};
use uzram::nbd::Address;

use crate::args::Sink;
use crate::runtime::rundir::RunRoot;
use crate::settings::Settings;

/// Which rights there are to be given or not: all of Linux 6.2.
const RIGHTS: ABI = ABI::V3;

/// What any program reads and runs.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc",
    "/proc",
    "/sys",
    "/dev/urandom",
];

/// What any server writes to.
const WRITTEN: [&str; 2] = ["/dev/null", "/proc/self/oom_score_adj"];

/// Keeps this thread, and those that it starts, to the files of `settings`.
///
/// # Errors
/// If the kernel cannot.
pub(super) fn restrict(settings: &Settings, root: &RunRoot) -> Result<()> {
    let mut read: Vec<PathBuf> = SYSTEM.map(PathBuf::from).to_vec();
    read.extend(std::env::current_exe());
    read.extend(settings.restore.clone());
    read.extend(certificates(settings));
    keep_to(&read, &written(settings, root))
}

/// Keeps this thread, and those that it starts, to the files that are left to a server to open that has a keeper.
///
/// # Errors
/// If the kernel cannot.
pub(super) fn restrict_kept(settings: &Settings) -> Result<()> {
    let mut read: Vec<PathBuf> = SYSTEM.map(PathBuf::from).to_vec();
    read.extend(certificates(settings));
    let mut written = WRITTEN.map(PathBuf::from).to_vec();
    if settings.fuse.is_some() {
        // Each of its threads opens it.
        written.push("/dev/fuse".into());
    }
    let files = settings.metrics_files();
    written.extend(files.iter().map(|path| existing(&parent(path))));
    keep_to(&read, &written)
}

fn keep_to(read: &[PathBuf], written: &[PathBuf]) -> Result<()> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))?
        .create()?
        .add_rules(path_beneath_rules(read, AccessFs::from_read(RIGHTS)))?
        .add_rules(path_beneath_rules(written, AccessFs::from_all(RIGHTS)))?
        .restrict_self()?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        bail!(
            "this kernel has no Landlock, or an old one: use Linux 6.2 or newer, or --sandbox on"
        );
    }
    tracing::debug!("kept to the files of its options");
    Ok(())
}

fn certificates(settings: &Settings) -> Option<PathBuf> {
    let tls = settings.nbd.tls.as_ref()?;
    Some(tls.certificates.clone())
}

/// What the server makes, changes and removes.
fn written(settings: &Settings, root: &RunRoot) -> Vec<PathBuf> {
    let mut paths = WRITTEN.map(PathBuf::from).to_vec();
    paths.push(root.path().to_owned());
    if let Some(backing) = &settings.device.backing {
        // A file is made and removed; a device is only used.
        paths.push(match backing.path.metadata() {
            Ok(meta) if !meta.is_file() => backing.path.clone(),
            _ => parent(&backing.path),
        });
    }
    paths.extend(
        settings
            .device
            .origin
            .as_ref()
            .map(|origin| origin.path.clone()),
    );
    let sinks = settings.metrics.iter().filter_map(|sink| match sink {
        Sink::Http(Address::Unix(path)) | Sink::File(path) => Some(path),
        Sink::Http(Address::Tcp { .. }) => None,
    });
    let sockets = settings
        .nbd
        .addresses
        .iter()
        .filter_map(|address| match address {
            Address::Unix(path) => Some(path),
            Address::Tcp { .. } => None,
        });
    paths.extend(sinks.chain(sockets).map(|path| existing(&parent(path))));
    paths
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

/// The directory itself, or the one in which it is to be made.
fn existing(dir: &Path) -> PathBuf {
    let there = dir.ancestors().find(|dir| dir.is_dir());
    there.unwrap_or(dir).to_owned()
}
