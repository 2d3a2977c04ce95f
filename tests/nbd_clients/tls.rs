//! Clients with TLS: libnbd's tools and QEMU's, which both use GnuTLS.

use std::path::Path;

use uzram::nbd::{Address, TlsConfig};

use crate::rig::*;
use support::certificates::Certificates;
use support::certificates::revoke_client;

fn serve(certificates: &Certificates, verify_peer: bool) -> Fixture {
    Fixture::with(|config| {
        let tcp = "tcp:127.0.0.1:0".parse().expect("an address");
        config.addresses.push(tcp);
        config.tls = Some(
            TlsConfig::new(certificates.server())
                .required(true)
                .verify_peer(verify_peer),
        );
    })
}

/// The export for libnbd, with the certificates of `dir`.
fn uri(fixture: &Fixture, dir: &Path) -> String {
    format!(
        "nbds+unix:///disk?socket={}&tls-certificates={}",
        fixture.path("nbd.sock").display(),
        dir.display()
    )
}

/// The same over TCP: over a Unix socket libnbd takes any certificate of a server's.
fn tcp_uri(fixture: &Fixture, dir: &Path) -> String {
    let Address::Tcp { port, .. } = fixture.server.addresses()[1] else {
        panic!("the second address is TCP")
    };
    let dir = dir.display();
    format!("nbds://localhost:{port}/disk?tls-certificates={dir}")
}

/// Arguments of QEMU's tools for the export, with the certificates of `dir`.
fn qemu_options(fixture: &Fixture, dir: &Path) -> (String, String) {
    let credentials = format!(
        "tls-creds-x509,id=tls,endpoint=client,dir={}",
        dir.display()
    );
    let image = format!(
        "driver=nbd,export=disk,tls-creds=tls,tls-hostname=localhost,server.type=unix,\
         server.path={}",
        fixture.path("nbd.sock").display()
    );
    (credentials, image)
}

#[test]
fn libnbd_copies_and_talks_over_tls() {
    let certificates = Certificates::new();
    let fixture = serve(&certificates, true);
    let uri = &uri(&fixture, &certificates.client());
    let info = json(&libnbd("nbdinfo", &["--json", uri]));
    assert_eq!(info["TLS"], true);

    let (image, copy) = (fixture.path("image"), fixture.path("copy"));
    sparse_image(&image);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    libnbd(
        "nbdcopy",
        &["--connections=4", "--flush", &text(&image), uri],
    );
    libnbd("nbdcopy", &["--connections=4", uri, &text(&copy)]);
    assert_same_files(&image, &copy);

    let script = format!(
        "h.set_uri_allow_local_file(True)\n\
         h.connect_uri(\"{uri}\")\n\
         assert h.get_tls_negotiated()\n\
         h.pwrite(b'hello', 5)\n\
         assert h.pread(5, 5) == b'hello'\n\
         h.shutdown()"
    );
    run("python3-libnbd", "nbdsh", &["-c", &script]);
}

#[test]
fn qemu_converts_and_compares_over_tls() {
    let certificates = Certificates::new();
    let fixture = serve(&certificates, true);
    let image = fixture.path("image");
    sparse_image(&image);
    let image = format!("driver=raw,file.filename={}", image.display());
    let (credentials, export) = qemu_options(&fixture, &certificates.client());
    let common = ["--object", &credentials, "--image-opts"];
    qemu(
        "qemu-img",
        &[
            &["convert", "-n", "--target-image-opts"][..],
            &common,
            &[&image, &export],
        ]
        .concat(),
    );
    qemu(
        "qemu-img",
        &[&["compare"][..], &common, &[&image, &export]].concat(),
    );
}

#[test]
fn who_is_not_trusted_or_does_not_trust_is_turned_away() {
    let certificates = Certificates::new();
    let open = serve(&certificates, false);
    let closed = serve(&certificates, true);
    libnbd("nbdinfo", &[&uri(&open, &certificates.anonymous())]);
    libnbd("nbdinfo", &[&tcp_uri(&open, &certificates.anonymous())]);
    for refused in [
        tcp_uri(&open, &certificates.stranger()),
        uri(&closed, &certificates.anonymous()),
        uri(&closed, &certificates.stranger()),
        open.uri(),
    ] {
        fail("libnbd-bin", "nbdinfo", &[&refused]);
    }
    let complaint = fail("qemu-utils", "qemu-img", &["info", &open.uri()]);
    assert!(complaint.contains("TLS"), "{complaint}");
    for (fixture, dir) in [
        (&open, certificates.stranger()),
        (&closed, certificates.anonymous()),
    ] {
        let (credentials, export) = qemu_options(fixture, &dir);
        let info = ["info", "--object", &credentials, "--image-opts", &export];
        fail("qemu-utils", "qemu-img", &info);
    }
    libnbd("nbdinfo", &[&uri(&closed, &certificates.client())]);
}

#[test]
fn who_is_revoked_is_turned_away() {
    let certificates = Certificates::new();
    let before = serve(&certificates, true);
    libnbd("nbdinfo", &[&uri(&before, &certificates.client())]);
    revoke_client(&certificates, "ours");
    let after = serve(&certificates, true);
    fail(
        "libnbd-bin",
        "nbdinfo",
        &[&uri(&after, &certificates.client())],
    );
}
