//! Rate, CPU time and latency of a check, compared with the bare HTTP server and with gateways.

use super::api::Api;
use super::report::{self, Report, median, time};
use super::server::{Server, free_address};
use super::wrk::Run;
use super::{Bench, open_loop, peers, token_review, tokens, verifier};

const TOKENS: u64 = 100_000;

/// Measures all of them, round by round.
pub fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting servers");
    let folder = &bench.folder;
    let api = Api::start(TOKENS, tokens::no_labels, folder)?;
    let servers = [
        verifier::alone(&bench.tokenward, &api, free_address()?, folder)?,
        peers::bare(TOKENS, folder)?,
        peers::nginx(programs::nginx()?, folder)?,
        peers::haproxy(programs::haproxy()?, folder)?,
        peers::envoy(programs::envoy()?, folder)?,
    ];
    let runs = rounds(bench, &servers)?;
    let mut rows = Vec::new();
    let of_bare = cpu(&runs[1]);
    for (server, runs) in servers.iter().zip(&runs) {
        let rate = median(runs.iter().map(|run| run.rate).collect());
        eprintln!("{}: at half of its rate", server.name);
        let half = open_loop::run(server, &bench.wrk.tokens(server.tokens)?, rate / 2.0, bench.time)?;
        rows.push(vec![
            server.name.clone(),
            server.check.to_owned(),
            report::thousands(rate as u64),
            format!("{:.2}", cpu(runs)),
            format!("{:.2}", cpu(runs) / of_bare),
            time(median(runs.iter().map(|run| run.latency[1]).collect())),
            half.map(time).join(" / "),
            format!("{:.0} MiB", server.memory()? as f64 / f64::from(1 << 20)),
        ]);
    }
    drop(servers);
    rows.push(token_review::measure(bench)?);
    report.section(
        "A check",
        "64 connections to one core, one request in ten with a bad token. The verifier and the bare server meet all of \
         100,000 tokens, the gateways all of their 10,000 keys.",
    );
    report.table(
        &[
            "server",
            "what a check is",
            "requests/s",
            "CPU µs/request",
            "to bare",
            "p99, full load",
            "p50 / p99 / p99.9, half",
            "memory",
        ],
        &rows,
    );
    Ok(())
}

/// Loads each server in each round; returns the runs of each.
pub fn rounds(bench: &Bench, servers: &[Server]) -> anyhow::Result<Vec<Vec<Run>>> {
    let mut runs: Vec<Vec<Run>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 0..=bench.rounds {
        for (server, runs) in servers.iter().zip(&mut runs) {
            let run = bench.wrk.run(server, bench.time, 1.0 / tokens::BAD_EVERY as f64)?;
            // The first round is a warm-up.
            if round > 0 {
                runs.push(run);
            }
            eprintln!(
                "round {round} of {}: {}: {:.0} requests/s, {:.2} µs",
                bench.rounds, server.name, run.rate, run.cpu
            );
        }
    }
    Ok(runs)
}

/// The median of the CPU time that a request costs.
pub fn cpu(runs: &[Run]) -> f64 {
    median(runs.iter().map(|run| run.cpu).collect())
}
