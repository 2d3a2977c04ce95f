//! What is in a page: its commands, with what they print, and what surrounds them.

/// A page of documentation.
pub(crate) struct Page {
    pub(crate) steps: Vec<Step>,
    /// Whether it is run without root.
    pub(crate) is_user_s: bool,
}

/// What a page asks for, in its order.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    /// Lines of shell that are not shown.
    Setup(String),
    /// A file in the directory where the commands are run.
    File {
        name: String,
        text: String,
    },
    Command(Shown),
}

/// A command and its output, as a page shows them.
#[derive(Debug, PartialEq)]
pub(crate) struct Shown {
    /// The page's line, from 1.
    pub(crate) at: usize,
    pub(crate) line: String,
    pub(crate) output: Vec<String>,
}

/// What the next block of code is for.
enum Next {
    Any,
    NotRun,
    File(String),
}

impl Page {
    /// Fails with what is wrong, and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut page = Self {
            steps: Vec::new(),
            is_user_s: false,
        };
        let mut next = Next::Any;
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            if let Some(kind) = line.strip_prefix("```") {
                let block: Vec<_> = lines
                    .by_ref()
                    .take_while(|(_, line)| *line != "```")
                    .collect();
                match (std::mem::replace(&mut next, Next::Any), kind) {
                    (Next::NotRun, _) => {}
                    (Next::File(name), _) => {
                        let text = block.iter().map(|(_, line)| format!("{line}\n")).collect();
                        page.steps.push(Step::File { name, text });
                    }
                    (Next::Any, "console") => page.steps.extend(commands(&block)?),
                    (Next::Any, "text") => {}
                    (Next::Any, _) => {
                        return Err(format!(
                            "line {}: a block that is neither run nor marked",
                            at + 1
                        ));
                    }
                }
            } else if line == "<!-- user -->" {
                page.is_user_s = true;
            } else if line == "<!-- setup" {
                let setup: Vec<_> = lines
                    .by_ref()
                    .map(|(_, line)| line)
                    .take_while(|line| *line != "-->")
                    .collect();
                page.steps.push(Step::Setup(setup.join("\n")));
            } else if let Some(name) = comment(line, "file: ") {
                next = Next::File(name.to_owned());
            } else if comment(line, "not run: ").is_some() {
                next = Next::NotRun;
            }
        }
        Ok(page)
    }

    pub(crate) fn has_commands(&self) -> bool {
        self.steps
            .iter()
            .any(|step| matches!(step, Step::Command(_)))
    }

    /// The directories that the page mounts something on.
    pub(crate) fn mountpoints(&self) -> Vec<&str> {
        let texts = self.steps.iter().map(|step| match step {
            Step::Setup(text) | Step::File { text, .. } => text,
            Step::Command(command) => &command.line,
        });
        let words = texts
            .flat_map(|text| text.split(|c: char| c.is_whitespace() || matches!(c, '"' | ')')));
        let is_mountpoint = |word: &&str| {
            let name = word.strip_prefix("/mnt/").unwrap_or_default();
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        words.filter(is_mountpoint).collect()
    }
}

/// What a comment of one line says after `word`.
fn comment<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.strip_prefix("<!-- ")?
        .strip_prefix(word)?
        .strip_suffix(" -->")
}

/// The commands of a block; one that ends with `\` goes on in the next line.
fn commands(block: &[(usize, &str)]) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in block {
        if let Some(line) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")) {
            steps.push(Step::Command(Shown {
                at: at + 1,
                line: line.to_owned(),
                output: Vec::new(),
            }));
            continue;
        }
        let Some(Step::Command(last)) = steps.last_mut() else {
            return Err(format!("line {}: output without a command", at + 1));
        };
        if last.line.ends_with('\\') && last.output.is_empty() {
            last.line = format!("{}\n{line}", last.line);
        } else {
            last.output.push((*line).to_owned());
        }
    }
    Ok(steps)
}

