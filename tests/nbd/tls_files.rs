//! The files of the directory of certificates: which will do, and what is said of the others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use uzram::Error;
use uzram::nbd::{Server, ServerConfig, TlsConfig};

use crate::client::*;
use crate::device::MemoryDevice;
use support::certificates::Certificates;
use support::certificates::revoke_client;

/// Starts a server with the certificates of `dir`, and checks its clients' if asked to.
fn start(dir: &Path, verify_peer: bool) -> Result<(), Error> {
    let sockets = tempfile::tempdir().expect("a directory");
    let address = format!("unix:{}", sockets.path().join("s").display());
    let mut config = ServerConfig::new(NAME, vec![address.parse().expect("an address")]);
    config.tls = Some(
        TlsConfig::new(dir.to_owned())
            .required(verify_peer)
            .verify_peer(verify_peer),
    );
    Server::start(config, Arc::new(MemoryDevice::new())).map(drop)
}

/// What is said of the certificates of `dir`, on one line, of which a server must not be started.
fn refused(dir: &Path) -> String {
    let error = start(dir, true).expect_err("of no use").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn files_that_will_not_do_are_named() {
    let certificates = Certificates::new();
    let dir = certificates.server();
    start(&dir, true).expect("all is well");

    let strange_key = fs::read(certificates.client().join("client-key.pem")).expect("a file");
    for (name, contents) in [
        ("server-cert.pem", &b""[..]),
        ("server-cert.pem", b"nonsense"),
        ("server-key.pem", b"nonsense"),
        ("server-key.pem", &strange_key),
        ("ca-cert.pem", b""),
        ("ca-cert.pem", b"nonsense"),
    ] {
        let path = dir.join(name);
        let before = fs::read(&path).expect("a file");
        fs::write(&path, contents).expect("a file");
        let error = refused(&dir);
        assert!(error.contains(name), "{error}");
        fs::remove_file(&path).expect("it is there");
        let error = refused(&dir);
        assert!(
            error.contains(name) && error.contains("No such file"),
            "{error}"
        );
        fs::write(&path, before).expect("a file");
    }
    // Who checks nobody needs no authority.
    fs::remove_file(dir.join("ca-cert.pem")).expect("it is there");
    start(&dir, false).expect("all is well");
}

#[test]
fn paths_that_lead_to_no_file_hold_up_nobody() {
    let certificates = Certificates::new();
    let dir = certificates.server();
    revoke_client(&certificates, "ours");
    for name in [
        "server-cert.pem",
        "server-key.pem",
        "ca-cert.pem",
        "ca-crl.pem",
    ] {
        let path = dir.join(name);
        let before = fs::read(&path).expect("a file");
        fs::remove_file(&path).expect("it is there");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        let error = refused(&dir);
        assert!(error.contains(name) && error.contains("FIFO"), "{error}");
        fs::remove_file(&path).expect("it is there");
        symlink("/dev/zero", &path).expect("a link");
        let error = refused(&dir);
        assert!(error.contains(name) && error.contains("device"), "{error}");
        fs::remove_file(&path).expect("it is there");
        fs::write(&path, before).expect("a file");
    }
    start(&dir, true).expect("all is well again");
}

#[test]
fn a_list_that_revokes_nobody_of_ours_stops_the_start() {
    let certificates = Certificates::new();
    let dir = certificates.server();
    let path = dir.join("ca-crl.pem");
    revoke_client(&certificates, "ours");
    let ours = fs::read_to_string(&path).expect("a list");
    let cut = ours.replace("-----END", "");
    let mut lines: Vec<_> = ours.lines().collect();
    lines.remove(1);
    let garbled = lines.join("\n");
    let certificate = fs::read_to_string(dir.join("ca-cert.pem")).expect("a certificate");
    for contents in ["", "nonsense", &cut, &garbled, &certificate] {
        fs::write(&path, contents).expect("a file");
        let error = refused(&dir);
        assert!(error.contains("ca-crl.pem"), "{contents}: {error}");
    }
    for (by, says) in [("theirs", "not in ca-cert.pem"), ("forged", "not signed")] {
        revoke_client(&certificates, by);
        let error = refused(&dir);
        assert!(
            error.contains("ca-crl.pem") && error.contains(says),
            "{error}"
        );
        // Neither does it do beside one that will.
        let theirs = fs::read_to_string(&path).expect("a list");
        fs::write(&path, format!("{ours}{theirs}")).expect("a file");
        let error = refused(&dir);
        assert!(error.contains(says), "{error}");
    }
    fs::remove_file(&path).expect("it is there");
    symlink("nowhere", &path).expect("a link");
    let error = refused(&dir);
    assert!(error.contains("ca-crl.pem"), "{error}");
    fs::remove_file(&path).expect("it is there");
    start(&dir, true).expect("none at all is well");
}
