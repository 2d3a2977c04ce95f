//! What the log says of clients.

use std::fmt;
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use uzram::nbd::TlsConfig;

use crate::client::*;
use support::HANG;
use support::certificates::Certificates;

/// Sends on the level and the words of every event.
struct Listener(Mutex<mpsc::Sender<(Level, String)>>);

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn event(&self, event: &Event<'_>) {
        let mut words = Words(String::new());
        event.record(&mut words);
        // Other tests go on logging when the one that listens has ended.
        let _ = self.0.lock().send((*event.metadata().level(), words.0));
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[test]
fn clients_cannot_fill_the_log() {
    let (sender, events) = mpsc::channel();
    let listener = Arc::new(Listener(Mutex::new(sender)));
    tracing::subscriber::set_global_default(listener).expect("the only one");
    let heard = |parts: &[&str]| loop {
        let event = events.recv_timeout(HANG);
        let (level, words) = event.expect("it is logged");
        if parts.iter().all(|part| words.contains(part)) {
            break level;
        }
    };
    let fixture = serve();
    let mut client = fixture.simple();
    client.send(&[0xff; 28]);
    client.assert_closed();
    // Other tests' clients are heard as well: none of them may be loud, and one is ours.
    assert_eq!(heard(&["a request without its magic"]), Level::DEBUG);

    // But those whom it turns away for want of a place are for the administrator to know of.
    let fixture = serve_with(|config| config.max_connections = 1);
    let mut first = fixture.simple();
    first.request(READ, 0, 0, 1, &[]);
    assert_eq!(first.simple_reply(1).0, 0);
    fixture.connect().assert_closed();
    let path = fixture.socket.display().to_string();
    assert_eq!(heard(&["turned away", &path]), Level::WARN);

    // And those with whom it does not come to terms over TLS, by name.
    let certificates = Certificates::new();
    let fixture = serve_with(|config| {
        config
            .addresses
            .push("tcp:127.0.0.1:0".parse().expect("an address"));
        config.tls = Some(
            TlsConfig::new(certificates.server())
                .required(true)
                .verify_peer(true),
        );
    });
    let mut client = connect_tcp(&fixture.server.addresses()[1]);
    client.greet(3);
    assert_eq!(client.verdict(STARTTLS, &[]), REP_ACK);
    client.send(&[0xff; 64]);
    let peer = client.stream.local_addr().expect("connected").to_string();
    assert_eq!(heard(&["the TLS handshake with", &peer]), Level::WARN);
    // One that just leaves as well, but not a line for each.
    let mut client = connect_tcp(&fixture.server.addresses()[1]);
    client.greet(3);
    assert_eq!(client.verdict(STARTTLS, &[]), REP_ACK);
    let peer = client.stream.local_addr().expect("connected").to_string();
    drop(client);
    assert_eq!(
        heard(&["the TLS handshake with", &peer, "left"]),
        Level::DEBUG
    );
}
