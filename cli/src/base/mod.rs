//! What every part of the command uses: what is said and how it fails, names, files, children.
//!
//! Imports nothing of the layers above. Each file is one concept.

pub(crate) mod at_once;
pub(crate) mod bounded;
pub(crate) mod capabilities;
pub(crate) mod child_output;
pub(crate) mod dumpable;
pub(crate) mod failure;
pub(crate) mod file_id;
pub(crate) mod inherited;
pub(crate) mod name;
pub(crate) mod old_image;
pub(crate) mod output;
pub(crate) mod packets;
pub(crate) mod printable;
pub(crate) mod program;
pub(crate) mod ram;
pub(crate) mod spelling;
pub(crate) mod stderr;
pub(crate) mod suggest;
pub(crate) mod table;
pub(crate) mod undo;
pub(crate) mod user;
pub(crate) mod wording;
