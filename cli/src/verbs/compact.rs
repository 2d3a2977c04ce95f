//! `uzram compact`.

use anyhow::Result;
use serde_json::json;

use crate::args::CompactArgs;
use crate::base::output;
use crate::base::table::{bytes, count};
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::progress::{memory_since, watched};
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// `uzram compact`.
pub(crate) fn compact(args: &CompactArgs, root: &RunRoot) -> Result<()> {
    target::each(&args.names, root, |dir| {
        let mut client = connect_to_server(dir)?.with_timeout(LONG);
        let pages = watched(dir, memory_since, || client.compact())??;
        let freed = bytes(pages * uzram::PAGE_SIZE as u64);
        let of = match args.names.len() {
            1 => String::new(),
            _ => format!("{}: ", dir.name()),
        };
        let text = format_args!("{of}{freed} freed, {} page frames", count(pages));
        let value = json!({ "name": dir.name().as_str(), "pages": pages });
        output::done(args.report.json, &value, text)
    })
}
