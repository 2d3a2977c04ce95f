//! `uzram metrics`.

use std::time::Duration;

use anyhow::Result;
use uzram::control::Client;

use crate::base::output;
use crate::runtime::client;
use crate::runtime::metrics::{Format, Observed, Seen, exposition};
use crate::runtime::rundir::RunRoot;

/// How long each server may take to answer: one that is stuck must not hide the others.
const TIMEOUT: Duration = Duration::from_secs(1);

/// `uzram metrics`.
pub(crate) fn metrics(root: &RunRoot) -> Result<()> {
    let mut devices = Vec::new();
    for dir in root.dirs()? {
        if dir.record().is_none() {
            // It is being made or removed at this moment.
            continue;
        }
        let asked = Client::connect(&dir.control_socket(), TIMEOUT);
        let seen = asked.and_then(|mut client| {
            Ok(Seen {
                stats: client.stat()?,
                latencies: client.latencies()?,
                algorithm: client::algorithm(&mut client)?,
                backing: client::backing(&mut client)?,
            })
        });
        let seen = seen.inspect_err(|error| {
            tracing::warn!("{} does not answer: {error}", dir.name());
        });
        devices.push(Observed {
            name: dir.name().to_string(),
            seen: seen.ok(),
        });
    }
    output::text(&exposition(&devices, Format::Prometheus))
}
