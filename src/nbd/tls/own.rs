//! What the server shows of itself: its chain of certificates, and the key that belongs to the first of them.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;

use crate::error::Result;

use super::der::contents;
use super::files::{read_file, read_items, unusable};
use super::private_key::PrivateKey;

/// Reads both.
///
/// The certificate is not looked at beyond its public key, so that one of version 1 also serves those clients that
/// take it.
pub(super) fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = read_items(certificate, "certificate")?;
    let signer = PrivateKey::from_pem(read_file(key)?)
        .and_then(|key| key.signer())
        .map_err(|reason| unusable(key, reason))?;
    let mut anchors = RootCertStore::empty();
    anchors
        .add(chain[0].clone())
        .map_err(|error| unusable(certificate, error.to_string()))?;
    let certified = &*anchors.roots[0].subject_public_key_info;
    let public = signer.public_key();
    if public.as_deref().and_then(contents) != Some(certified) {
        let reason = "its first certificate is not for the key in server-key.pem";
        return Err(unusable(certificate, reason));
    }
    Ok(CertifiedKey::new(chain, signer))
}
