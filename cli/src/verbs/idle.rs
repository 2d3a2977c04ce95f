//! `uzram idle`.

use anyhow::Result;
use serde_json::json;

use crate::args::IdleArgs;
use crate::base::output;
use crate::base::table::count;
use crate::runtime::client::connect_to_server;
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// `uzram idle`.
pub(crate) fn idle(args: &IdleArgs, root: &RunRoot) -> Result<()> {
    let pages = connect_to_server(&target::find(&args.name, root)?)?.mark_idle(&args.which)?;
    let text = format_args!("{} pages marked as idle", count(pages));
    output::done(args.report.json, &json!({ "pages": pages }), text)
}
