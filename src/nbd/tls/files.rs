//! The files of the directory of certificates: each is PEM, read whole and to a bound.

use std::path::Path;

use rustls::pki_types::pem::PemObject;

use crate::error::{Error, Result};
use crate::named_file::read_named_file;

/// Most bytes of a file: a list of some hundred thousand revoked certificates.
const MOST: usize = 16 << 20;

pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_named_file(path, MOST)
}

/// All items of one kind in the file at `path`, of which there is one at least; `kind` names it in the complaint.
pub(super) fn read_items<T: PemObject>(path: &Path, kind: &str) -> Result<Vec<T>> {
    let bytes = read_file(path)?;
    let items = T::pem_slice_iter(&bytes)
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, format!("it is not valid PEM: {error}")))?;
    if items.is_empty() {
        return Err(unusable(path, format!("there is no {kind} in it, as PEM")));
    }
    Ok(items)
}

pub(super) fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason: reason.into(),
    }
}
