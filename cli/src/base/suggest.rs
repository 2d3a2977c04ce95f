//! What was probably meant by a word that is not known: the nearest one that is.

/// How alike two words must be, of 1: below that what looks alike means something else.
const ALIKE: f64 = 0.85;

/// The word of `known` that is most like `word`, if one is.
pub(crate) fn nearest<T: AsRef<str>>(word: &str, known: impl IntoIterator<Item = T>) -> Option<T> {
    let alike = known.into_iter().map(|known| {
        let likeness = strsim::jaro(word, known.as_ref());
        (likeness, known)
    });
    let (likeness, known) = alike.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (likeness >= ALIKE).then_some(known)
}

/// What asks whether `word` was meant, behind what is wrong.
pub(crate) fn question(word: &str) -> String {
    format!("; did you mean {word}?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_understood_and_other_words_are_not() {
        let known = [
            "mem_limit",
            "mem_used_max",
            "mm_stat",
            "compact",
            "disksize",
        ];
        for (word, meant) in [
            ("mem_limt", Some("mem_limit")),
            ("mem-limit", Some("mem_limit")),
            ("memlimit", Some("mem_limit")),
            ("mmstat", Some("mm_stat")),
            ("disk_size", Some("disksize")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word}");
        }
        // What it meant is not that.
        assert_eq!(nearest("resize", ["reset", "serve"]), None);
        assert_eq!(nearest("x", [""; 0]), None);
    }
}
