//! A server as verbs ask it: over its control socket.

use std::time::Duration;

use anyhow::Result;
use uzram::Attribute;
use uzram::control::Client;

use crate::runtime::rundir::RunDir;

/// How long a server may take to answer; it answers at once unless it is stuck.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// How long work of a server that takes long may take.
pub(crate) const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Asks the server of `dir`.
pub(crate) fn connect(dir: &RunDir) -> uzram::Result<Client> {
    Client::connect(&dir.control_socket(), TIMEOUT)
}

/// [`connect`], where there must be a server.
///
/// # Errors
/// That there is none, in words about its name.
pub(crate) fn connect_to_server(dir: &RunDir) -> Result<Client> {
    dir.require_owner()?;
    Ok(connect(dir)?)
}

/// What the server compresses pages with that are written now, as `--algorithm` has it.
pub(crate) fn algorithm(client: &mut Client) -> uzram::Result<String> {
    let all = client.get(Attribute::CompAlgorithm.name())?;
    let chosen = all
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or(all.trim(), |(chosen, _)| chosen).to_owned())
}

/// Where it spills to, if anywhere.
pub(crate) fn backing(client: &mut Client) -> uzram::Result<Option<String>> {
    let path = client.get(Attribute::BackingDev.name())?;
    let path = path.trim_end_matches('\n');
    Ok((path != "none").then(|| path.to_owned()))
}
