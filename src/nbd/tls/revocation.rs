//! Lists of revoked certificates. One that says nothing about our authorities' certificates would let in whom it
//! should keep out, so each must be whole, of a version that is understood, and signed by one of them.

use std::path::Path;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateRevocationListDer, TrustAnchor};
use x509_parser::asn1_rs::{BitString, FromDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::error::Result;

use super::der::{contents, element};
use super::files::{read_items, unusable};

/// Reads and checks the lists in `path`: each must be of one of `authorities`.
pub(super) fn read(
    path: &Path,
    authorities: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let lists: Vec<CertificateRevocationListDer<'static>> =
        read_items(path, "list of revoked certificates (X509 CRL)")?;
    for list in &lists {
        check(list, authorities, provider).map_err(|reason| unusable(path, reason))?;
        warn_if_old(path, list);
    }
    Ok(lists)
}

/// Says why a list is of no use.
fn check(
    list: &[u8],
    authorities: &RootCertStore,
    provider: &CryptoProvider,
) -> std::result::Result<(), String> {
    let (_, parsed) = CertificateRevocationList::from_der(list)
        .map_err(|_| "a list in it is not a valid X.509 CRL".to_owned())?;
    let issuer = parsed.issuer();
    if parsed.version().is_none() {
        return Err(format!(
            "the list of {issuer} has version 1, and version 2 is needed: make it with openssl ca -gencrl -crlexts \
             SECTION, where SECTION has crlNumber, or with certtool --generate-crl"
        ));
    }
    let mut named = authorities
        .roots
        .iter()
        .filter(|anchor| Some(&*anchor.subject) == contents(issuer.as_raw()))
        .peekable();
    if named.peek().is_none() {
        return Err(format!(
            "the list is of {issuer}, whose certificate is not in ca-cert.pem: put the list of your own authority there"
        ));
    }
    if !named.any(|anchor| has_signed(anchor, list, provider).is_some()) {
        return Err(format!(
            "the list is not signed by the key of {issuer} in ca-cert.pem, or in a way that is not supported"
        ));
    }
    Ok(())
}

/// Whether `anchor`'s key has signed the list.
fn has_signed(anchor: &TrustAnchor<'_>, list: &[u8], provider: &CryptoProvider) -> Option<()> {
    let (_, key_algorithm, rest) = element(&anchor.subject_public_key_info)?;
    let (_, key) = BitString::from_der(rest).ok()?;
    let (signed, _, rest) = element(contents(list)?)?;
    let (_, algorithm, rest) = element(rest)?;
    let (_, signature) = BitString::from_der(rest).ok()?;
    let verified = provider
        .signature_verification_algorithms
        .all
        .iter()
        .filter(|one| {
            &*one.public_key_alg_id() == key_algorithm && &*one.signature_alg_id() == algorithm
        })
        .any(|one| {
            let (key, signature) = (key.as_ref(), signature.as_ref());
            one.verify_signature(key, signed, signature).is_ok()
        });
    verified.then_some(())
}

/// Whoever was revoked since is let in; that is still better than to keep everybody out.
fn warn_if_old(path: &Path, list: &[u8]) {
    let next = CertificateRevocationList::from_der(list).map(|(_, list)| list.next_update());
    if let Ok(Some(next)) = next
        && next < ASN1Time::now()
    {
        tracing::warn!(
            "{}: the list was to be replaced by a newer one on {next}: whoever was revoked since is let in",
            path.display()
        );
    }
}

/// Whether one of the lists names the certificate.
pub(super) fn revoke(
    lists: &[CertificateRevocationListDer<'_>],
    certificate: &X509Certificate<'_>,
) -> bool {
    lists.iter().any(|list| {
        // They were read once, so they can be read.
        CertificateRevocationList::from_der(list).map_or(true, |(_, list)| {
            list.issuer().as_raw() == certificate.issuer().as_raw()
                && list
                    .iter_revoked_certificates()
                    .any(|revoked| *revoked.serial() == certificate.tbs_certificate.serial)
        })
    })
}
