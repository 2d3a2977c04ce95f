//! `uzram man`: what is made from the description of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;

use crate::args::{Cli, ManArgs};

/// Where each verb's page refers to.
const SEE: &str = ".SH SEE ALSO\n\\fBuzram\\fR(1), which has the exit status of all verbs\n";

/// `uzram man`: a page for uzram and for each verb.
pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    page(&args.dir, "uzram", command.clone(), "")
        .and_then(|()| {
            let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
            let mut verbs = verbs.map(|verb| (format!("uzram-{}", verb.get_name()), verb.clone()));
            verbs.try_for_each(|(name, verb)| page(&args.dir, &name, verb, SEE))
        })
        .with_context(|| format!("cannot write man pages to {}", args.dir.display()))
}

fn page(dir: &Path, name: &str, command: clap::Command, see: &str) -> io::Result<()> {
    // clap keeps names for as long as the program runs.
    let title: &'static str = name.to_owned().leak();
    let has_verbs = command.has_subcommands();
    let after = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command.name(title));
    let mut text = Vec::new();
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_verbs {
        man.render_subcommands_section(&mut text)?;
    }
    text.write_all(sections(&after.unwrap_or_default()).as_bytes())?;
    text.write_all(see.as_bytes())?;
    let (title, day) = (name.to_uppercase(), env!("UZRAM_DAY"));
    let version = env!("CARGO_PKG_VERSION");
    let head = format!(
        ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n.TH {title} 1 \"{day}\" \"uzram {version}\"\n"
    );
    let text = String::from_utf8_lossy(&text);
    fs::write(dir.join(format!("{name}.1")), head + &tidy(&text))
}

/// The same page in lines as mandoc(1) likes them: each of at most 80 characters, with no space at its end and no request
/// that does nothing.
fn tidy(roff: &str) -> String {
    const WIDTH: usize = 80;
    // Each part that clap makes says again what an apostrophe is.
    let roff = roff
        .replace(".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n", "")
        .replace(".br\n\n.br\n", ".sp\n");
    let (mut tidy, mut after_heading, mut is_verbatim) = (String::new(), false, false);
    for line in roff.lines().map(str::trim_end) {
        let is_request = line.starts_with('.');
        match line {
            "" | ".PP" if after_heading => continue,
            ".nf" => is_verbatim = true,
            ".fi" => is_verbatim = false,
            _ => {}
        }
        after_heading = line.starts_with(".SH");
        let mut column = 0;
        for word in line.split(' ') {
            if column > 0 && column + 1 + word.len() > WIDTH && !is_request && !is_verbatim {
                // Where a line begins these would be requests.
                let shield = if word.starts_with(['.', '\'']) {
                    "\\&"
                } else {
                    ""
                };
                tidy.push_str(&format!("\n{shield}{word}"));
                column = shield.len() + word.len();
                continue;
            }
            if column > 0 {
                tidy.push(' ');
                column += 1;
            }
            tidy.push_str(word);
            column += word.len();
        }
        tidy.push('\n');
    }
    tidy
}

/// What ends a verb's help, as `examples` has it, in roff: what is typed stays as it is.
fn sections(after_help: &str) -> String {
    let mut roff = String::new();
    for block in after_help.split("\n\n") {
        let mut verbatim = String::new();
        for line in block.lines() {
            let is_heading = line.chars().all(|c| c.is_ascii_uppercase() || c == ' ');
            match line.strip_prefix("  ") {
                None if is_heading => roff.push_str(&format!(".SH {line}\n")),
                None => roff.push_str(&format!(".PP\n{}\n", escaped(line))),
                Some(caption) if caption.ends_with(':') => {
                    roff.push_str(&format!(".PP\n{}\n", escaped(caption)));
                }
                Some(typed) => verbatim.push_str(&format!("{}\n", escaped(typed))),
            }
        }
        if !verbatim.is_empty() {
            roff.push_str(&format!(".PP\n.nf\n{verbatim}.fi\n"));
        }
    }
    roff
}

/// A line that roff prints as it is.
fn escaped(line: &str) -> String {
    let text = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq")
        .replace('`', "\\(ga");
    match text.starts_with('.') {
        true => format!("\\&{text}"),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_requests_do_something() {
        let long = "word ".repeat(20);
        let roff = format!(".SH A\n.PP\n{long}\n.br\n\n.br\nB\n.nf\n{long}.\n.fi\n");
        let tidy = tidy(&roff);
        let lines: Vec<_> = tidy.lines().collect();
        assert_eq!(lines[1].len(), 79, "{tidy}");
        assert_eq!(lines[..3].concat().matches("word").count(), 20);
        assert_eq!(lines[3..6], [".sp", "B", ".nf"]);
        assert_eq!(lines[6], format!("{long}."));
    }

    #[test]
    fn what_is_typed_stays_as_it_is() {
        let help = "EXAMPLES\n  A caption:\n  uzram -a 'b' \\\n      c\n\n  Another:\n  .d\n\nIt ends here.";
        let roff = ".SH EXAMPLES\n.PP\nA caption:\n.PP\n.nf\nuzram \\-a \\(aqb\\(aq \\e\n    c\n.fi\n\
                    .PP\nAnother:\n.PP\n.nf\n\\&.d\n.fi\n.PP\nIt ends here.\n";
        assert_eq!(sections(help), roff);
    }
}
