//! `uzram writeback`.

use anyhow::Result;
use serde_json::json;
use uzram::Stats;

use crate::args::WritebackArgs;
use crate::base::output;
use crate::base::table::count;
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::progress::watched;
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// `uzram writeback`.
pub(crate) fn writeback(args: &WritebackArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?.with_timeout(LONG);
    let which = args.which.join(" ");
    let written = |before: &Stats, now: &Stats| {
        let pages = now.bd_writes.saturating_sub(before.bd_writes);
        format!("{} pages written back", count(pages))
    };
    let pages = watched(&dir, written, || client.write_back(&which))??;
    let text = format_args!("{} pages written back", count(pages));
    output::done(args.report.json, &json!({ "pages": pages }), text)
}
