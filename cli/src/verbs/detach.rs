//! `uzram detach`: what is attached is detached, and what a killed server left is cleared.

use anyhow::{Result, bail};

use crate::args::NameArgs;
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::release;
use crate::runtime::rundir::{RunRoot, Turn};
use crate::runtime::server;
use crate::runtime::target;
use crate::verbs::mount::require_root;

/// `uzram detach`: what is attached, and all that a dead server left.
pub(crate) fn detach(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    dir.require_there()?;
    let _turn = Turn::to_change(&dir)?;
    dir.require_there()?;
    let record = dir.record();
    let attached = match &record {
        Some(record) => attachments::of(&dir, record)?,
        None => Vec::new(),
    };
    if attached.iter().any(Attachment::is_block_device) {
        require_root("detach")?;
    }
    if dir.owner()?.is_none() {
        release::refuse_if_swapped_to(&dir)?;
        return server::stop(&dir);
    }
    if attached.is_empty() {
        bail!("{} is not attached", dir.name());
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
