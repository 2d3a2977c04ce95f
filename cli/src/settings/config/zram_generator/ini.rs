//! The syntax of zram-generator.conf: sections of keys and values, as the crate rust-ini reads them with its
//! default options, which is what zram-generator does. The crate itself does not say in which line a key is, which every message
//! of ours does.
//!
//! A comment is a line of its own. A value may be quoted, in part or as a whole, and goes on in the next
//! line after a backslash, which otherwise escapes what follows it.

use std::iter::Peekable;
use std::str::Chars;

use super::super::Wrong;

/// What a file is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// `[NAME]`.
    Section(String),
    /// `KEY = VALUE`.
    Key(String, String),
}

/// The items of a file, each with the line that it begins in.
pub(super) fn parse(text: &str) -> Result<Vec<(usize, Item)>, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        chars: text.chars().peekable(),
        line: 1,
    };
    let mut items = Vec::new();
    while let Some(next) = reader.skip_blanks() {
        let line = reader.line;
        match next {
            '#' | ';' => drop(reader.rest_of_line()),
            '[' => items.push((line, reader.section()?)),
            _ => items.push((line, reader.key()?)),
        }
    }
    Ok(items)
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    line: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.chars.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Goes on to what is neither space nor the end of a line; what that is.
    fn skip_blanks(&mut self) -> Option<char> {
        while self
            .chars
            .next_if(|c| c.is_whitespace() && *c != '\n')
            .is_some()
            || self.chars.peek() == Some(&'\n')
        {
            if self.chars.peek() == Some(&'\n') {
                self.next();
            }
        }
        self.chars.peek().copied()
    }

    fn rest_of_line(&mut self) -> String {
        let mut rest = String::new();
        while let Some(c) = self.chars.next_if(|c| *c != '\n') {
            rest.push(c);
        }
        rest
    }

    fn section(&mut self) -> Result<Item, Wrong> {
        let line = self.line;
        let text = self.rest_of_line();
        let name = text
            .trim()
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let name = name.ok_or_else(|| shape(line, &text))?;
        Ok(Item::Section(name.trim().to_owned()))
    }

    fn key(&mut self) -> Result<Item, Wrong> {
        let line = self.line;
        let mut key = String::new();
        while let Some(c) = self.chars.next_if(|c| !matches!(c, '=' | ':' | '\n')) {
            key.push(c);
        }
        let key = key.trim().to_owned();
        if key.is_empty() || !matches!(self.chars.peek(), Some('=' | ':')) {
            let text = key + &self.rest_of_line();
            return Err(shape(line, &text));
        }
        self.next();
        Ok(Item::Key(key, self.value(line)?))
    }

    fn value(&mut self, line: usize) -> Result<String, Wrong> {
        while self
            .chars
            .next_if(|c| c.is_whitespace() && *c != '\n')
            .is_some()
        {}
        let mut value = String::new();
        while let Some(quote) = self.chars.next_if(|c| matches!(c, '"' | '\'')) {
            value.push_str(&self.until(quote)?);
            if self.next().is_none() {
                return Err(Wrong::new(line, format!("a {quote} is not closed")));
            }
        }
        // What is quoted keeps its spaces.
        let rest = self.until('\n')?;
        let rest = if value.is_empty() {
            rest.trim()
        } else {
            rest.trim_end()
        };
        value.push_str(rest);
        Ok(value)
    }

    /// All before `end`, or the end of the text, its escapes resolved.
    fn until(&mut self, end: char) -> Result<String, Wrong> {
        let mut text = String::new();
        while self.chars.peek().is_some_and(|c| *c != end) {
            match self.next() {
                Some('\\') => text.extend(self.escaped()?),
                Some(c) => text.push(c),
                None => break,
            }
        }
        Ok(text)
    }

    /// What stands for what follows a backslash: of the end of a line nothing does.
    fn escaped(&mut self) -> Result<Option<char>, Wrong> {
        let Some(c) = self.next() else {
            return Ok(Some('\\'));
        };
        Ok(match c {
            '\n' => None,
            '0' => Some('\0'),
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            't' => Some('\t'),
            'r' => Some('\r'),
            'n' => Some('\n'),
            'x' => Some(self.code_point()?),
            other => Some(other),
        })
    }

    /// Four hexadecimal digits.
    fn code_point(&mut self) -> Result<char, Wrong> {
        let line = self.line;
        let digits: String = (0..4)
            .map_while(|_| self.chars.next_if(char::is_ascii_hexdigit))
            .collect();
        let code = u32::from_str_radix(&digits, 16)
            .ok()
            .filter(|_| digits.len() == 4);
        code.and_then(char::from_u32)
            .ok_or_else(|| Wrong::new(line, "\\x takes four hexadecimal digits, of a character"))
    }
}

fn shape(line: usize, text: &str) -> Wrong {
    let text = text.trim();
    Wrong::new(line, format!("{text:?} is neither [zramN] nor KEY = VALUE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: usize, key: &str, value: &str) -> (usize, Item) {
        (line, Item::Key(key.to_owned(), value.to_owned()))
    }

    #[test]
    fn items_and_their_lines() {
        let text = "\u{feff}# one\r\n; two\n\n  [ zram0 ]\r\n  a = b c  \r\nd:e=f\ng =\n\nh=\"i  \" j\nk = 'l\"'\n\
                    m = n \\\n  o\np = \\\"q\\x0041\\\\\n\tr=s # t";
        let section = (4, Item::Section("zram0".to_owned()));
        assert_eq!(
            parse(text).unwrap(),
            [
                section,
                key(5, "a", "b c"),
                key(6, "d", "e=f"),
                key(7, "g", ""),
                key(9, "h", "i   j"),
                key(10, "k", "l\""),
                key(11, "m", "n   o"),
                key(13, "p", "\"qA\\"),
                key(14, "r", "s # t"),
            ]
        );
    }

    #[test]
    fn what_is_no_item_is_refused() {
        for text in [
            "nonsense",
            "= 1",
            "[zram0",
            "[zram0] # of swap",
            "a = \"b",
            "a = \\x41",
        ] {
            let wrong = parse(&format!("\n{text}\n")).unwrap_err();
            assert_eq!(wrong.line, 2, "{text}");
        }
    }
}