impl Shown {
    pub(crate) fn is_background(&self) -> bool {
        self.line.ends_with('&')
    }

    /// Whether the page shows it to fail.
    pub(crate) fn fails(&self) -> bool {
        let said = self
            .output
            .iter()
            .filter_map(|line| line.strip_prefix("uzram: "));
        said.into_iter().any(|said| !said.starts_with("warning: "))
    }

    /// Whether `output` is what the page shows. A server in the background may log more, and its
    /// log and its stdout come in any order.
    pub(crate) fn prints(&self, output: &str) -> bool {
        let actual: Vec<_> = output.lines().map(shape).collect();
        let wanted: Vec<_> = self.output.iter().map(|line| shape(line)).collect();
        if self.is_background() {
            return wanted.iter().all(|line| actual.contains(line));
        }
        same(&wanted, &actual)
    }
}

/// Whether the lines are alike, where `...` stands for any number of lines.
fn same(wanted: &[String], actual: &[String]) -> bool {
    match (wanted.split_first(), actual.split_first()) {
        (None, None) => true,
        (Some((first, rest)), _) if first == "..." => {
            (0..=actual.len()).any(|skip| same(rest, &actual[skip..]))
        }
        (Some((first, rest)), Some((other, others))) => first == other && same(rest, others),
        _ => false,
    }
}

/// A line without the time of a log's line, its numbers, their units, and its spaces.
fn shape(line: &str) -> String {
    let line = match line.split_once("Z ") {
        Some((time, rest)) if time.starts_with("20") && time.contains('T') => rest,
        _ => line,
    };
    const UNITS: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB", "us", "ms", "s"];
    let mut shape = String::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_ascii_digit() {
            while chars
                .next_if(|c| c.is_ascii_digit() || matches!(c, '.' | ','))
                .is_some()
            {}
            chars.next_if(|c| matches!(c, 'K' | 'M' | 'G'));
            shape.push('#');
        } else {
            shape.push(c);
        }
    }
    let mut words: Vec<&str> = Vec::new();
    for word in shape.split_whitespace() {
        let bare = word.trim_end_matches([',', ':', ';', '.', ')']);
        if !(UNITS.contains(&bare) && words.last().is_some_and(|last| last.ends_with('#'))) {
            words.push(word);
        }
    }
    words.join(" ")
}

/// The relative targets of links in a page, without their anchors.
pub(crate) fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    targets.filter_map(|target| {
        let file = target.split('#').next().unwrap_or_default();
        (!file.is_empty() && !file.contains("://")).then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, output: &[&str]) -> Shown {
        Shown {
            at: 0,
            line: line.to_owned(),
            output: output.iter().map(|line| (*line).to_owned()).collect(),
        }
    }

    #[test]
    fn numbers_may_differ_and_words_may_not() {
        let command = shown("uzram list", &["NAME  SIZE", "vm  4 GiB  0 B", "..."]);
        assert!(command.prints("NAME  SIZE\nvm   16.5 MiB   4,096 B\n"));
        assert!(command.prints("NAME  SIZE\nvm   16.5 MiB   4,096 B\nmore\n"));
        assert!(!command.prints("NAME  SIZE\nwm   16.5 MiB   4,096 B\n"));
        assert!(!command.prints("NAME  SIZE\n"));
    }

    #[test]
    fn a_block_without_a_mark_is_a_fault() {
        assert!(Page::parse("```\nls\n```\n").is_err());
        assert!(Page::parse("<!-- not run: it is a picture -->\n```\nls\n```\n").is_ok());
    }

    #[test]
    fn a_failure_is_a_line_of_uzram_s() {
        assert!(shown("uzram stop x", &["uzram: no device x"]).fails());
        assert!(
            !shown(
                "uzram set x mem_limit=1M",
                &["uzram: warning: mem_limit: ..."]
            )
            .fails()
        );
    }
}
