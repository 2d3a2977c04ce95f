//! Which pages are to be recompressed, as zram's `recompress` attribute says it.

use crate::algorithm::{Algorithm, Priority};
use crate::error::{Error, Result};
use crate::selection::PageKind;
use crate::units::PAGE_SIZE;

/// Pages to recompress, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recompression {
    pub(crate) kind: PageKind,
    /// Objects shorter than this are left alone, and one that does not get shorter than this stays
    /// as it is; 0 for no such bound.
    pub(crate) threshold: usize,
    /// Most pages to try.
    pub(crate) max_pages: u64,
    /// The one to use of the algorithms that are set, by its priority.
    pub(crate) priority: Option<Priority>,
    /// The same by its name; or another.
    pub(crate) algorithm: Option<Algorithm>,
}

impl Recompression {
    /// All pages in memory.
    pub(crate) const ALL: Self = Self {
        kind: PageKind::Any,
        threshold: 0,
        max_pages: u64::MAX,
        priority: None,
        algorithm: None,
    };

    /// Reads parameters with blanks between them: `type=idle`, `type=huge` or `type=huge_idle`, all
    /// pages without it; `threshold=BYTES`, below 4096; `max_pages=N`; `priority=N` or `algo=NAME` for
    /// one of the algorithms that are set, all in turn without it; `algo=NAME` may also name another.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parsed = Self::ALL;
        for parameter in text.split_ascii_whitespace() {
            let wrong = || Error::InvalidConfig {
                option: "recompress",
                reason: format!(
                    "{parameter:?}: use type=idle, huge or huge_idle, threshold=BYTES below \
                     {PAGE_SIZE}, max_pages=N, algo=NAME, or priority=1, 2 or 3"
                ),
            };
            let (name, value) = parameter.split_once('=').ok_or_else(wrong)?;
            match (name, value) {
                ("type", "idle") => parsed.kind = PageKind::Idle,
                ("type", "huge") => parsed.kind = PageKind::Huge,
                ("type", "huge_idle") => parsed.kind = PageKind::HugeIdle,
                ("priority", _) => {
                    let secondary = Priority::parse(value).filter(|p| *p != Priority::PRIMARY);
                    parsed.priority = Some(secondary.ok_or_else(wrong)?);
                }
                ("threshold", _) => {
                    let bytes = value.parse().ok().filter(|&bytes| bytes < PAGE_SIZE);
                    parsed.threshold = bytes.ok_or_else(wrong)?;
                }
                ("max_pages", _) => parsed.max_pages = value.parse().map_err(|_| wrong())?,
                ("algo", _) => parsed.algorithm = Some(value.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_zrams() {
        let parse = |text| Recompression::parse(text).expect(text);
        assert_eq!(parse(""), Recompression::ALL);
        assert_eq!(
            parse("type=idle threshold=888 max_pages=42 algo=zstd:9 priority=1\n"),
            Recompression {
                kind: PageKind::Idle,
                threshold: 888,
                max_pages: 42,
                priority: Some(Priority::SECONDARY[0]),
                algorithm: Some(Algorithm::Zstd { level: 9 }),
            }
        );
        assert_eq!(parse("type=huge").kind, PageKind::Huge);
        assert_eq!(parse("type=huge_idle").kind, PageKind::HugeIdle);
        for bad in [
            "idle",
            "type=",
            "type=cold",
            "threshold=4096",
            "threshold=-1",
            "max_pages=x",
            "algo=lzma",
            "priority=4",
            "priority=0",
            "level=3",
        ] {
            assert!(Recompression::parse(bad).is_err(), "{bad}");
        }
    }
}
