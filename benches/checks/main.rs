//! What a check costs, compared with a bare HTTP server and with gateways that check API keys.
//!
//! `cargo bench --bench checks` runs all of it in some 15 minutes and prints tables; `-- --write` stores them in
//! `benches/RESULTS.md`; a name runs one part. The server has the first core for itself, the load the second. In each
//! round the servers are loaded one after the other, and the median of the rounds counts, so that a machine whose
//! speed drifts affects all alike.
//!
//! Requests a second distinguish servers only up to the limit of the load generator; the server's CPU time for a
//! request does so beyond it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

#[path = "../support/api.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod api;
#[path = "../support/args.rs"]
mod args;
mod bare;
mod cluster;
mod growth;
mod open_loop;
mod peers;
#[path = "../support/process.rs"]
mod process;
mod rates;
mod ready;
#[path = "../support/report.rs"]
mod report;
mod revocation;
#[path = "../support/server.rs"]
mod server;
mod token_review;
#[path = "../support/tokens.rs"]
#[allow(dead_code, reason = "each benchmark has tokens of its own kind")]
mod tokens;
#[path = "../support/verifier.rs"]
mod verifier;
#[path = "../support/wrk.rs"]
mod wrk;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use self::args::Common;
use self::report::Report;
use self::wrk::Wrk;

/// Measures the verifier.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// What to measure [default: everything]
    parts: Vec<Part>,
    /// How many rounds; medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long one round loads one server, in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many tokens the part `growth` indexes, one verifier each
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000")]
    sizes: Vec<u64>,
    /// How many real objects the part `ready` makes
    #[arg(long, default_value_t = 10_000)]
    objects: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Rate, CPU and latency of a check, and of the baselines
    Rates,
    /// Memory, start and cost of a check from 1,000 to 1,000,000 tokens
    Growth,
    /// From acknowledgement to 401, and the baseline: a bare watch
    Revocation,
    /// Time until ready with real objects
    Ready,
}

/// The processes of the benchmark that are this executable too.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Bare { address: SocketAddr },
    #[command(hide = true)]
    Load { address: SocketAddr, path: String, tokens: PathBuf, rate: f64, seconds: u64 },
}

/// What every part uses.
struct Bench {
    /// The binary that is measured.
    tokenward: PathBuf,
    wrk: Wrk,
    folder: PathBuf,
    rounds: usize,
    time: Duration,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Bare { address }) => bare::serve(address),
        Some(Role::Load { address, ref path, ref tokens, rate, seconds }) => {
            open_loop::main(address, path, tokens, rate, Duration::from_secs(seconds))
        }
        None => measure(&args),
    }
}

fn measure(args: &Args) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("checks");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let wrk = Wrk::new(programs::wrk()?, &folder)?;
    let bench = Bench {
        tokenward: args.common.tokenward.clone(),
        wrk,
        folder,
        rounds: args.rounds,
        time: Duration::from_secs(args.seconds),
    };
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let how =
        format!("`cargo bench --bench checks`: medians of {} rounds of {} s.", args.rounds, args.seconds);
    let mut report = Report::new("Checks", &how);
    if wanted(Part::Rates) {
        rates::measure(&bench, &mut report)?;
    }
    if wanted(Part::Growth) {
        growth::measure(&bench, &args.sizes, &mut report)?;
    }
    if wanted(Part::Revocation) {
        revocation::measure(&bench, &mut report)?;
    }
    if wanted(Part::Ready) {
        ready::measure(&bench, args.objects, &mut report)?;
    }
    if args.common.write {
        report.store()?;
    }
    Ok(())
}
