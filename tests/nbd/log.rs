//! What the log says of clients.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::client::*;

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
    let fixture = serve();
    let mut client = fixture.simple();
    client.send(&[0xff; 28]);
    client.assert_closed();
    // Other tests' clients are heard as well: none of them may be loud, and one is ours.
    let level = loop {
        let event = events.recv_timeout(Duration::from_secs(20));
        let (level, words) = event.expect("it is logged");
        if words.contains("a request without its magic") {
            break level;
        }
    };
    assert_eq!(level, Level::DEBUG);

    // But those whom it turns away for want of a place are for the administrator to know of.
    let fixture = serve_with(|config| config.max_connections = 1);
    let mut first = fixture.simple();
    first.request(READ, 0, 0, 1, &[]);
    assert_eq!(first.simple_reply(1).0, 0);
    fixture.connect().assert_closed();
    let path = fixture.socket.display().to_string();
    let level = loop {
        let event = events.recv_timeout(Duration::from_secs(20));
        let (level, words) = event.expect("it is logged");
        if words.contains("turned away") && words.contains(&path) {
            break level;
        }
    };
    assert_eq!(level, Level::WARN);
}
