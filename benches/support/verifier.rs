//! Verifiers that are measured.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::api::Api;
use super::report::thousands;
use super::server::{Server, free_address};

/// How long a verifier may take to write a checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(120);

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
    let (command, listen) = command(program, api.kubeconfig(), telemetry)?;
    start(command, listen, api, folder)
}

/// The same with a checkpoint in this folder, which it goes on from if there is one.
pub fn with_checkpoint(
    program: &Path,
    api: &Api,
    folder: &Path,
    checkpoint: &Path,
) -> anyhow::Result<Server> {
    let (mut command, listen) = command(program, api.kubeconfig(), free_address()?)?;
    command.args(["--checkpoint-min-tokens", "0", "--checkpoint-dir"]).arg(checkpoint);
    start(command, listen, api, folder)
}

/// Waits for the checkpoint in a folder.
pub fn wait_for_checkpoint(folder: &Path) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !folder.join("index.checkpoint").exists() {
        ensure!(begun.elapsed() < CHECKPOINT_TIMEOUT, "no checkpoint in {}", folder.display());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn start(mut command: Command, listen: SocketAddr, api: &Api, folder: &Path) -> anyhow::Result<Server> {
    let tokens = api.tokens();
    command.env("TOKIO_WORKER_THREADS", "1");
    Server::start(
        format!("tokenward, {} tokens", thousands(tokens)),
        "keyed hash of the token, look-up, every rule; identity in the answer",
        listen,
        "/auth",
        tokens,
        &command,
        &folder.join(format!("tokenward-{}.log", listen.port())),
    )
}
