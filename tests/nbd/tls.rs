//! STARTTLS: who may do what before it, what survives it, and who is turned away.

use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use uzram::nbd::{Server, ServerConfig, TlsConfig};

use crate::client::*;
use crate::device::MemoryDevice;
use support::certificates::Certificates;
use support::certificates::revoke_client;
use support::{HANG, noise};

type Secure = Client<StreamOwned<ClientConnection, UnixStream>>;

struct TlsFixture {
    fixture: Fixture,
    certificates: Certificates,
}

fn serve_tls(configure: impl FnOnce(&mut TlsConfig)) -> TlsFixture {
    serve_tls_with(configure, |_| {})
}

fn serve_tls_with(
    configure_tls: impl FnOnce(&mut TlsConfig),
    configure: impl FnOnce(&mut ServerConfig),
) -> TlsFixture {
    let certificates = Certificates::new();
    let mut tls = TlsConfig::new(certificates.server());
    configure_tls(&mut tls);
    let fixture = serve_with(|config| {
        config.tls = Some(tls);
        configure(config);
    });
    TlsFixture {
        fixture,
        certificates,
    }
}

impl TlsFixture {
    /// A client with the certificates of `dir`, right after the TLS handshake.
    fn secure(&self, dir: &Path) -> io::Result<Secure> {
        let mut client = self.fixture.connect();
        client.greet(3);
        upgrade(client, dir)
    }
}

/// Asks for TLS and shakes hands.
fn upgrade(mut client: Client<UnixStream>, dir: &Path) -> io::Result<Secure> {
    assert_eq!(client.verdict(STARTTLS, &[]), REP_ACK);
    let mut connection = connection(dir);
    let mut stream = client.stream;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(Client::new(StreamOwned::new(connection, stream)))
}

