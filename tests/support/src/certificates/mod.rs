//! Certificates made for a test: in the layout that the NBD servers and clients share.

mod revocation;

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use tempfile::TempDir;

pub use self::revocation::revoke_client;

/// A server's directory, and its clients'.
pub struct Certificates {
    dir: TempDir,
    pub ours: Authority,
    pub theirs: Authority,
}

/// The serial number of every client's certificate.
pub const CLIENT: u64 = 7;

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let made = Self { dir, ours, theirs };
        let Self { ours, theirs, .. } = &made;
        ours.write_ca(&made.server());
        ours.write_leaf(
            &made.server(),
            "server",
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        ours.write_ca(&made.client());
        ours.write_leaf(
            &made.client(),
            "client",
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        ours.write_ca(&made.anonymous());
        theirs.write_ca(&made.stranger());
        theirs.write_leaf(
            &made.stranger(),
            "client",
            ExtendedKeyUsagePurpose::ClientAuth,
        );
        made
    }

    /// With everything a server needs, to check its clients as well.
    pub fn server(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// Trusts the server, and is trusted.
    pub fn client(&self) -> PathBuf {
        self.dir.path().join("client")
    }

    /// Trusts the server, and has nothing to show.
    pub fn anonymous(&self) -> PathBuf {
        self.dir.path().join("anonymous")
    }

    /// Trusts another authority, and shows that one's certificate.
    pub fn stranger(&self) -> PathBuf {
        self.dir.path().join("stranger")
    }
}

pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn write_ca(&self, dir: &Path) {
        write(dir, "ca-cert.pem", &self.pem);
    }

    fn write_leaf(&self, dir: &Path, role: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = params(role);
        if role == "client" {
            params.serial_number = Some(CLIENT.into());
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        write(dir, &format!("{role}-cert.pem"), &certificate.pem());
        write(dir, &format!("{role}-key.pem"), &key.serialize_pem());
    }
}

fn params(name: &str) -> CertificateParams {
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

pub fn write(dir: &Path, name: &str, pem: &str) {
    fs::create_dir_all(dir).expect("a directory");
    fs::write(dir.join(name), pem).expect("a file");
}
