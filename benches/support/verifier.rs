//! Verifiers that are measured.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::api::Api;
use super::report::thousands;
use super::server::{Server, free_address};

/// The command of a verifier with its telemetry at this address, and the address that it will listen on.
pub fn command(
    program: &Path,
    kubeconfig: &Path,
    telemetry: SocketAddr,
) -> anyhow::Result<(Command, SocketAddr)> {
    let listen = free_address()?;
    let mut command = Command::new(program);
    command.args(["verifier", "--listen", &listen.to_string(), "--telemetry-listen", &telemetry.to_string()]);
    command.args(["--plain-http", "--namespace", "tokenward"]).env("KUBECONFIG", kubeconfig);
    Ok((command, listen))
}

/// One with one worker and the first core for itself, fed by the fake API server.
pub fn alone(program: &Path, api: &Api, telemetry: SocketAddr, folder: &Path) -> anyhow::Result<Server> {
    let tokens = api.tokens();
    let (mut command, listen) = command(program, api.kubeconfig(), telemetry)?;
    command.env("TOKIO_WORKER_THREADS", "1");
    Server::start(
        format!("tokenward, {} tokens", thousands(tokens)),
        "keyed hash of the token, look-up, every rule; identity in the answer",
        listen,
        "/auth",
        tokens,
        &command,
        &folder.join(format!("tokenward-{tokens}.log")),
    )
}
