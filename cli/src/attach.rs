//! `uzram attach` and `uzram detach`: a served device as a block device of this machine.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::args::{AttachArgs, NameArgs, Transport};
use crate::attachments::{self, Attachment};
use crate::loopdev::{self, SectorSize};
use crate::mount::require_root;
use crate::nbddev::NbdDevice;
use crate::output;
use crate::release;
use crate::rundir::{Record, RunDir, RunRoot};
use crate::server;

/// Seconds that a request to the kernel's NBD device may take. A write is refused after 60 s without
/// room, perhaps once more.
const TIMEOUT: u32 = 180;

/// Over an image: a flush writes home all that is dirty.
const NO_TIMEOUT: u32 = 0;

/// `uzram attach`.
pub(crate) fn attach(args: &AttachArgs, root: &RunRoot) -> Result<()> {
    require_root("attach")?;
    let dir = root.dir(&args.name);
    dir.require_owner()?;
    let _turn = dir.take_turn()?;
    let Some(record) = dir.record() else {
        bail!("{} is only just starting: try again", args.name);
    };
    if let Some(device) = attachments::of(&dir, &record)?.first() {
        let (name, device) = (&args.name, device.path().display());
        bail!("{name} is attached already, as {device}: uzram detach {name} first");
    }
    let transport = args.transport().unwrap_or(match record.fuse {
        Some(_) => Transport::Fuse,
        None => Transport::Nbd,
    });
    if transport == Transport::Fuse && args.timeout.is_some() {
        bail!("--timeout: a loop device has none: leave it out, or use --nbd");
    }
    let device = match (transport, &record.fuse) {
        (Transport::Fuse, Some(fuse)) => {
            let disk = fuse.join("disk");
            loopdev::attach(&disk, SectorSize::for_contents(&disk))?.path
        }
        (Transport::Fuse, None) => bail!(
            "--fuse: {} is not served over FUSE: start it with uzram serve ... --fuse DIR",
            args.name
        ),
        (Transport::Nbd, _) => {
            let usual = record.home.as_ref().map_or(TIMEOUT, |_| NO_TIMEOUT);
            attach_nbd(&dir, &record, args.timeout.unwrap_or(usual))?
        }
    };
    output::line(format_args!("{}", device.display()))
}

fn attach_nbd(dir: &RunDir, record: &Record, timeout: u32) -> Result<PathBuf> {
    let Some(address) = record.nbd.first() else {
        bail!("--nbd: {} is not served over NBD", dir.name());
    };
    let (name, note) = (dir.name().as_str(), dir.nbd_device());
    let device = NbdDevice::connect(name, address.parse()?, timeout, &note)?;
    Ok(device.path)
}

/// `uzram detach`: what is attached, and all that a dead server left.
pub(crate) fn detach(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    dir.require_there()?;
    let _turn = dir.take_turn()?;
    let record = dir.record();
    let attached = match &record {
        Some(record) => attachments::of(&dir, record)?,
        None => Vec::new(),
    };
    if !attached.is_empty() {
        require_root("detach")?;
    }
    if dir.owner()?.is_none() {
        release::refuse_if_swapped_to(&dir)?;
        return server::stop(&dir);
    }
    if attached.is_empty() {
        bail!("{} is not attached", args.name);
    }
    for device in &attached {
        if let Some(record) = &record
            && let Some(user) = device.user(record, None)?
        {
            bail!("{} is {user}", device.path().display());
        }
    }
    attached.iter().try_for_each(Attachment::detach)
}
