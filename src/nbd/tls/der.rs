//! The elements of DER, as far as they are compared byte for byte.

use x509_parser::asn1_rs::{Any, FromDer};

/// The first element in `bytes`: all of it, its contents, and what follows.
pub(super) fn element(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (rest, any) = Any::from_der(bytes).ok()?;
    let whole = &bytes[..bytes.len() - rest.len()];
    Some((whole, any.data, rest))
}

/// The contents of the first element in `bytes`.
pub(super) fn contents(bytes: &[u8]) -> Option<&[u8]> {
    element(bytes).map(|(_, contents, _)| contents)
}
