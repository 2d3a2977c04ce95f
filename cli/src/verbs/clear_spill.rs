//! `uzram clear-spill`: how a server has the file of a spill cleared at its end.

use anyhow::Result;

use crate::args::ClearArgs;
use crate::base::failure::Usage;
use crate::runtime::spill::{self, SpillFile};

/// `uzram clear-spill`: a step of [`SpillFile::clear`].
pub(crate) fn clear_spill(args: &ClearArgs) -> Result<()> {
    let file: SpillFile = args.file.parse().map_err(Usage::error)?;
    spill::outlive_the_server()?;
    file.run_here(args.step)
}
