//! What webhooks cost: a mass revocation with and without them, and deliveries beside a bare client.
//!
//! `cargo bench --bench webhooks` starts a control plane and one controller, and runs for some minutes;
//! `-- --write` keeps the tables in `benches/RESULTS.md`, where it replaces its own section only. The machine must have
//! nothing else to do: API server, controller and receiver share its cores, as they do in every row.
//!
//! Map: [`world`] is the cluster, the controller and its tokens, [`receiver`] the endpoints, [`post`] the bare client.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

mod post;
mod receiver;
#[path = "../checks/report.rs"]
mod report;
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use serde_json::json;

use self::receiver::{Manner, Receiver};
use self::report::Report;
use self::world::{Revocation, World};

/// Measures webhooks.
#[derive(Parser)]
struct Args {
    /// How many tokens are revoked at once
    #[arg(long, default_value_t = 10_000)]
    tokens: usize,
    /// How many rounds the deliveries beside the bare client have; medians count
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Keep the tables in benches/RESULTS.md
    #[arg(long)]
    write: bool,
    /// What cargo passes to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this executable is when it runs itself.
#[derive(Parser)]
struct Inner {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    Post { address: SocketAddr, bodies: PathBuf },
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match Inner::try_parse() {
        Ok(Inner { role: Role::Post { address, bodies } }) => runtime.block_on(post::main(address, &bodies)),
        Err(_) => runtime.block_on(measure(&Args::parse())),
    }
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let mut report = Report::default();
    let world = World::start().await?;
    report.section(
        "Webhooks",
        &format!(
            "{}; tokenward {}. `cargo bench --bench webhooks`: {} tokens. API server, controller, receivers and load share the machine.",
            report::machine(),
            env!("CARGO_PKG_VERSION"),
            args.tokens
        ),
    );
    revocations(&world, args, &mut report).await?;
    deliveries(&world, args, &mut report).await?;
    if args.write {
        keep(&report, &Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.md"))?;
    }
    Ok(())
}

/// The same mass revocation without webhooks, and with three: one healthy, one that hangs, one that fails half of the
/// time.
async fn revocations(world: &World, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    world.namespace("without").await?;
    world.create("without", args.tokens).await?;
    let without = world.revoke("without", args.tokens).await?;

    let manners = [("healthy", Manner::Accepts), ("hanging", Manner::Hangs), ("half", Manner::FailsHalf)];
    world.namespace("with").await?;
    let mut receivers = Vec::new();
    for (name, manner) in manners {
        // While the tokens are made, everything is accepted: only the revocation is measured.
        let receiver = Receiver::open().await?;
        world.webhook("with", name, &receiver.url(), json!(["token.*"])).await?;
        receivers.push((name, manner, receiver));
    }
    world.create("with", args.tokens).await?;
    for (_, _, receiver) in &receivers {
        receiver.until(args.tokens, "token.created").await?;
    }
    world.settled("with").await?;
    for (_, manner, receiver) in &receivers {
        receiver.behave(*manner);
        receiver.forget();
    }
    let with = world.revoke("with", args.tokens).await?;
    let healthy = &receivers[0].2;
    let told = healthy.until(args.tokens, "token.revoked").await?;
    let last = told.duration_since(with.start);
    world.quiet().await?;
    let after = world.counts().await?;
    let (memory, terms) = (world.memory()?, world.terms()?);

    let row = |what: &str, revocation: &Revocation, writes: u64, hook_writes: String| {
        vec![
            what.to_owned(),
            format!("{:.1} s", revocation.patched.as_secs_f64()),
            format!("{:.1} s", revocation.enforced.as_secs_f64()),
            format!("{:.2}", writes as f64 / args.tokens as f64),
            hook_writes,
        ]
    };
    report.table(
        &[
            "revocation of all",
            "patched in",
            "enforced after",
            "ApiToken status writes each",
            "TokenWebhook status writes",
        ],
        &[
            row(
                "without webhooks",
                &without,
                without.after.statuses - without.before.statuses,
                "-".to_owned(),
            ),
            row(
                "three webhooks",
                &with,
                after.statuses - with.before.statuses,
                (after.hooks - with.before.hooks).to_string(),
            ),
        ],
    );
    let rows: Vec<_> = receivers
        .iter()
        .map(|(name, _, receiver)| {
            let seen = receiver.seen("token.revoked");
            vec![
                (*name).to_owned(),
                seen.requests.to_string(),
                seen.accepted.to_string(),
                seen.duplicates.to_string(),
            ]
        })
        .collect();
    report.table(&["endpoint", "requests", "events accepted", "accepted twice"], &rows);
    report.note(&format!(
        "The healthy endpoint had the last of {} events {:.1} s after the first patch. The controller's memory was at most {:.0} MiB. It has taken the lease {terms} times: more than once says that the API server did not keep up with its renewals.",
        args.tokens,
        last.as_secs_f64(),
        memory
    ));
    ensure!(
        receivers[0].2.seen("token.revoked").accepted == args.tokens,
        "the healthy endpoint misses events"
    );
    for name in ["healthy", "hanging", "half"] {
        world.delete_webhook("with", name).await?;
    }
    world.settled("with").await
}

/// Events that have been held back go out at once, beside a bare client with as many connections and the same bodies.
async fn deliveries(world: &World, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let namespace = format!("rate-{round}");
        world.namespace(&namespace).await?;
        let receiver = Receiver::open().await?;
        world.webhook(&namespace, "hook", &receiver.url(), json!(["token.revoked"])).await?;
        world.create(&namespace, args.tokens).await?;
        world.suspend(&namespace, "hook", true).await?;
        world.revoke(&namespace, args.tokens).await?;
        world.pending(&namespace, "hook", args.tokens).await?;
        world.quiet().await?;
        receiver.forget();
        world.suspend(&namespace, "hook", false).await?;
        receiver.until(args.tokens, "token.revoked").await?;
        ours.push(receiver.rate());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("webhooks-bench");
        std::fs::create_dir_all(&folder)?;
        let bodies = folder.join("bodies");
        receiver.write_bodies(&bodies)?;
        world.settled(&namespace).await?;
        world.quiet().await?;
        receiver.forget();
        post::run(receiver.address, &bodies)?;
        receiver.until(args.tokens, "token.revoked").await?;
        bare.push(receiver.rate());
        eprintln!("round {}: {:.0} beside {:.0} a second", round + 1, ours[round], bare[round]);
    }
    let (ours, bare) = (report::median(ours), report::median(bare));
    report.table(
        &["deliveries of held back events", "a second", "of the bare client"],
        &[
            vec![
                "tokenward, signed, 16 at once".to_owned(),
                format!("{ours:.0}"),
                format!("{:.2}", ours / bare),
            ],
            vec![
                "bare hyper client, 16 connections, same bodies".to_owned(),
                format!("{bare:.0}"),
                "1".to_owned(),
            ],
        ],
    );
    Ok(())
}

/// Puts our section in the place of the one that is there.
fn keep(report: &Report, path: &Path) -> anyhow::Result<()> {
    let stored = std::fs::read_to_string(path).unwrap_or_else(|_| "# Measured\n".to_owned());
    let kept = match stored.split_once("\n## Webhooks\n") {
        Some((before, rest)) => {
            let after = rest.find("\n## ").map_or("", |at| &rest[at..]);
            format!("{before}{after}")
        }
        None => stored,
    };
    let text = format!("{}\n{}", kept.trim_end(), report.text());
    std::fs::write(path, text).with_context(|| format!("{} can't be written", path.display()))
}

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(600);
