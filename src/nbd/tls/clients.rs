//! Which clients' certificates are trusted: those that an authority in `ca-cert.pem` has signed and that no list in
//! `ca-crl.pem` revokes.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::error::Result;

use super::files::{read_items, unusable};
use super::revocation;

/// What checks clients' certificates by the files in `directory`.
pub(super) fn verifier(
    directory: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let path = directory.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in read_items::<CertificateDer<'static>>(&path, "certificate")? {
        roots
            .add(certificate)
            .map_err(|error| unusable(&path, error.to_string()))?;
    }
    let roots = Arc::new(roots);
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
    let lists = directory.join("ca-crl.pem");
    if is_there(&lists) {
        let lists = revocation::read(&lists, &roots, provider)?;
        // A client's authority may have no list, where others have one.
        builder = builder.with_crls(lists).allow_unknown_revocation_status();
    }
    builder
        .build()
        .map_err(|error| unusable(&path, error.to_string()))
}

/// Whether there is something by that name, be it of no use: only a file that is missing for certain revokes
/// nothing.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}
