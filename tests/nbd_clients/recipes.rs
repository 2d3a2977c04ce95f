//! The recipes of `docs/tls.md`, as they stand there, and what becomes of keys and certificates of other kinds.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use uzram::nbd::{Address, Server, ServerConfig, TlsConfig};
use uzram::{Device, DeviceConfig};

use crate::rig::*;

/// The commands below a heading of the page.
fn recipe(heading: &str) -> String {
    let page = include_str!("../../docs/tls.md");
    let (_, section) = page.split_once(&format!("# {heading}\n")).expect(heading);
    let (_, commands) = section.split_once("```sh\n").expect(heading);
    let (commands, _) = commands.split_once("```\n").expect(heading);
    commands.replace("storage.example", "localhost")
}

/// Runs commands in `dir`.
fn sh(dir: &Path, commands: &str) {
    let script = format!("set -e\ncd {}\n{commands}", dir.display());
    run("openssl, gnutls-bin", "sh", &["-c", &script]);
}

fn serve(certificates: &Path, verify_peer: bool) -> Fixture {
    Fixture::with(|config| {
        let tcp = "tcp:127.0.0.1:0".parse().expect("an address");
        config.addresses.push(tcp);
        config.tls = Some(tls(certificates, verify_peer));
    })
}

fn tls(certificates: &Path, verify_peer: bool) -> TlsConfig {
    TlsConfig::new(certificates.to_owned())
        .required(true)
        .verify_peer(verify_peer)
}

/// The export for libnbd over TCP, where it checks the server's certificate.
fn uri(fixture: &Fixture, client: &Path) -> String {
    let Address::Tcp { port, .. } = fixture.server.addresses()[1] else {
        panic!("the second address is TCP")
    };
    let client = client.display();
    format!("nbds://localhost:{port}/disk?tls-certificates={client}")
}

fn assert_recipe_works(tool: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    sh(
        dir.path(),
        &recipe(&format!("Make certificates with {tool}")),
    );
    let (server, client) = (dir.path().join("server"), dir.path().join("client"));
    let fixture = serve(&server, true);
    let uri = uri(&fixture, &client);
    libnbd("nbdinfo", &[&uri]);

    // The server that runs sees the list.
    sh(dir.path(), &recipe(&format!("Revoke a client with {tool}")));
    fail("libnbd-bin", "nbdinfo", &[&uri]);
    // A list of no use leaves the one before in force, and a new server does not start with it.
    let list = server.join("ca-crl.pem");
    fs::write(&list, "nonsense").expect("a file");
    fail("libnbd-bin", "nbdinfo", &[&uri]);
    assert!(refusal(&server, true).contains("ca-crl.pem"));
    fs::remove_file(&list).expect("it is there");
    libnbd("nbdinfo", &[&uri]);
}

#[test]
fn the_recipe_for_openssl_makes_what_is_served_and_revoked() {
    assert_recipe_works("OpenSSL");
}

#[test]
fn the_recipe_for_certtool_makes_what_is_served_and_revoked() {
    assert_recipe_works("certtool");
}

/// Why a server does not start with the certificates of `dir`.
fn refusal(dir: &Path, verify_peer: bool) -> String {
    let socket = Address::Unix(dir.join("s"));
    let mut config = ServerConfig::new("disk", vec![socket]);
    config.tls = Some(tls(dir, verify_peer));
    let device = Device::new(&DeviceConfig::new(MIB)).expect("a device");
    let error = Server::start(config, Arc::new(device)).expect_err("of no use");
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

/// A directory with a key as `commands` make it, and a certificate for it.
fn with_key(commands: &str) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    sh(dir.path(), commands);
    sh(dir.path(), CERTIFICATE);
    dir
}

const CERTIFICATE: &str = "openssl req -x509 -key server-key.pem -passin pass:x -subj /CN=localhost -days 9 \
    -out server-cert.pem && cp server-cert.pem ca-cert.pem";

/// The certificate is its own authority, for a client that has nothing to show.
fn assert_serves_with(dir: &Path) {
    let client = tempfile::tempdir().expect("a directory");
    fs::copy(dir.join("ca-cert.pem"), client.path().join("ca-cert.pem")).expect("a copy");
    let fixture = serve(dir, false);
    libnbd("nbdinfo", &[&uri(&fixture, client.path())]);
}

