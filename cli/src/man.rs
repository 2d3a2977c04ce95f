//! `uzram man`: what is made from the description of the command line.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, ManArgs};

/// `uzram man`: a page for uzram and for each verb.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    page(&args.dir, "uzram", command.clone())
        .and_then(|()| {
            let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
            let mut verbs = verbs.map(|verb| (format!("uzram-{}", verb.get_name()), verb.clone()));
            verbs.try_for_each(|(name, verb)| page(&args.dir, &name, verb))
        })
        .with_context(|| format!("cannot write man pages to {}", args.dir.display()))
}

fn page(dir: &Path, name: &str, command: clap::Command) -> io::Result<()> {
    // clap keeps names for as long as the program runs.
    let title: &'static str = name.to_owned().leak();
    let mut text = Vec::new();
    clap_mangen::Man::new(command.name(title)).render(&mut text)?;
    fs::write(dir.join(format!("{name}.1")), text)
}
