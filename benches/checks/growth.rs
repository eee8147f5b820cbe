//! What more tokens cost: memory, the time until the verifier is ready, and the check itself.

use std::time::Instant;

use super::api::Api;
use super::report::{self, Report};
use super::server::{Server, free_address};
use super::{Bench, rates, tokens, verifier};

/// Measures verifiers of every size, round by round.
pub fn measure(bench: &Bench, sizes: &[u64], report: &mut Report) -> anyhow::Result<()> {
    let empty = start(1, bench)?.0.memory()?;
    let mut servers = Vec::new();
    let mut facts = Vec::new();
    for tokens in sizes {
        let (server, ready) = start(*tokens, bench)?;
        let memory = server.memory()?.saturating_sub(empty);
        facts.push((memory, ready));
        servers.push(server);
    }
    let runs = rates::rounds(bench, &servers)?;
    let of_first = rates::cpu(&runs[0]);
    let rows: Vec<_> = sizes
        .iter()
        .zip(facts)
        .zip(&runs)
        .map(|((tokens, (memory, ready)), runs)| {
            vec![
                report::thousands(*tokens),
                format!("{:.0}", memory as f64 / *tokens as f64),
                format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
                format!("{ready:.2} s"),
                format!("{:.2}", rates::cpu(runs)),
                format!("{:+.0} %", (rates::cpu(runs) / of_first - 1.0) * 100.0),
            ]
        })
        .collect();
    report.section(
        "Growth",
        "Verifiers that list their tokens from an API on loopback, page by page. Memory is resident memory beyond that \
         of a verifier with one token. All tokens are in the load.",
    );
    report.table(
        &["tokens", "bytes a token", "memory", "start to ready", "CPU µs/request", "to the first"],
        &rows,
    );
    Ok(())
}

/// Starts a verifier; returns it, and after how many seconds it responded.
fn start(tokens: u64, bench: &Bench) -> anyhow::Result<(Server, f64)> {
    eprintln!("starting a verifier with {} tokens", report::thousands(tokens));
    let api = Api::start(tokens, tokens::no_labels, &bench.folder)?;
    let begun = Instant::now();
    let server = verifier::alone(&bench.tokenward, &api, free_address()?, &bench.folder)?;
    let ready = begun.elapsed().as_secs_f64();
    // Its API server may end: checks are answered from memory.
    Ok((server, ready))
}
