//! What the tests and benchmarks of several places use: of the library, of the command, and of both together.
//!
//! It knows nothing of `uzram` but its program, so that unit tests can use it as well.
#![expect(missing_docs, reason = "a name says it, in a test")]
#![expect(
    clippy::new_without_default,
    reason = "what is new has files of its own"
)]

pub mod attack;
pub mod certificates;
pub mod corpus;
pub mod offered;
mod random;
mod waiting;
mod world;

use std::time::Duration;

pub use self::random::{Random, noise, noise_page};
pub use self::waiting::{eventually, within};
pub use self::world::{
    Serve, World, can_mount, ended, finish, full_pipe, is_pending, is_saving, one_line, program,
    signal, waits_handling,
};

/// Bound on what should take no time at all, on a machine that is busy with everything else.
pub const HANG: Duration = Duration::from_secs(120);

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// A page.
pub type Page = [u8; PAGE_SIZE];
