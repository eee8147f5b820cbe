//! What locks do and cost, how soon a revocation is confirmed, and how fast a lock is recorded on the tokens that it revokes: each
//! beside a client that does nothing but the same requests.
//!
//! `cargo bench --bench locks` runs all of it in some 35 minutes and prints tables; `-- --write` stores them in
//! `benches/RESULTS.md`; a name runs one part. The machine must be idle otherwise: API server, verifiers and load share its
//! cores, in every row.
//!
//! Map: [`effect`], [`cost`], [`memory`], [`confirmation`] and [`latching`] are the parts, [`bare`] the bare watch, [`confirmer`]
//! the simulated verifiers. Of [`latching`], [`history`] is what the controller has written, which [`plain`] writes again, and
//! [`sides`] compares them by what [`apiserver`] says.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

#[path = "../support/api.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod api;
#[path = "../support/apiserver.rs"]
#[allow(dead_code, reason = "each benchmark asks for other figures")]
mod apiserver;
#[path = "../support/args.rs"]
mod args;
mod bare;
mod confirmation;
mod confirmer;
mod cost;
mod effect;
#[path = "../support/history.rs"]
mod history;
mod latching;
mod memory;
#[path = "../support/plain.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod plain;
#[path = "../support/process.rs"]
mod process;
#[path = "../support/report.rs"]
mod report;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod server;
#[path = "../support/sides.rs"]
mod sides;
#[path = "../support/tokens.rs"]
#[allow(dead_code, reason = "each benchmark has tokens of its own kind")]
mod tokens;
#[path = "../support/verifier.rs"]
#[allow(dead_code, reason = "each benchmark starts verifiers of its own kind")]
mod verifier;
#[path = "../support/world.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod world;
#[path = "../support/wrk.rs"]
#[allow(dead_code, reason = "each benchmark loads in its own way")]
mod wrk;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use self::args::Common;
use self::report::Report;

/// How long each wait of the benchmark may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Measures locks and confirmations.
#[derive(Parser)]
#[command(disable_help_subcommand = true)]
struct Args {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// How many tokens the verifiers of the part `effect` have, one size after the other
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000")]
    sizes: Vec<u64>,
    /// How often each lock of the part `effect` is created
    #[arg(long, default_value_t = 100)]
    locks: usize,
    /// How long the part `effect` creates one lock again and again at most, in seconds
    #[arg(long, default_value_t = 120)]
    bound: u64,
    /// Checks a second beside the locks, at all verifiers together
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// How many tokens the verifiers of the parts `cost` and `memory` have
    #[arg(long, default_value_t = 1_000_000)]
    tokens: u64,
    /// How many rounds the part `cost` has; medians count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long the part `cost` loads a verifier each time, in seconds
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many tokens the part `confirmation` revokes, one after the other
    #[arg(long, default_value_t = 200)]
    revocations: usize,
    /// How many tokens the lock of the part `latching` revokes
    #[arg(long, default_value_t = 10_000)]
    latched: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From a lock until every token that it matches is refused, and the baseline: a bare watch
    Effect,
    /// From a revocation until it is confirmed, and the baseline: a plain client that writes the same
    Confirmation,
    /// From a lock until all tokens that it revokes say so, and the baseline: a plain client that makes the same requests
    Latching,
    /// A check's cost with no locks, one and many
    Cost,
    /// Bytes a token, with labels and without
    Memory,
}

/// What every part uses.
struct Bench {
    /// The binary that is measured.
    tokenward: PathBuf,
    folder: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("locks");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    let bench = Bench { tokenward: args.common.tokenward.clone(), folder };
    let wanted = |part| args.parts.is_empty() || args.parts.contains(&part);
    let how = "`cargo bench --bench locks`. API server, verifiers and load share the machine.";
    let mut report = Report::new("Locks", how);
    if wanted(Part::Effect) {
        effect::measure(&bench, &args, &mut report)?;
    }
    if wanted(Part::Confirmation) {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(confirmation::measure(&bench, args.revocations, &mut report))?;
    }
    if wanted(Part::Latching) {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(latching::measure(&bench, args.latched, &mut report))?;
    }
    if wanted(Part::Cost) {
        cost::measure(&bench, &args, &mut report)?;
    }
    if wanted(Part::Memory) {
        memory::measure(&bench, args.tokens, &mut report)?;
    }
    if args.common.write {
        report.store()?;
    }
    Ok(())
}