#[test]
fn keys_that_other_servers_take_are_taken() {
    for commands in [
        "openssl genrsa -out server-key.pem 2100",
        "openssl genrsa -out server-key.pem 8192",
        "openssl genrsa -traditional -out server-key.pem 3072",
        "openssl ecparam -name secp521r1 -genkey -noout -out server-key.pem",
        "openssl ecparam -name secp384r1 -genkey -out server-key.pem",
        "openssl ecparam -name prime256v1 -genkey -noout | openssl ec -no_public -out server-key.pem",
        "openssl genpkey -algorithm ed25519 -out server-key.pem",
    ] {
        assert_serves_with(with_key(commands).path());
    }
    // It writes a zero in front of about half of them.
    for _ in 0..8 {
        let commands = "certtool --generate-privkey --key-type ecdsa --outfile server-key.pem";
        assert_serves_with(with_key(commands).path());
    }
}

#[test]
fn a_certificate_of_version_1_is_served() {
    let dir = with_key("openssl genrsa -out server-key.pem 2048");
    let version_1 = "openssl req -new -key server-key.pem -subj /CN=localhost -out csr.pem
        openssl x509 -req -in csr.pem -signkey server-key.pem -days 9 -out server-cert.pem
        openssl x509 -in server-cert.pem -noout -text | grep -q 'Version: 1'";
    sh(dir.path(), version_1);
    // No host name is in it, which libnbd would look for over TCP.
    let fixture = serve(dir.path(), false);
    let uri = format!(
        "nbds+unix:///disk?socket={}&tls-certificates={}",
        fixture.path("nbd.sock").display(),
        dir.path().display()
    );
    libnbd("nbdinfo", &[&uri]);
}

#[test]
fn of_keys_that_are_not_taken_it_is_said_what_they_are_and_what_to_do() {
    for (commands, says) in [
        (
            "openssl genpkey -algorithm ed448 -out server-key.pem",
            "Ed448",
        ),
        (
            "openssl genpkey -algorithm rsa-pss -pkeyopt rsa_keygen_bits:2048 -out server-key.pem",
            "RSA-PSS",
        ),
        (
            "openssl ecparam -name secp256k1 -genkey -noout -out server-key.pem",
            "another curve",
        ),
        (
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:secp256k1 -out server-key.pem",
            "another curve",
        ),
        (
            "openssl genpkey -algorithm rsa -aes256 -pass pass:x -out server-key.pem",
            "openssl pkey",
        ),
        (
            "openssl genrsa -aes256 -traditional -passout pass:x -out server-key.pem 2048",
            "openssl pkey",
        ),
    ] {
        let dir = with_key(commands);
        let said = refusal(dir.path(), false);
        assert!(
            said.contains("server-key.pem") && said.contains(says) && said.contains("openssl "),
            "{commands}: {said}"
        );
    }
}

#[test]
fn a_client_that_is_named_itself_is_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    sh(dir.path(), &recipe("Make certificates with OpenSSL"));
    let (server, client) = (dir.path().join("server"), dir.path().join("client"));
    let self_signed = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=self \
        -keyout client/client-key.pem -out client/client-cert.pem";
    sh(dir.path(), self_signed);
    let fixture = serve(&server, true);
    let uri = uri(&fixture, &client);
    fail("libnbd-bin", "nbdinfo", &[&uri]);
    sh(
        dir.path(),
        "cat client/client-cert.pem >> server/ca-cert.pem",
    );
    libnbd("nbdinfo", &[&uri]);
    // Another one of the same name is not.
    sh(dir.path(), self_signed);
    fail("libnbd-bin", "nbdinfo", &[&uri]);
}

#[test]
fn a_list_of_version_1_is_refused_with_what_makes_one_that_fits() {
    let dir = tempfile::tempdir().expect("a directory");
    sh(dir.path(), &recipe("Make certificates with OpenSSL"));
    let commands = recipe("Revoke a client with OpenSSL")
        .replace("'crlnumber=crlnumber'", "")
        .replace("'crl_extensions=list'", "");
    sh(dir.path(), &commands);
    let said = refusal(&dir.path().join("server"), true);
    assert!(
        said.contains("ca-crl.pem") && said.contains("version 1") && said.contains("openssl ca"),
        "{said}"
    );
}
