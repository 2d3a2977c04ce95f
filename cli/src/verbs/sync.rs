//! `uzram sync`.

use anyhow::Result;

use crate::args::NameArgs;
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// `uzram sync`.
pub(crate) fn sync(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let mut client = connect_to_server(&target::find(&args.name, root)?)?.with_timeout(LONG);
    Ok(client.sync()?)
}
