//! Which clients' certificates are trusted: those that an authority in `ca-cert.pem` has signed, and those that are
//! in `ca-cert.pem` themselves; unless a list in `ca-crl.pem` revokes them.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use crate::error::Result;

use super::files::{read_items, unusable};
use super::revocation;

pub(super) const AUTHORITIES: &str = "ca-cert.pem";
pub(super) const LISTS: &str = "ca-crl.pem";

/// Said of a client whose certificate is older than the extensions that say what a certificate is for.
const VERSION_1: &str = "the client's certificate has version 1, and version 3 is needed: sign it with openssl x509 \
    -req -extfile FILE, where FILE has the line basicConstraints=CA:FALSE, or with certtool --generate-certificate";

/// What checks clients' certificates by the files in `directory`.
pub(super) fn verifier(
    directory: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let path = directory.join(AUTHORITIES);
    let mut roots = RootCertStore::empty();
    let trusted = read_items::<CertificateDer<'static>>(&path, "certificate")?;
    for certificate in &trusted {
        roots
            .add(certificate.clone())
            .map_err(|error| unusable(&path, error.to_string()))?;
    }
    let roots = Arc::new(roots);
    let path_of_lists = directory.join(LISTS);
    let lists = if is_there(&path_of_lists) {
        revocation::read(&path_of_lists, &roots, provider)?
    } else {
        Vec::new()
    };
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    if !lists.is_empty() {
        // A client's authority may have no list, where others have one.
        builder = builder
            .with_crls(lists.iter().cloned())
            .allow_unknown_revocation_status();
    }
    let by_authority = builder.build().map_err(|error| match error {
        VerifierBuilderError::InvalidCrl(error) => unusable(
            &path_of_lists,
            format!("a list in it cannot be used: {error:?}"),
        ),
        error => unusable(&path, error.to_string()),
    })?;
    Ok(Arc::new(Clients {
        by_authority,
        trusted,
        lists,
    }))
}

/// Whether there is something by that name, be it of no use: only a file that is missing for certain revokes
/// nothing.
fn is_there(path: &Path) -> bool {
    match path.symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Trusts whom an authority vouches for, and who is named.
#[derive(Debug)]
struct Clients {
    by_authority: Arc<dyn ClientCertVerifier>,
    /// The certificates in `ca-cert.pem`.
    trusted: Vec<CertificateDer<'static>>,
    lists: Vec<CertificateRevocationListDer<'static>>,
}

impl Clients {
    /// Whether `certificate` is in `ca-cert.pem` itself, and neither revoked nor out of its time.
    ///
    /// The rules of a chain say nothing of it: one that signs itself is an authority by them, and none of a client.
    fn is_named(
        &self,
        certificate: &CertificateDer<'_>,
        parsed: &X509Certificate<'_>,
        now: UnixTime,
    ) -> bool {
        let now = i64::try_from(now.as_secs()).ok();
        let now = now.and_then(|now| ASN1Time::from_timestamp(now).ok());
        self.trusted.iter().any(|trusted| trusted == certificate)
            && now.is_some_and(|now| parsed.validity().is_valid_at(now))
            && !revocation::revoke(&self.lists, parsed)
    }
}

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        // What does not parse here is for the rules of a chain to refuse.
        let parsed = x509_parser::parse_x509_certificate(end_entity).ok();
        let parsed = parsed.map(|(_, parsed)| parsed);
        if parsed
            .as_ref()
            .is_some_and(|parsed| parsed.version() == X509Version::V1)
        {
            let said = Box::<dyn StdError + Send + Sync>::from(VERSION_1);
            return Err(OtherError(Arc::from(said)).into());
        }
        let by_authority = self
            .by_authority
            .verify_client_cert(end_entity, intermediates, now);
        match (by_authority, parsed) {
            (Err(_), Some(parsed)) if self.is_named(end_entity, &parsed, now) => {
                Ok(ClientCertVerified::assertion())
            }
            (verdict, _) => verdict,
        }
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.by_authority.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}
