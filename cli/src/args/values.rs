//! What options and parameters can be set to, as far as that can be listed.

use std::ffi::OsStr;

use clap_complete::engine::{CompletionCandidate, PathCompleter, ValueCompleter};
use uzram::Attribute;

fn candidates(words: &[&'static str]) -> Vec<CompletionCandidate> {
    words.iter().map(CompletionCandidate::new).collect()
}

/// Of `--pool`.
pub(crate) fn pools() -> Vec<CompletionCandidate> {
    candidates(&["zsmalloc", "zbud", "z3fold"])
}

const ALGORITHMS: [&str; 4] = ["lz4", "lz4hc", "zstd", "deflate"];

/// Of `--algorithm` and `--recompress`.
pub(crate) fn algorithms() -> Vec<CompletionCandidate> {
    candidates(&ALGORITHMS)
}

/// Of `--sync`.
pub(crate) fn syncs() -> Vec<CompletionCandidate> {
    candidates(&["flush", "never"])
}

/// Of `--origin-format`.
pub(crate) fn origin_formats() -> Vec<CompletionCandidate> {
    candidates(&["detect", "raw"])
}

/// Of `--sector-size`.
pub(crate) fn sector_sizes() -> Vec<CompletionCandidate> {
    candidates(&["512", "4096"])
}

/// Of `--backing-keep`.
pub(crate) fn keeps() -> Vec<CompletionCandidate> {
    candidates(&["remove", "keep", "wipe"])
}

/// Which pages `uzram idle` marks.
pub(crate) fn idle() -> Vec<CompletionCandidate> {
    candidates(&["all"])
}

/// Which pages `uzram writeback` writes.
pub(crate) fn selections() -> Vec<CompletionCandidate> {
    candidates(&[
        "type=idle",
        "type=huge",
        "type=huge_idle",
        "page_index=",
        "page_indexes=",
    ])
}

/// What `uzram recompress` takes.
pub(crate) fn recompressions() -> Vec<CompletionCandidate> {
    let mut words = candidates(&[
        "type=idle",
        "type=huge",
        "type=huge_idle",
        "threshold=",
        "max_pages=",
        "priority=",
    ]);
    words.extend(prefixed("algo=", &ALGORITHMS));
    words
}

fn prefixed(prefix: &str, words: &[&str]) -> Vec<CompletionCandidate> {
    let words = words.iter().map(|word| format!("{prefix}{word}"));
    words.map(CompletionCandidate::new).collect()
}

/// Of `--nbd`.
pub(crate) fn nbd(typed: &OsStr) -> Vec<CompletionCandidate> {
    addresses(typed, &["unix:", "tcp:"])
}

/// Of `--metrics`.
pub(crate) fn metrics(typed: &OsStr) -> Vec<CompletionCandidate> {
    addresses(typed, &["unix:", "tcp:", "file:"])
}

/// Kinds of addresses, and the files behind those that are paths.
fn addresses(typed: &OsStr, kinds: &[&'static str]) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    for kind in kinds.iter().filter(|kind| **kind != "tcp:") {
        if let Some(path) = typed.strip_prefix(kind) {
            return paths(kind, path);
        }
    }
    let begun = kinds.iter().filter(|kind| kind.starts_with(&*typed));
    begun.map(CompletionCandidate::new).collect()
}

fn paths(prefix: &str, typed: &str) -> Vec<CompletionCandidate> {
    let paths = PathCompleter::any().complete(OsStr::new(typed));
    let with_prefix = |path: CompletionCandidate| path.add_prefix(prefix);
    paths.into_iter().map(with_prefix).collect()
}

/// What `uzram stat` prints.
pub(crate) fn readable() -> Vec<CompletionCandidate> {
    let readable = Attribute::ALL.iter().filter(|a| a.is_readable());
    readable
        .map(|a| CompletionCandidate::new(a.name()))
        .collect()
}

/// What `uzram set` sets, and what to.
pub(crate) fn assignments(typed: &OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let Some((key, value)) = typed.split_once('=') else {
        let writable = Attribute::ALL.iter().filter(|a| a.is_writable());
        let keys = writable.map(|a| format!("{}=", a.name()));
        let begun = keys.filter(|key| key.starts_with(&*typed));
        return begun.map(CompletionCandidate::new).collect();
    };
    let prefix = format!("{key}=");
    let values: &[&str] = match Attribute::from_name(key) {
        Some(Attribute::BackingDev) => {
            let mut found = paths(&prefix, value);
            found.extend(prefixed(&prefix, &["none"]));
            found.retain(|word| word.get_value().to_string_lossy().starts_with(&*typed));
            return found;
        }
        Some(Attribute::CompAlgorithm) => &ALGORITHMS,
        Some(Attribute::WritebackLimitEnable) => &["0", "1"],
        Some(Attribute::MemUsedMax) => &["0"],
        Some(Attribute::Idle) => &["all"],
        Some(Attribute::SectorSize) => &["512", "4096"],
        Some(Attribute::Writeback | Attribute::Recompress) => &["type=idle", "type=huge"],
        _ => &[],
    };
    let mut values = prefixed(&prefix, values);
    values.retain(|word| word.get_value().to_string_lossy().starts_with(&*typed));
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::parse;

    fn words(candidates: Vec<CompletionCandidate>) -> Vec<String> {
        let text = |c: CompletionCandidate| c.get_value().to_str().unwrap().to_owned();
        candidates.into_iter().map(text).collect()
    }

    #[test]
    fn what_is_offered_is_taken() {
        assert!(words(pools()).iter().all(|word| parse::pool(word).is_ok()));
        assert!(
            words(algorithms())
                .iter()
                .all(|word| parse::algorithm(word).is_ok())
        );
        assert!(words(syncs()).iter().all(|word| parse::sync(word).is_ok()));
        assert!(words(keeps()).iter().all(|word| parse::keep(word).is_ok()));
        assert!(words(idle()).iter().all(|word| parse::idle(word).is_ok()));
        let is_whole = |word: &&String| !word.ends_with('=');
        let selections = words(selections());
        assert!(
            selections
                .iter()
                .filter(is_whole)
                .all(|word| parse::selection(word).is_ok())
        );
        let parameters = words(recompressions());
        assert!(
            parameters
                .iter()
                .filter(is_whole)
                .all(|word| parse::recompression(word).is_ok())
        );
    }

    #[test]
    fn assignments_go_on_to_their_values() {
        let offered = |typed: &str| words(assignments(OsStr::new(typed)));
        assert_eq!(offered("comp_a"), ["comp_algorithm="]);
        assert_eq!(offered("comp_algorithm=z"), ["comp_algorithm=zstd"]);
        assert_eq!(offered("backing_dev=non"), ["backing_dev=none"]);
        assert_eq!(offered("mem_limit="), [""; 0]);
        assert_eq!(words(nbd(OsStr::new("u"))), ["unix:"]);
        assert_eq!(words(metrics(OsStr::new(""))), ["unix:", "tcp:", "file:"]);
    }
}
