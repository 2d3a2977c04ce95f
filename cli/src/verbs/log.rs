//! `uzram log`.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::args::LogArgs;
use crate::base::output;
use crate::runtime::rundir::RunRoot;
use crate::runtime::target;

/// How often it is looked for new lines.
const EVERY: Duration = Duration::from_millis(200);

/// `uzram log`: what a server in the background has logged.
pub(crate) fn log(args: &LogArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    dir.require_there()?;
    let path = dir.log();
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{} has no log: its server is not in the background, and logs to where it was started",
            dir.name()
        ),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    loop {
        // Looked at first, so that what it logs last is printed.
        let ends = !args.follow || dir.holder()?.is_none();
        print_rest(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
        if ends {
            return Ok(());
        }
        thread::sleep(EVERY);
    }
}

fn print_rest(file: &mut File) -> Result<()> {
    let mut bytes = vec![0; 64 << 10];
    loop {
        match file.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => output::text(&String::from_utf8_lossy(&bytes[..len]))?,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
