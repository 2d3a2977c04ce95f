//! How `uzram serve` exports over NBD: TLS, who may connect, read-only.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use support::{Serve, World};

fn finish(command: &mut Command) -> Output {
    support::finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Writes certificates for a server into a new directory `certs` of `world`.
pub(crate) fn certificates(world: &World) -> String {
    let dir = world.dir("certs");
    let (certificate, key) = (dir.join("server-cert.pem"), dir.join("server-key.pem"));
    let made = finish(
        Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-subj", "/CN=localhost"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .arg("-keyout")
            .arg(key)
            .arg("-out")
            .arg(&certificate),
    );
    assert!(made.status.success(), "openssl: {made:?}");
    fs::copy(certificate, dir.join("ca-cert.pem")).expect("a copy");
    dir.to_str().expect("UTF-8").to_owned()
}

fn nbdsh(world: &World, script: &str) {
    let socket = world.path("s");
    nbdsh_at(
        &format!("nbd+unix:///a?socket={}", socket.display()),
        script,
    );
}

/// Runs a script of Python, to which `uri` is known, and that must succeed.
pub(crate) fn nbdsh_at(uri: &str, script: &str) {
    let script = format!("uri = '{uri}'\n{script}");
    // The system's own directories first: Debian's Python modules belong to Debian's Python.
    let path = std::env::var("PATH").unwrap_or_default();
    let output = finish(
        Command::new("nbdsh")
            .env("PATH", format!("/usr/bin:/bin:{path}"))
            .args(["-c", &script]),
    );
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
}

fn serve(world: &World, more: &[&str]) -> Serve {
    let address = format!("--nbd=unix:{}", world.path("s").display());
    world.serve(&[&["a", "--size=1M", &address], more].concat())
}

#[test]
fn a_read_only_export_says_so_and_refuses_writes_with_eperm() {
    let world = World::new();
    let _server = serve(&world, &["--read-only"]);
    nbdsh(
        &world,
        "h.connect_uri(uri)\n\
         assert h.is_read_only()\n\
         h.set_strict_mode(0)\n\
         for write in [lambda: h.pwrite(b'x', 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)]:\n\
         \x20   try:\n\
         \x20       write()\n\
         \x20       raise AssertionError('it was written')\n\
         \x20   except nbd.Error as error:\n\
         \x20       assert error.errno == 'EPERM', error\n\
         assert h.pread(512, 0) == bytearray(512)",
    );
}

#[test]
fn tls_is_on_with_certificates_and_required_when_told() {
    let world = World::new();
    let certificates = certificates(&world);
    let option = format!("--tls-certificates={certificates}");
    let secure = "h.set_tls(nbd.TLS_REQUIRE)\n\
                  h.set_tls_verify_peer(False)\n\
                  h.connect_uri(uri)\n\
                  assert h.get_tls_negotiated()";
    let plain = "h.connect_uri(uri)\nassert not h.get_tls_negotiated()";
    {
        let _server = serve(&world, &[&option]);
        nbdsh(&world, secure);
        nbdsh(&world, plain);
    }
    let refused = "try:\n\
                   \x20   h.connect_uri(uri)\n\
                   except nbd.Error:\n\
                   \x20   pass\n\
                   else:\n\
                   \x20   raise AssertionError('it needs no TLS')";
    {
        let _server = serve(&world, &[&option, "--tls=require"]);
        nbdsh(&world, secure);
        nbdsh(&world, refused);
    }
    // Who asks for certificates lets nobody in beside those that have one.
    let _server = serve(&world, &[&option, "--tls-verify-peer"]);
    nbdsh(&world, refused);
    let both = [
        "serve",
        "b",
        "--size=1M",
        &option,
        "--tls=on",
        "--tls-verify-peer",
    ];
    let line = world.refused(2, &both);
    assert!(line.contains("--tls require"), "{line}");
}

#[test]
fn a_client_more_than_allowed_is_turned_away() {
    let world = World::new();
    let _server = serve(&world, &["--max-connections=1"]);
    nbdsh(
        &world,
        "h.connect_uri(uri)\n\
         h.pread(512, 0)\n\
         try:\n\
         \x20   nbd.NBD().connect_uri(uri)\n\
         except nbd.Error:\n\
         \x20   pass\n\
         else:\n\
         \x20   raise AssertionError('there was a place')",
    );
    world.refused(2, &["serve", "b", "--size=1M", "--max-connections=0"]);
}

#[test]
fn certificates_that_will_not_do_are_named_on_one_line() {
    let world = World::new();
    let dir = certificates(&world);
    let option = format!("--tls-certificates={dir}");
    let args = ["serve", "a", "--size=1M", &option, "--tls-verify-peer"];
    for name in ["server-key.pem", "server-cert.pem", "ca-cert.pem"] {
        let path = world.path("certs").join(name);
        let good = fs::read(&path).expect("a file");
        fs::write(&path, "nonsense").expect("a file");
        assert!(world.refused(1, &args).contains(name));
        fs::remove_file(&path).expect("it is there");
        assert!(world.refused(1, &args).contains(name));
        fs::write(&path, good).expect("a file");
    }
}

#[test]
fn other_machines_need_tls_or_consent() {
    let world = World::new();
    let args = ["serve", "a", "--size=1M", "--nbd=tcp:0.0.0.0:0"];
    assert!(world.refused(2, &args).contains("--insecure"));
    let tls = format!("--tls-certificates={}", certificates(&world));
    let may_do_without = [&args[..], &[tls.as_str()]].concat();
    assert!(world.refused(2, &may_do_without).contains("--tls require"));
    let _server = world.serve(&["a", "--size=1M", "--nbd=tcp:0.0.0.0:0", "--insecure"]);
}

/// Starts a server and stops it, and returns what it said on stderr.
fn warnings(world: &World, more: &[&str]) -> String {
    let log = world.path("log");
    let mut command = world.command(&[&["serve", "a", "--size=1M"], more].concat());
    let mut server = Serve::start(command.stderr(fs::File::create(&log).expect("a file")));
    // By its end all that it had to say is written.
    support::signal(server.pid(), "TERM");
    assert_eq!(server.ended(support::HANG), Some(0));
    fs::read_to_string(&log).expect("a log")
}

#[test]
fn who_serves_every_user_of_the_machine_is_told() {
    let world = World::new();
    let certificates = &format!("--tls-certificates={}", certificates(&world));
    let tcp = "--nbd=tcp:127.0.0.1:0";
    for (options, is_warned) in [
        (&[tcp][..], true),
        (&[tcp, certificates, "--tls=on"], true),
        (&[tcp, certificates, "--tls=require"], false),
        (&[tcp, "--insecure"], false),
        (&[], false),
    ] {
        let said = warnings(&world, options);
        let expected = "every user of this machine can read and write";
        assert_eq!(said.contains(expected), is_warned, "{options:?}: {said}");
    }
}

#[test]
fn who_shows_the_private_key_to_all_is_told() {
    let world = World::new();
    let certificates = certificates(&world);
    let key = format!("{certificates}/server-key.pem");
    let option = &format!("--tls-certificates={certificates}");
    for (mode, is_warned) in [(0o644, true), (0o600, false), (0o640, false)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("ours");
        let said = warnings(&world, &[option]);
        let expected = format!("chmod 600 {key}");
        assert_eq!(said.contains(&expected), is_warned, "{mode:o}: {said}");
    }
}
