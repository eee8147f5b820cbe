//! What more tokens cost: memory, the time until the verifier is ready, and the check itself.

use std::time::Instant;

use super::api::Api;
use super::report::{self, Report};
use super::server::Server;
use super::{Bench, rates, tokens, verifier};

/// Measures verifiers of every size, round by round.
pub fn measure(bench: &Bench, sizes: &[u64], report: &mut Report) -> anyhow::Result<()> {
    let empty = Started::new(1, bench)?.server.memory()?;
    let mut servers = Vec::new();
    let mut facts = Vec::new();
    for tokens in sizes {
        let started = Started::new(*tokens, bench)?;
        facts.push((started.memory.saturating_sub(empty), started.listed, started.restored));
        servers.push(started.server);
    }
    let runs = rates::rounds(bench, &servers)?;
    let of_first = rates::cpu(&runs[0]);
    let rows: Vec<_> = sizes
        .iter()
        .zip(facts)
        .zip(&runs)
        .map(|((tokens, (memory, listed, restored)), runs)| {
            vec![
                report::thousands(*tokens),
                format!("{:.0}", memory as f64 / *tokens as f64),
                format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)),
                format!("{listed:.2} s"),
                format!("{restored:.2} s"),
                format!("{:.2}", rates::cpu(runs)),
                format!("{:+.0} %", (rates::cpu(runs) / of_first - 1.0) * 100.0),
            ]
        })
        .collect();
    report.section(
        "Growth",
        "Verifiers that list their tokens from an API on loopback, page by page. Memory is resident memory beyond that \
         of a verifier with one token. From the start of the process to the first good check: by a list, and with the \
         checkpoint of another one, by what has happened since. All tokens are in the load.",
    );
    report.table(
        &[
            "tokens",
            "bytes a token",
            "memory",
            "by a list",
            "by a checkpoint",
            "CPU µs/request",
            "to the first",
        ],
        &rows,
    );
    Ok(())
}

/// A verifier that has listed its tokens.
struct Started {
    server: Server,
    /// Its resident memory right then, in bytes.
    memory: u64,
    /// After how many seconds it responded.
    listed: f64,
    /// After how many another one did, with its checkpoint.
    restored: f64,
}

impl Started {
    fn new(tokens: u64, bench: &Bench) -> anyhow::Result<Self> {
        eprintln!("starting a verifier with {} tokens", report::thousands(tokens));
        let api = Api::start(tokens, tokens::no_labels, &bench.folder)?;
        let checkpoint = bench.folder.join(format!("checkpoint-{tokens}"));
        std::fs::create_dir_all(&checkpoint)?;
        let start = || {
            let begun = Instant::now();
            let server = verifier::with_checkpoint(&bench.tokenward, &api, &bench.folder, &checkpoint)?;
            anyhow::Ok((server, begun.elapsed().as_secs_f64()))
        };
        let (server, listed) = start()?;
        let memory = server.memory()?;
        verifier::wait_for_checkpoint(&checkpoint)?;
        let (_, restored) = start()?;
        // Their API server may end: checks are answered from memory.
        Ok(Self { server, memory, listed, restored })
    }
}
