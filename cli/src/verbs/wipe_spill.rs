//! `uzram wipe-spill`: overwrites the file of a spill.

use anyhow::Result;

use crate::args::WipeArgs;
use crate::runtime::spill;

/// `uzram wipe-spill`.
pub(crate) fn wipe_spill(args: &WipeArgs) -> Result<()> {
    spill::outlive_the_server()?;
    Ok(uzram::wipe_spill(&args.path)?)
}
