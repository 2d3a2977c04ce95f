//! Warnings of who else can reach what a server serves. Said once it serves, by who was asked to have it serve: a
//! server in the background is heard by nobody. `--insecure` says that it is meant.

use uzram::nbd::{Address, ServerConfig, TlsConfig};

use crate::args::Sink;
use crate::settings::Settings;

/// Warns of what users of this machine, or of others, can do without a password or certificate.
pub(crate) fn warn(settings: &Settings) {
    let nbd = &settings.nbd;
    if let Some(key) = nbd.tls.as_ref().and_then(TlsConfig::exposed_key) {
        let key = key.display();
        tracing::warn!(
            "every user of this machine can read the private key {key}: chmod 600 {key}"
        );
    }
    if nbd.insecure {
        return;
    }
    warn_of_writers(nbd, &nbd.addresses);
    warn_of_readers(&settings.metrics);
}

/// Warns of those of `addresses` where `nbd` serves everybody: a port has no owner, as a socket's file has.
pub(crate) fn warn_of_writers(nbd: &ServerConfig, addresses: &[Address]) {
    if nbd.insecure || nbd.tls.as_ref().is_some_and(|tls| tls.required) {
        return;
    }
    for address in addresses {
        if matches!(address, Address::Tcp { .. }) {
            tracing::warn!(
                "--nbd {address}: every user of this machine can read and write the device: use unix:PATH, or \
                 --tls require with --tls-verify-peer (--insecure if that is meant)"
            );
        }
    }
}

/// Figures are no secret to be kept by force, but who shows them should know.
fn warn_of_readers(metrics: &[Sink]) {
    for sink in metrics {
        if let Sink::Http(address) = sink
            && address.is_exposed()
        {
            tracing::warn!("--metrics {sink}: other machines can read these figures, without TLS");
        }
    }
}
