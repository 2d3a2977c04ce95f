//! `uzram reset`.

use anyhow::Result;

use crate::args::NameArgs;
use crate::runtime::client::connect_to_server;
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;
use crate::verbs::stop::refuse_if_used;

/// `uzram reset`; the server refuses while its disk is open.
pub(crate) fn reset(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?;
    refuse_if_used(&dir, None)?;
    Ok(client.reset()?)
}
