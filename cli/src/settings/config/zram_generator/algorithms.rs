//! The value of `compression-algorithm`: algorithms and, in parentheses, their parameters.

/// What a device is compressed with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Algorithms {
    /// Each as an option has it; the first is for new pages, the others for those that are recompressed.
    pub(super) algorithms: Vec<String>,
    /// What is left out, and what does it.
    pub(super) notes: Vec<String>,
}

/// Reads `lz4 zstd(level=3) (type=idle)`.
pub(super) fn parse(text: &str) -> Result<Algorithms, String> {
    const MOST: usize = 4;
    let mut parsed = Algorithms::default();
    for word in text.split_whitespace() {
        let (name, parameters) = match word.split_once('(') {
            Some((name, rest)) => (name, rest.strip_suffix(')').unwrap_or(rest)),
            None => (word, ""),
        };
        let is_first = parsed.algorithms.is_empty();
        let mut level = None;
        for parameter in parameters.split(',').filter(|text| !text.is_empty()) {
            match parameter.split_once('=').unwrap_or((parameter, "")) {
                ("level", value) if !name.is_empty() => level = Some(value),
                // In the background pages that are idle are recompressed.
                ("type", "idle") if name.is_empty() || !is_first => {}
                ("type" | "threshold" | "max_pages", _) if name.is_empty() || !is_first => {
                    parsed.notes.push(format!(
                        "({parameter}) is left out: pages that are idle are recompressed, and others by \
                         uzram recompress NAME {parameter}"
                    ));
                }
                _ => {
                    return Err(format!(
                        "{parameter}: use level=N, or for recompression type=idle"
                    ));
                }
            }
        }
        match name {
            // Parameters of recompression as a whole.
            "" => {}
            "lzo" | "lzo-rle" | "842" => {
                return Err(format!(
                    "uzram has no {name}: use lz4, or zstd for smaller pages"
                ));
            }
            name => parsed.algorithms.push(match level {
                Some(level) => format!("{name}:{level}"),
                None => name.to_owned(),
            }),
        }
    }
    match parsed.algorithms.len() > MOST {
        true => Err("a device has four algorithms at most".to_owned()),
        false => Ok(parsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_and_parameters() {
        for (text, algorithms, notes) in [
            ("", &[][..], 0),
            ("(type=idle)", &[], 0),
            ("zstd", &["zstd"], 0),
            ("lz4 zstd(level=3) (type=idle)", &["lz4", "zstd:3"], 0),
            ("zstd lz4 (type=huge)", &["zstd", "lz4"], 1),
            ("lz4 zstd(level=3,type=idle)", &["lz4", "zstd:3"], 0),
            (
                "lz4 zstd(type=huge_idle,threshold=3000)",
                &["lz4", "zstd"],
                2,
            ),
            ("lz4 lz4hc(level=9 zstd()", &["lz4", "lz4hc:9", "zstd"], 0),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!(
                (&parsed.algorithms[..], parsed.notes.len()),
                (
                    &algorithms
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()[..],
                    notes
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn what_there_is_not_is_refused() {
        for (text, words) in [
            ("lzo-rle", "use lz4"),
            ("lz4 842", "use lz4"),
            ("lz4 zstd zstd zstd zstd", "four"),
            ("zstd(dict=/d)", "level=N"),
            ("zstd(type=idle)", "level=N"),
            ("zstd (level=3)", "level=N"),
        ] {
            let reason = parse(text).unwrap_err();
            assert!(reason.contains(words), "{words} in {reason}");
        }
    }
}
