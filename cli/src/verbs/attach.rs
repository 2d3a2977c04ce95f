//! `uzram attach`: a served device as a block device of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use uzram::SectorSize;

use crate::args::{AttachArgs, Transport};
use crate::base::output;
use crate::runtime::attachments;
use crate::runtime::client;
use crate::runtime::loopdev;
use crate::runtime::nbddev::NbdDevice;
use crate::runtime::rundir::{Record, RunDir, RunRoot, Turn};
use crate::runtime::sectors;
use crate::runtime::target;
use crate::verbs::mount::require_root;

/// Seconds that a request to the kernel's NBD device may take. A write is refused after 60 s without
/// room, perhaps once more.
const TIMEOUT: u32 = 180;

/// Over an image: a flush destages all that is dirty.
const NO_TIMEOUT: u32 = 0;

/// How long nbd-client may take to disconnect a device that was only looked at.
const DISCONNECTS: Duration = Duration::from_secs(10);

/// `uzram attach`.
pub(crate) fn attach(args: &AttachArgs, root: &RunRoot) -> Result<()> {
    require_root("attach")?;
    let dir = target::find(&args.name, root)?;
    dir.require_owner()?;
    let turn = Turn::to_change(&dir)?;
    // It may have been stopped meanwhile.
    dir.require_owner()?;
    let Some(record) = dir.record() else {
        bail!("{} is only just starting: try again", dir.name());
    };
    if let Some(device) = attachments::of(&dir, &record)?.first() {
        let (name, device) = (dir.name(), device.path().display());
        bail!("{name} is attached already, as {device}: uzram detach {name} first");
    }
    let transport = args.transport().unwrap_or(match record.fuse {
        Some(_) => Transport::Fuse,
        None => Transport::Nbd,
    });
    if transport == Transport::Fuse && args.timeout.is_some() {
        bail!("--timeout: a loop device has none: leave it out, or use --nbd");
    }
    if transport == Transport::Nbd && record.strict {
        let name = &args.name;
        bail!(
            "{name} has --sandbox strict, and could not unmount what is attached over NBD when it stops: serve it \
             with --sandbox on"
        );
    }
    let attaching = Attaching {
        turn: &turn,
        dir: &dir,
        record: &record,
        sectors: args.sector_size,
    };
    let device = match (transport, &record.fuse) {
        (Transport::Fuse, Some(fuse)) => attaching.over_fuse(fuse)?,
        (Transport::Fuse, None) => bail!(
            "--fuse: {} is not served over FUSE: start it with uzram serve ... --fuse DIR",
            dir.name()
        ),
        (Transport::Nbd, _) => {
            let usual = record.destages_to.as_ref().map_or(TIMEOUT, |_| NO_TIMEOUT);
            attaching.over_nbd(args.timeout.unwrap_or(usual))?
        }
    };
    output::line(format_args!("{}", device.display()))
}

/// A device that is to be attached.
struct Attaching<'a> {
    turn: &'a Turn,
    dir: &'a RunDir,
    record: &'a Record,
    /// Those that are asked for.
    sectors: Option<SectorSize>,
}

impl Attaching<'_> {
    fn over_fuse(&self, fuse: &Path) -> Result<PathBuf> {
        let disk = fuse.join("disk");
        let sectors = match self.sectors {
            Some(sectors) => sectors,
            None => sectors::choose(&disk, self.dir)?,
        };
        sectors::remember(self.dir, sectors)?;
        let read_only = self.record.read_only;
        Ok(loopdev::attach(self.turn, &disk, sectors, read_only)?.path)
    }

    fn over_nbd(&self, timeout: u32) -> Result<PathBuf> {
        let Some(address) = self.record.nbd.first() else {
            bail!("--nbd: {} is not served over NBD", self.dir.name());
        };
        let connect = |sectors| {
            let (name, note) = (self.dir.name(), self.dir.nbd_device());
            NbdDevice::connect(self.turn, name, address.parse()?, timeout, sectors, &note)
        };
        if let Some(sectors) = self.sectors_unseen()? {
            sectors::remember(self.dir, sectors)?;
            return Ok(connect(sectors)?.path);
        }
        let device = connect(SectorSize::Least)?;
        let suits = sectors::choose(&device.path, self.dir);
        let suits = suits.and_then(|suits| sectors::remember(self.dir, suits).map(|()| suits));
        if let Ok(SectorSize::Least) = suits {
            return Ok(device.path);
        }
        device.disconnect(DISCONNECTS)?;
        Ok(connect(suits?)?.path)
    }

    /// The sectors, if what is on the device needs not be looked at through the kernel's NBD driver.
    fn sectors_unseen(&self) -> Result<Option<SectorSize>> {
        if self.sectors.is_some() {
            return Ok(self.sectors);
        }
        if let Some(fuse) = &self.record.fuse {
            return sectors::choose(&fuse.join("disk"), self.dir).map(Some);
        }
        let data = || client::connect(self.dir)?.stat();
        if self.record.origin.is_none() && data()?.orig_data_size == 0 {
            return sectors::for_blank(self.dir).map(Some);
        }
        Ok(None)
    }
}
