//! How soon a verifier is ready on a real API server, with a checkpoint and without.

use std::time::Instant;

use super::report::{self, Report, median};
use super::server::{Server, free_address};
use super::{Bench, cluster, verifier};

/// Starts a verifier again and again with a number of real objects.
pub fn measure(bench: &Bench, objects: u64, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a control plane with {} tokens", report::thousands(objects));
    let cluster = cluster::start(Vec::new())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let client = cluster::client(&cluster).await?;
        cluster::fill(&client, objects).await
    })?;
    let kubeconfig = cluster.kubeconfig_for_service_account("tokenward", "tokenward-verifier")?;
    let checkpoint = bench.folder.join("ready");
    std::fs::create_dir_all(&checkpoint)?;
    let start = |with_checkpoint: bool| {
        let (mut command, listen) = verifier::command(&bench.tokenward, &kubeconfig, free_address()?)?;
        if with_checkpoint {
            command.args(["--checkpoint-min-tokens", "0", "--checkpoint-dir"]).arg(&checkpoint);
        }
        let log = bench.folder.join("ready.log");
        let begun = Instant::now();
        let server = Server::start_anywhere("verifier".to_owned(), listen, "/auth", objects, command, &log)?;
        anyhow::Ok((server, begun.elapsed().as_secs_f64()))
    };
    let (first, _) = start(true)?;
    verifier::wait_for_checkpoint(&checkpoint)?;
    drop(first);
    let (mut listed, mut restored) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        listed.push(start(false)?.1);
        restored.push(start(true)?.1);
    }
    report.section(
        "Start",
        &format!(
            "From the start of the process to the first good check, with {} ApiTokens on a real API server: {:.2} s by a list, \
             {:.2} s by a checkpoint and what has happened since.",
            report::thousands(objects),
            median(listed),
            median(restored),
        ),
    );
    Ok(())
}
