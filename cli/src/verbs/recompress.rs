//! `uzram recompress`.

use anyhow::Result;
use serde_json::json;
use uzram::Stats;

use crate::args::RecompressArgs;
use crate::base::output;
use crate::base::table::{bytes, count};
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::progress::{memory_since, watched};
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// `uzram recompress`.
pub(crate) fn recompress(args: &RecompressArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?.with_timeout(LONG);
    let before = client.stat()?.mem_used_total;
    let which = args.which.join(" ");
    let smaller = |before: &Stats, now: &Stats| {
        let pages = now
            .recompressed_pages
            .saturating_sub(before.recompressed_pages);
        format!(
            "{} pages made smaller, {}",
            count(pages),
            memory_since(before, now)
        )
    };
    let pages = watched(&dir, smaller, || client.recompress(&which))??;
    let after = client.stat()?.mem_used_total;
    let value = json!({
        "pages": pages,
        "mem_used_total": after,
        "mem_used_total_before": before,
    });
    let (pages, after, before) = (count(pages), bytes(after), bytes(before));
    let text = format_args!("{pages} pages made smaller: memory {after}, from {before}");
    output::done(args.report.json, &value, text)
}
