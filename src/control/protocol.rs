//! The messages, as both sides see them.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The counters: answered with a [`crate::Stats`].
    Stat,
    /// How long operations took: answered with a [`crate::OperationLatencies`].
    Latency,
    /// The text of an attribute, with its newline.
    Get {
        /// Its name.
        attribute: String,
    },
    /// Stores a value in an attribute.
    Set {
        /// Its name.
        attribute: String,
        /// What to store, as it would be written to its file. With `backing_dev` the file at that path may come
        /// with the request, open: then the server opens nothing there.
        value: String,
        /// Whether that file was made for this, and is to be removed when it is not used any more; false unless
        /// it is said.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        made: bool,
    },
    /// Resizes the device, and discards what is beyond its new end.
    ResizeDiscarding {
        /// Its bytes.
        bytes: u64,
    },
    /// Compacts the pool: answered with a [`Compacted`].
    Compact,
    /// Marks pages as idle: answered with a [`PagesDone`].
    Idle {
        /// `all`, or an age in seconds: what the attribute `idle` takes.
        which: String,
    },
    /// Writes pages back: answered with a [`PagesDone`].
    Writeback {
        /// What a [`crate::Selection`] is read from, as in the attribute `writeback`.
        which: String,
    },
    /// Recompresses pages: answered with a [`PagesDone`].
    Recompress {
        /// What a [`crate::Recompression`] is read from, as in the attribute `recompress`.
        which: String,
    },
    /// What pages hold: answered with a [`crate::PageMap`].
    Map {
        /// The first page.
        first: u64,
        /// How many.
        pages: u64,
        /// In how many cells at most, up to [`crate::MAX_MAP_CELLS`].
        cells: u64,
    },
    /// Has all that was written in the device's image, durably.
    Sync,
    /// Forgets all data.
    Reset,
    /// Saves the device as it is now: answered with a [`crate::Saved`], once that is done. An open file may come with
    /// the request: then that is written to and synced, and put at the path by whoever asks.
    Save {
        /// The file, from the root.
        path: PathBuf,
        /// Whether it is to be left as it is from then on, since it is about to be stopped.
        last: bool,
    },
    /// Who uses the device: answered with a [`crate::Who`] for each.
    Users,
    /// How far that is: answered with a [`crate::SaveProgress`], or null if it is not being saved.
    SaveProgress,
    /// Lines of the attribute `block_state`: answered with a [`crate::BlockStates`], which says where
    /// to go on.
    BlockState {
        /// The first page.
        from: u64,
    },
    /// Makes a dictionary of what is on the device: answered with null. An open file may come with the request, as
    /// with that to save.
    TrainDict {
        /// The file, from the root.
        path: PathBuf,
        /// Most bytes of it.
        len: usize,
    },
    /// Verifies some spilled pages: answered with a [`crate::Scrubbed`], which says where to go on.
    Scrub {
        /// The first page to look at.
        from: u64,
    },
}

/// Numbers that are an errno (`include/linux/err.h`, MAX_ERRNO).
const ERRNOS: RangeInclusive<i32> = 1..=4095;

/// What the server answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// It is done.
    Ok {
        /// The answer; null if there is nothing to say.
        ok: Value,
    },
    /// It is not.
    Error {
        /// Why, in one line.
        error: String,
        /// The errno, a positive number.
        errno: i32,
        /// Whether the request makes no sense, whatever the machine; false unless it is said.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        usage: bool,
        /// Whether the server has not looked at the request, and does on another connection, once it
        /// has room; false unless it is said. Nothing follows on this one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        turned_away: bool,
    },
}

impl Reply {
    /// The answer to a request that failed with `error`.
    pub fn from_error(error: &Error) -> Self {
        Self::Error {
            error: error.to_string().replace('\n', " "),
            errno: error.errno().raw_os_error(),
            usage: error.is_usage(),
            turned_away: false,
        }
    }

    /// The same, as the last word to a client that is turned away.
    #[must_use]
    pub fn turned_away(mut self) -> Self {
        if let Self::Error { turned_away, .. } = &mut self {
            *turned_away = true;
        }
        self
    }

