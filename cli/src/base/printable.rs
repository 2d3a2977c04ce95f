//! What a terminal shows as it is. Names, paths and what servers say are others' words: on a terminal they
//! could move the cursor, set its title or make it type. All that is printed passes here.

use std::borrow::Cow;

/// Whether a terminal does something with `c`, or shows what is around it in another order.
fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` with escapes for all that is no text, but newlines and tabs: `\u{1b}`.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(
        text,
        |c| is_dangerous(c) && !matches!(c, '\n' | '\t'),
        |c| c.escape_default().to_string(),
    )
}

/// The same, on one line.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_dangerous, |c| c.escape_default().to_string())
}

/// JSON of the same meaning: what is no text stands in its strings only.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    escaped(text, is_dangerous, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escaped(
    text: &str,
    is_escaped: impl Fn(char) -> bool,
    escape: impl Fn(char) -> String,
) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_escaped(c) {
            true => shown.push_str(&escape(c)),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        for (text, shown) in [
            ("/mnt/h\u{e9} \u{1f980}\n\tx", "/mnt/h\u{e9} \u{1f980}\n\tx"),
            ("\u{1b}]0;x\u{7}\r", "\\u{1b}]0;x\\u{7}\\r"),
            ("\u{9b}2J\u{7f}\u{202e}", "\\u{9b}2J\\u{7f}\\u{202e}"),
        ] {
            assert_eq!(lines(text), shown);
        }
        assert_eq!(line("a\nuzram: b"), "a\\nuzram: b");
        let text = "\u{1b}\u{9b}\u{7f}\u{2066}";
        let escaped = serde_json::to_string(text).unwrap();
        let escaped = json(&escaped);
        assert!(!escaped.contains(is_dangerous));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
    }
}
