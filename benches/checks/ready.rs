//! How soon a verifier is ready on a real API server.

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
    let mut times = Vec::new();
    for _ in 0..bench.rounds {
        let (command, listen) = verifier::command(&bench.tokenward, &kubeconfig, free_address()?)?;
        let log = bench.folder.join("ready.log");
        let begun = Instant::now();
        drop(Server::start_anywhere("verifier".to_owned(), listen, "/auth", objects, command, &log)?);
        times.push(begun.elapsed().as_secs_f64());
    }
    report.section(
        "Start",
        &format!(
            "From the start of the process to the first good check, with {} ApiTokens on a real API server: {:.2} s.",
            report::thousands(objects),
            median(times)
        ),
    );
    Ok(())
}