    /// Whether the request is to be sent again on another connection.
    pub fn is_turned_away(&self) -> bool {
        matches!(self, Self::Error { turned_away, .. } if *turned_away)
    }

    /// The answer, or the server's error.
    ///
    /// # Errors
    /// [`Error::Remote`] with the server's words.
    pub fn into_result(self) -> Result<Value> {
        match self {
            Self::Ok { ok } => Ok(ok),
            Self::Error {
                error,
                errno,
                usage,
                turned_away: _,
            } => Err(Error::Remote {
                message: error,
                errno: Some(errno)
                    .filter(|number| ERRNOS.contains(number))
                    .map_or(Errno::IO, Errno::from_raw_os_error)
                    .into(),
                is_usage: usage,
            }),
        }
    }
}

/// What compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Compacted {
    /// Page frames freed.
    pub pages: u64,
}

/// What was done to pages of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PagesDone {
    /// How many.
    pub pages: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        for (text, request) in [
            (r#"{"op":"stat"}"#, Request::Stat),
            (
                r#"{"op":"get","attribute":"mm_stat"}"#,
                Request::Get {
                    attribute: "mm_stat".to_owned(),
                },
            ),
            (
                r#"{"op":"set","attribute":"mem_limit","value":"64M"}"#,
                Request::Set {
                    attribute: "mem_limit".to_owned(),
                    value: "64M".to_owned(),
                    made: false,
                },
            ),
            (r#"{"op":"latency"}"#, Request::Latency),
            (
                r#"{"op":"map","first":0,"pages":512,"cells":8}"#,
                Request::Map {
                    first: 0,
                    pages: 512,
                    cells: 8,
                },
            ),
            (r#"{"op":"sync"}"#, Request::Sync),
            (r#"{"op":"reset"}"#, Request::Reset),
            (r#"{"op":"scrub","from":7}"#, Request::Scrub { from: 7 }),
            (
                r#"{"op":"save","path":"/x","last":true}"#,
                Request::Save {
                    path: "/x".into(),
                    last: true,
                },
            ),
            (r#"{"op":"save_progress"}"#, Request::SaveProgress),
            (
                r#"{"op":"idle","which":"all"}"#,
                Request::Idle {
                    which: "all".to_owned(),
                },
            ),
        ] {
            assert_eq!(serde_json::to_string(&request).expect("serializes"), text);
            let parsed: Request = serde_json::from_str(text).expect("parses");
            assert_eq!(parsed, request);
        }
        for bad in ["{}", "[]", "null", r#"{"op":"format"}"#, r#"{"op":"get"}"#] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_keeps_its_words_and_errno() {
        let error = Error::NoSpace("the backing is full");
        let text = serde_json::to_string(&Reply::from_error(&error)).expect("serializes");
        let words = r#"{"error":"no space: the backing is full","errno":28}"#;
        assert_eq!(text, words);
        let reply: Reply = serde_json::from_str(&text).expect("parses");
        let back = reply.into_result().expect_err("an error");
        assert_eq!(back.errno(), Errno::NOSPC);
        assert_eq!(back.to_string(), error.to_string());
        assert!(!back.is_usage());

        let error = crate::config::check_size("disksize", 1).expect_err("no size");
        let back = Reply::from_error(&error).into_result();
        assert!(back.expect_err("an error").is_usage());

        for nonsense in [0, -1, 4096, i32::MIN] {
            let text = format!(r#"{{"error":"x","errno":{nonsense}}}"#);
            let reply: Reply = serde_json::from_str(&text).expect("parses");
            let back = reply.into_result().expect_err("an error");
            assert_eq!(back.errno(), Errno::IO);
        }
    }

    #[test]
    fn null_is_an_answer() {
        let reply: Reply = serde_json::from_str(r#"{"ok":null}"#).expect("parses");
        assert_eq!(reply.into_result().expect("ok"), Value::Null);
        assert!(serde_json::from_str::<Reply>("{}").is_err());
    }
}
