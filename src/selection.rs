//! Which pages are to be written back, as zram's `writeback` attribute says it.

use std::ops::Range;

use rustix::io::Errno;

use crate::error::{Error, Result};

/// What the pages of a [`Part`] have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    Any,
    /// Marked as idle.
    Idle,
    /// Stored raw.
    Huge,
    HugeIdle,
}

/// Pages of a range that are of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) pages: Range<u64>,
    pub(crate) kind: PageKind,
}

/// Pages to write back: those in memory that any of its parameters names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    pub(crate) parts: Vec<Part>,
}

impl Selection {
    /// Reads parameters with blanks between them, for a device of so many `pages`: `type=idle`,
    /// `type=huge`, `type=huge_idle`, `type=incompressible`, each also without `type=`;
    /// `page_index=N`; `page_indexes=LOW-HIGH`. What no algorithm can compress is what is stored
    /// raw, so `incompressible` is `huge`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for what is no such thing; [`Error::Refused`] (ERANGE) for a page
    /// that the device does not have, or a range that ends before it starts.
    pub fn parse(text: &str, pages: u64) -> Result<Self> {
        let parts: Vec<_> = text
            .split_ascii_whitespace()
            .map(|parameter| parse_parameter(parameter, pages))
            .collect::<Result<_>>()?;
        if parts.is_empty() {
            return Err(invalid(text));
        }
        Ok(Self { parts })
    }
}

fn parse_parameter(parameter: &str, pages: u64) -> Result<Part> {
    let (name, value) = parameter.split_once('=').unwrap_or(("type", parameter));
    match name {
        "type" => {
            let kind = match value {
                "idle" => PageKind::Idle,
                "huge" | "incompressible" => PageKind::Huge,
                "huge_idle" => PageKind::HugeIdle,
                _ => return Err(invalid(parameter)),
            };
            Ok(Part {
                pages: 0..pages,
                kind,
            })
        }
        "page_index" => parse_range(parameter, value, value, pages),
        "page_indexes" => match value.split_once('-') {
            Some((low, high)) => parse_range(parameter, low, high, pages),
            None => Err(invalid(parameter)),
        },
        _ => Err(invalid(parameter)),
    }
}

fn parse_range(parameter: &str, low: &str, high: &str, pages: u64) -> Result<Part> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| invalid(parameter));
    let (low, high) = (number(low)?, number(high)?);
    let out_of_range = |reason: String| Error::Refused {
        what: "writeback",
        reason: format!("{parameter:?}: {reason}"),
        errno: Errno::RANGE.into(),
    };
    if low > high {
        return Err(out_of_range("it ends before it starts".to_owned()));
    }
    if high >= pages {
        let reason = format!("the device has pages 0-{}", pages - 1);
        return Err(out_of_range(reason));
    }
    Ok(Part {
        pages: low..high + 1,
        kind: PageKind::Any,
    })
}

fn invalid(parameter: &str) -> Error {
    Error::InvalidConfig {
        option: "writeback",
        reason: format!(
            "{parameter:?}: use type=idle, huge, huge_idle or incompressible, page_index=N or \
             page_indexes=LOW-HIGH"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_zrams_old_and_new() {
        let parts = |text| Selection::parse(text, 100).expect(text).parts;
        let all = |kind| Part {
            pages: 0..100,
            kind,
        };
        for (text, kind) in [
            ("idle", PageKind::Idle),
            ("type=idle", PageKind::Idle),
            (" huge ", PageKind::Huge),
            ("type=incompressible", PageKind::Huge),
            ("huge_idle", PageKind::HugeIdle),
        ] {
            assert_eq!(parts(text), [all(kind)], "{text}");
        }
        let any = |pages| Part {
            pages,
            kind: PageKind::Any,
        };
        assert_eq!(
            parts("page_index=7 page_indexes=10-99 type=huge"),
            [any(7..8), any(10..100), all(PageKind::Huge)]
        );
    }

    #[test]
    fn nonsense_is_einval_and_pages_that_are_not_there_erange() {
        let errno = |text| Selection::parse(text, 100).expect_err(text).errno();
        for text in [
            "",
            " ",
            "cold",
            "type=",
            "type=cold",
            "page_index=",
            "page_index=x",
            "page_index=-1",
            "page_indexes=5",
            "page_indexes=5-",
            "page_indexes=-5",
            "idle cold",
            "size=4",
        ] {
            assert_eq!(errno(text), Errno::INVAL, "{text}");
        }
        for text in ["page_index=100", "page_indexes=9-100", "page_indexes=9-8"] {
            assert_eq!(errno(text), Errno::RANGE, "{text}");
        }
    }
}
