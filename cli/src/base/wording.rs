//! What the library says, in the words of the command.
//!
//! The library knows no options: where it names what a program would set or call, it does so as its documentation
//! does, between backticks. Here that becomes what a user types. All that goes to stderr passes here.

use std::borrow::Cow;

/// Names of the library's, and what is typed for them.
const WORDS: [(&str, &str); 17] = [
    ("BackingConfig::encrypt", "--backing-encrypt"),
    ("BackingConfig::force", "--backing-force"),
    ("Device::resize_discarding", "--discard-tail"),
    ("Device::restore", "uzram serve NAME --restore OLD"),
    ("Device::set_backing", "uzram set NAME backing_dev=PATH"),
    ("Device::set_mem_limit", "uzram set NAME mem_limit=SIZE"),
    ("Device::train_dictionary", "uzram train-dict"),
    ("DeviceConfig::max_size", "--max-size"),
    ("DeviceConfig::origin", "--origin"),
    ("DeviceConfig::read_only", "--read-only"),
    ("DeviceConfig::table_limit", "--table-limit"),
    ("OriginFormat::Raw", "--origin-format raw"),
    ("OriginUse::Snapshot", "--snapshot"),
    ("ServerConfig::insecure", "--insecure"),
    ("ServerConfig::max_connections", "--max-connections"),
    ("ServerConfig::tls", "--tls-certificates DIR"),
    ("TlsConfig::required", "--tls require"),
];

/// Options whose names are not those of the settings, with a dash for each underscore.
const OPTIONS: [(&str, &str); 3] = [
    ("recompress_after", "--after"),
    ("addresses", "--nbd"),
    ("dictionary_len", "--size"),
];

/// Settings that are options of the same name.
const SETTINGS: [&str; 19] = [
    "algorithm",
    "backing",
    "backing_encrypt",
    "backing_keep",
    "backing_size",
    "max_size",
    "mem_limit",
    "origin_format",
    "pool",
    "read_only",
    "recompress",
    "sector_size",
    "shards",
    "size",
    "sync",
    "table_limit",
    "tls",
    "tls_verify_peer",
    "writeback_daily_limit",
];

/// `text` with options and verbs where the library names what is its own.
pub(crate) fn ours(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    if !text.contains('`') {
        return text;
    }
    for (name, typed) in WORDS {
        let quoted = format!("`{name}`");
        if text.contains(&quoted) {
            text = Cow::Owned(text.replace(&quoted, typed));
        }
    }
    text
}

/// What is typed for a setting of the library's; itself if it is none that has an option.
pub(crate) fn option(setting: &'static str) -> Cow<'static, str> {
    if let Some((_, option)) = OPTIONS.iter().find(|(name, _)| *name == setting) {
        return Cow::Borrowed(option);
    }
    match SETTINGS.contains(&setting) {
        true => Cow::Owned(format!("--{}", setting.replace('_', "-"))),
        false => Cow::Borrowed(setting),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// The lines of the library's sources that are run, with where they are.
    fn library() -> Vec<(PathBuf, String)> {
        let (mut found, mut dirs) = (
            Vec::new(),
            vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../src")],
        );
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).expect("the library's sources") {
                let path = entry.expect("an entry").path();
                if path.is_dir() && !path.ends_with("tests") {
                    dirs.push(path);
                } else if path.extension().is_some_and(|end| end == "rs")
                    && !path.ends_with("tests.rs")
                {
                    let text = std::fs::read_to_string(&path).expect("text");
                    let run = text
                        .split("#[cfg(test)]\nmod tests {")
                        .next()
                        .unwrap_or_default();
                    let lines = run
                        .lines()
                        .filter(|line| !line.trim_start().starts_with("//"));
                    found.extend(lines.map(|line| (path.clone(), line.to_owned())));
                }
            }
        }
        assert!(found.len() > 10_000, "{} lines", found.len());
        found
    }

    #[test]
    fn all_that_the_library_names_has_its_words() {
        let mut names: Vec<_> = library()
            .iter()
            .flat_map(|(_, line)| {
                let quoted = line.split('`').skip(1).step_by(2);
                quoted
                    .filter(|name| name.contains("::"))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        names.sort();
        names.dedup();
        let known = WORDS.map(|(name, _)| name);
        assert_eq!(
            names, known,
            "what the library names, and what has words here"
        );
        assert_eq!(
            ours("no (`OriginUse::Snapshot`), `x`"),
            "no (--snapshot), `x`"
        );
    }

    /// Other tools' options are named in what to do with them.
    #[test]
    fn the_library_names_no_options() {
        const OTHERS: [&str; 4] = [
            "--restore_raw_file",
            "--generate-certificate",
            "--generate-crl",
            "losetup",
        ];
        for (path, line) in library() {
            let after = line.split("--").skip(1);
            let is_named = line.contains(['"', '\\'])
                && after
                    .into_iter()
                    .any(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
            let others =
                OTHERS.iter().any(|other| line.contains(other)) || path.ends_with("loop_disk.rs");
            assert!(!is_named || others, "{}: {line}", path.display());
        }
    }
}
