//! Command lines as they are typed in a shell, taken apart.

/// What is open at a place in a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quote {
    None,
    Single,
    Double,
}

impl Quote {
    /// `text` as it is typed in here; the shell closes the quote.
    pub(super) fn quoted(self, text: &str) -> String {
        let is_plain = |c: char| c.is_alphanumeric() || "._-/+@%,:=~".contains(c);
        let mut quoted = String::new();
        for c in text.chars() {
            match self {
                Self::None if !is_plain(c) => quoted.extend(['\\', c]),
                Self::Double if "\"\\$`".contains(c) => quoted.extend(['\\', c]),
                Self::Single if c == '\'' => quoted.push_str(r"'\''"),
                _ => quoted.push(c),
            }
        }
        quoted
    }
}

/// A command line that ends where the cursor is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Without their quotes. There is always one: the last is the one that is being typed.
    pub(super) words: Vec<String>,
    /// Where the last word ends.
    pub(super) open: Quote,
}

impl Line {
    /// Takes `text` apart, which begins inside of `open`.
    pub(super) fn split(text: &str, mut open: Quote) -> Self {
        let (mut words, mut word, mut in_word) = (Vec::new(), String::new(), false);
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match (open, c) {
                (Quote::None, ' ' | '\t' | '\n') => {
                    if std::mem::take(&mut in_word) {
                        words.push(std::mem::take(&mut word));
                    }
                    continue;
                }
                (Quote::None, '\'') => open = Quote::Single,
                (Quote::None, '"') => open = Quote::Double,
                (Quote::Single, '\'') | (Quote::Double, '"') => open = Quote::None,
                (Quote::None, '\\') => word.extend(rest.next()),
                (Quote::Double, '\\') if rest.peek().is_some_and(|c| "\"\\$`".contains(*c)) => {
                    word.extend(rest.next());
                }
                _ => word.push(c),
            }
            in_word = true;
        }
        words.push(word);
        Self { words, open }
    }

    pub(super) fn last(&self) -> &str {
        self.words.last().map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart_as_bash_does() {
        for (text, words, open) in [
            ("", &[""][..], Quote::None),
            ("a b", &["a", "b"], Quote::None),
            ("a  b ", &["a", "b", ""], Quote::None),
            (r"a b\ c", &["a", "b c"], Quote::None),
            ("a \"b c", &["a", "b c"], Quote::Double),
            (r#"a "b\" \c" d"#, &["a", r#"b" \c"#, "d"], Quote::None),
            ("a 'b c", &["a", "b c"], Quote::Single),
            ("a --b='c d'e", &["a", "--b=c de"], Quote::None),
            ("a ''", &["a", ""], Quote::None),
            ("a '' ", &["a", "", ""], Quote::None),
        ] {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(
                Line::split(text, Quote::None),
                Line { words, open },
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_quoted_is_read_back() {
        for text in [
            "plain",
            "a b",
            "it's",
            r#"$x `y` "z" \"#,
            "a;b|c&(d)*?",
            "é ü",
        ] {
            for (open, start) in [
                (Quote::None, ""),
                (Quote::Single, "'"),
                (Quote::Double, "\""),
            ] {
                let typed = format!("{start}{}", open.quoted(text));
                let line = Line::split(&typed, Quote::None);
                assert_eq!((line.last(), line.open), (text, open), "{typed}");
            }
        }
    }
}
