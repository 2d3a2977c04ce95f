//! `uzram train-dict`.

use std::io::Read;
use std::path::{Path, absolute};

use anyhow::Result;
use uzram::{ImageFile, Links, MAX_DICTIONARY_LEN, PAGE_SIZE, Page};

use crate::args::TrainDictArgs;
use crate::base::failure::Usage;
use crate::base::output;
use crate::base::table::bytes;
use crate::runtime::client::{self, LONG};
use crate::runtime::rundir::RunRoot;

/// Pages to learn from, of files: 32 MiB.
const SAMPLES: usize = 8192;

/// `uzram train-dict`.
pub(crate) fn train_dict(args: &TrainDictArgs, root: &RunRoot) -> Result<()> {
    let len = usize::try_from(args.size).unwrap_or(usize::MAX);
    if !(1024..=MAX_DICTIONARY_LEN).contains(&len) {
        return Err(Usage::error(format!(
            "--size: a dictionary has from 1K to {}K",
            MAX_DICTIONARY_LEN >> 10
        )));
    }
    let output = absolute(&args.output)?;
    match &args.device {
        Some(name) => {
            let dir = root.dir(name);
            let mut client = client::connect_to_server(&dir)?.with_timeout(LONG);
            let file = ImageFile::create(&output)?;
            client.train_dictionary(&file, &output, len)?;
            file.commit()?;
        }
        None => {
            let dictionary = uzram::train_dictionary(&samples(&args.files)?, len)?;
            uzram::write_whole(&output, Links::Follow, &dictionary, 0o600)?;
        }
    }
    let made = std::fs::metadata(&output)?.len();
    let file = args.output.display();
    output::report(format_args!("{} of dictionary in {file}", bytes(made)))
}

/// Whole pages of files, as far apart as there are so many.
fn samples(files: &[impl AsRef<Path>]) -> Result<Vec<Page>> {
    let mut pages = Vec::new();
    for path in files {
        let path = path.as_ref();
        let mut file = uzram::open_named_file(path, Links::Follow)?;
        let mut page = [0; PAGE_SIZE];
        while file
            .by_ref()
            .take(PAGE_SIZE as u64)
            .read_exact(&mut page)
            .is_ok()
        {
            pages.push(page);
            if pages.len() == 4 * SAMPLES {
                thin_out(&mut pages);
            }
        }
    }
    while pages.len() > SAMPLES {
        thin_out(&mut pages);
    }
    Ok(pages)
}

/// Keeps every other page.
fn thin_out(pages: &mut Vec<Page>) {
    let mut odd = false;
    pages.retain(|_| {
        odd = !odd;
        odd
    });
}