/// A client's side of TLS with the certificates of `dir`.
fn connection(dir: &Path) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(dir.join("ca-cert.pem")).expect("a file") {
        roots.add(certificate.expect("PEM")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = if dir.join("client-cert.pem").exists() {
        let chain = CertificateDer::pem_file_iter(dir.join("client-cert.pem")).expect("a file");
        let chain = chain.collect::<Result<_, _>>().expect("PEM");
        let key = PrivateKeyDer::from_pem_file(dir.join("client-key.pem")).expect("a key");
        builder.with_client_auth_cert(chain, key).expect("a pair")
    } else {
        builder.with_no_client_auth()
    };
    let name = "localhost".try_into().expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

#[test]
fn without_certificates_there_is_no_tls() {
    let fixture = serve();
    let mut client = fixture.connect();
    client.greet(3);
    assert_eq!(client.verdict(STARTTLS, &[]), REP_ERR_POLICY);
    client.go(NAME);
}

#[test]
fn both_kinds_of_client_are_served_where_tls_is_offered() {
    let served = serve_tls(|_| {});
    let mut plain = served.fixture.simple();
    plain.request(WRITE, 0, 5, 5, b"hello");
    assert_eq!(plain.simple_reply(0).0, 0);
    let mut secure = served
        .secure(&served.certificates.anonymous())
        .expect("TLS");
    secure.structure();
    secure.go(NAME);
    secure.request(READ, 0, 5, 5, &[]);
    assert_eq!(secure.assemble(5, 5), b"hello");
    secure.request(DISC, 0, 0, 0, &[]);
    secure.assert_closed();
}

#[test]
fn large_requests_and_many_of_them_pass_through() {
    let served = serve_tls(|_| {});
    let mut client = served
        .secure(&served.certificates.anonymous())
        .expect("TLS");
    client.go(NAME);
    for (offset, length) in [(0, 1), (4095, 100_000), (1 << 20, 8 << 20)] {
        let data = noise(offset + 1, length);
        client.request(WRITE, FUA, offset, length as u32, &data);
        assert_eq!(client.simple_reply(0).0, 0);
        client.request(READ, 0, offset, length as u32, &[]);
        assert!(client.simple_reply(length).1 == data, "{length} bytes");
    }
    let many = (0..1000u64).flat_map(|i| {
        let mut request = request_bytes(WRITE, 0, i, i * 4096, 512);
        request.extend(noise(i, 512));
        request
    });
    client.send(&many.collect::<Vec<u8>>());
    for i in 0..1000u64 {
        assert_eq!(client.receive(16)[8..], i.to_be_bytes());
    }
    assert_eq!(served.fixture.device.bytes(4096..4608), noise(1, 512));
}

#[test]
fn where_tls_is_required_nothing_else_comes_first() {
    let served = serve_tls(|tls| tls.required = true);
    let fixture = &served.fixture;
    let mut client = fixture.connect();
    client.greet(3);
    let query = queries(NAME, &["base:allocation"]);
    let go = info_request(NAME, &[]);
    for (option, data) in [
        (LIST, &[][..]),
        (INFO, &go),
        (GO, &go),
        (STRUCTURED_REPLY, &[]),
        (LIST_META_CONTEXT, &query),
        (SET_META_CONTEXT, &query),
        (77, &[1, 2, 3]),
    ] {
        assert_eq!(client.verdict(option, data), REP_ERR_TLS_REQD, "{option}");
    }
    assert_eq!(client.verdict(STARTTLS, b"x"), REP_ERR_INVALID);
    let mut secure = upgrade(client, &served.certificates.anonymous()).expect("TLS");
    assert_eq!(secure.verdict(STARTTLS, &[]), REP_ERR_INVALID);
    assert_eq!(secure.verdict(77, &[]), REP_ERR_UNSUP);
    secure.go(NAME);

    let mut client = fixture.connect();
    client.greet(3);
    client.send_option(EXPORT_NAME, NAME.as_bytes());
    client.assert_closed();

    let mut client = fixture.connect();
    client.greet(3);
    assert_eq!(client.verdict(ABORT, &[]), REP_ACK);
    client.assert_closed();
}

#[test]
fn what_was_agreed_before_tls_is_forgotten() {
    let served = serve_tls(|_| {});
    let mut client = served.fixture.connect();
    client.greet(3);
    client.structure();
    let query = queries(NAME, &["base:allocation"]);
    assert_eq!(client.verdict(SET_META_CONTEXT, &query), REP_ACK);
    let mut secure = upgrade(client, &served.certificates.anonymous()).expect("TLS");
    assert_eq!(secure.verdict(SET_META_CONTEXT, &query), REP_ERR_INVALID);
    assert_eq!(secure.go(NAME) & (1 << 7), 0, "DF needs structured replies");
    secure.request(BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!(secure.simple_reply(0).0, EINVAL);
    secure.request(READ, 0, 0, 512, &[]);
    assert_eq!(secure.simple_reply(512), (0, vec![0; 512]));
}

#[test]
fn what_is_injected_behind_starttls_is_never_obeyed() {
    let served = serve_tls(|_| {});
    let option = |number: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    for (number, data) in [
        (STRUCTURED_REPLY, Vec::new()),
        (LIST, Vec::new()),
        (GO, info_request(NAME, &[])),
    ] {
        let mut client = served.fixture.connect();
        client.greet(3);
        // In one segment, so that a server that receives more than it parses has it in memory.
        client.send(&[option(STARTTLS, &[]), option(number, &data)].concat());
        assert_eq!(client.option_replies(STARTTLS), [(REP_ACK, Vec::new())]);
        let mut rest = Vec::new();
        // An end with or without the rest being read; either way an alert at the most.
        drop(client.stream.read_to_end(&mut rest));
        assert!(rest.is_empty() || rest[0] == 21, "{rest:?}");
    }
    served.fixture.assert_serves();
}

#[test]
fn who_has_no_certificate_of_ours_is_turned_away_if_peers_are_verified() {
    let served = serve_tls(|tls| {
        tls.required = true;
        tls.verify_peer = true;
    });
    let certificates = &served.certificates;
    let mut client = served.secure(&certificates.client()).expect("trusted");
    client.go(NAME);

    // With TLS 1.3 a client hears only after its own part of the handshake.
    let refused = |dir: &Path| {
        served.secure(dir).and_then(|mut client| {
            let mut byte = [0];
            client.stream.read_exact(&mut byte)
        })
    };
    refused(&certificates.anonymous()).expect_err("it has nothing to show");

    // One that trusts us but shows what another authority signed.
    let mixed = tempfile::tempdir().expect("a directory");
    for (from, name) in [
        (certificates.client(), "ca-cert.pem"),
        (certificates.stranger(), "client-cert.pem"),
        (certificates.stranger(), "client-key.pem"),
    ] {
        fs::copy(from.join(name), mixed.path().join(name)).expect("a copy");
    }
    refused(mixed.path()).expect_err("a stranger");

    // And one that does not trust us.
    refused(&certificates.stranger()).expect_err("it turns away itself");
    let mut client = served.secure(&certificates.client()).expect("still served");
    client.go(NAME);
}

#[test]
fn whom_the_list_revokes_is_turned_away() {
    let before = serve_tls(|tls| {
        tls.required = true;
        tls.verify_peer = true;
    });
    let certificates = &before.certificates;
    let mut client = before.secure(&certificates.client()).expect("trusted");
    client.go(NAME);

    revoke_client(certificates, "ours");
    let after = serve_with(|config| {
        config.tls = Some(
            TlsConfig::new(certificates.server())
                .required(true)
                .verify_peer(true),
        );
    });
    let mut client = after.connect();
    client.greet(3);
    // With TLS 1.3 a client hears only after its own part of the handshake.
    let come_in = upgrade(client, &certificates.client())
        .and_then(|mut client| client.stream.read_exact(&mut [0]));
    come_in.expect_err("revoked");
}

#[test]
fn a_client_that_dawdles_in_the_tls_handshake_is_cut_off() {
    let served = serve_tls_with(
        |_| {},
        |config| config.handshake_timeout = Duration::from_millis(200),
    );
    let mut client = served.fixture.connect();
    client.greet(3);
    assert_eq!(client.verdict(STARTTLS, &[]), REP_ACK);
    client.assert_closed();
    served.fixture.assert_serves();
}

#[test]
fn shutdown_answers_tls_clients_too() {
    let served = serve_tls(|_| {});
    let mut client = served
        .secure(&served.certificates.anonymous())
        .expect("TLS");
    client.go(NAME);
    for i in 0..50 {
        client.request(WRITE, 0, i * 4096, 4, b"data");
    }
    served.fixture.server.shutdown(Duration::from_secs(5));
    for _ in 0..50 {
        assert_eq!(client.receive(16)[4..8], [0; 4]);
    }
    client.assert_closed();
}

#[test]
fn shutdown_waits_for_no_tls_handshake() {
    let certificates = Certificates::new();
    let mut hello = Vec::new();
    connection(&certificates.anonymous())
        .write_tls(&mut hello)
        .expect("a first message");
    for said in [0, 1, 5, hello.len() / 2, hello.len()] {
        let served = serve_tls(|_| {});
        let mut client = served.fixture.connect();
        client.greet(3);
        assert_eq!(client.verdict(STARTTLS, &[]), REP_ACK);
        client.send(&hello[..said]);
        if said == hello.len() {
            assert_eq!(
                client.receive(1),
                [22],
                "the server's part of the handshake"
            );
        }
        let begun = Instant::now();
        served.fixture.server.shutdown(HANG);
        assert!(begun.elapsed() < HANG / 2, "{said}: {:?}", begun.elapsed());
        // It may yet hear the rest of the handshake, or an alert, but no more than that.
        let mut rest = Vec::new();
        match client.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.len() < 1 << 14, "{said}: {} bytes", rest.len()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{said}"),
        }
        assert!(!served.fixture.socket.exists());
    }
}

#[test]
fn other_machines_are_served_without_tls_only_if_that_is_meant() {
    let certificates = Certificates::new();
    let start = |configure: &dyn Fn(&mut ServerConfig)| {
        let address = "tcp:0.0.0.0:0".parse().expect("an address");
        let mut config = ServerConfig::new(NAME, vec![address]);
        configure(&mut config);
        Server::start(config, Arc::new(MemoryDevice::new())).map(drop)
    };
    let error = start(&|_| {}).expect_err("it is open to all");
    assert!(error.is_usage());
    assert!(
        error.to_string().contains("ServerConfig::insecure"),
        "{error}"
    );
    start(&|config| config.insecure = true).expect("it is meant");
    let tls = |required, verify_peer| {
        TlsConfig::new(certificates.server())
            .required(required)
            .verify_peer(verify_peer)
    };
    start(&|config| config.tls = Some(tls(true, false))).expect("nobody can read along");
    let error = start(&|config| config.tls = Some(tls(false, false)));
    let error = error.expect_err("clients may do without");
    assert!(error.is_usage());
    assert!(error.to_string().contains("TlsConfig::required"), "{error}");
    // Whose clients' certificates are checked, even with consent, has none without.
    let error = start(&|config| {
        config.insecure = true;
        config.tls = Some(tls(false, true));
    });
    let error = error.expect_err("clients may do without").to_string();
    assert!(
        error.contains("tls_verify_peer") && error.contains("TlsConfig::required"),
        "{error}"
    );
}
