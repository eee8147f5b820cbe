//! What the controller does under load: deliveries compared with a bare client, a new token beside a namespace that rotates
//! without end, a mass revocation with and without webhooks, and many new tokens compared with a plain client.
//!
//! `cargo bench --bench controller` starts a control plane and one controller, and runs for some 15 minutes; a name runs one part;
//! `-- --write` stores the tables in `benches/RESULTS.md`, where it replaces its own section only. The machine must be
//! idle otherwise: API server, controller and receiver share its cores, in every row.
//!
//! Map: [`world`] is the cluster, the controller and its tokens, [`receiver`] the endpoints, [`post`] the bare client,
//! [`neighbour`] the part about namespaces. [`apply`] is the one about new tokens, on a control plane of its own: [`history`] is
//! what the controller has written, which [`plain`] writes again, and [`sides`] compares them by what [`apiserver`] says.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

#[path = "../support/apiserver.rs"]
mod apiserver;
mod apply;
#[path = "../support/args.rs"]
mod args;
#[path = "../support/history.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod history;
mod neighbour;
#[path = "../support/plain.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod plain;
mod post;
#[path = "../support/process.rs"]
mod process;
mod receiver;
#[path = "../support/report.rs"]
mod report;
#[path = "../support/sides.rs"]
mod sides;
#[path = "../support/world.rs"]
#[allow(dead_code, reason = "each benchmark does other things to it")]
mod world;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use self::args::Common;
use self::receiver::{Behaviour, Receiver};
use self::report::Report;
use self::world::{Revocation, World};

/// Measures the controller.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// How many tokens are revoked at once
    #[arg(long, default_value_t = 10_000)]
    tokens: usize,
    /// How many tokens rotate beside a new one
    #[arg(long, default_value_t = 1_500)]
    rotating: usize,
    /// How many tokens the part `apply` creates
    #[arg(long, default_value_t = 10_000)]
    applied: usize,
    /// Run these only [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Rounds of deliveries, each with the bare client's; medians count
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    #[command(flatten)]
    common: Common,
}

/// A part of the benchmark.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Deliveries, and the baseline: a bare client
    Deliveries,
    /// A new token beside a namespace whose tokens rotate without end
    Neighbour,
    /// A mass revocation with and without webhooks
    Revocations,
    /// From many new tokens until all are ready, and the baseline: a plain client that makes the same requests
    Apply,
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// The processes of the benchmark that are this executable too.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Post { address: SocketAddr, bodies: PathBuf, connections: usize },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new()?;
    match args.role {
        Some(Role::Post { address, ref bodies, connections }) => {
            runtime.block_on(post::main(address, bodies, connections))
        }
        None => runtime.block_on(measure(&args)),
    }
}

async fn measure(args: &Args) -> anyhow::Result<()> {
    let how =
        "`cargo bench --bench controller`. API server, controller, receivers and load share the machine.";
    let mut report = Report::new("Controller", how);
    if [Part::Deliveries, Part::Neighbour, Part::Revocations].iter().any(|part| args.wants(*part)) {
        with_one_world(args, &mut report).await?;
    }
    if args.wants(Part::Apply) {
        apply::measure(&args.common.tokenward, args.applied, &mut report).await?;
    }
    if args.common.write {
        report.store()?;
    }
    Ok(())
}

/// The parts that share a control plane and a controller.
async fn with_one_world(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let world = World::start(&args.common.tokenward, &[]).await?;
    if args.wants(Part::Deliveries) {
        deliveries(&world, args, report).await?;
    }
    if args.wants(Part::Neighbour) {
        neighbour::measure(&world, args.rotating, report).await?;
    }
    if args.wants(Part::Revocations) {
        revocations(&world, args, report).await?;
    }
    Ok(())
}

/// The same mass revocation with three webhooks, one healthy, one that hangs, one that fails half of the time; and
/// without any, before and after that, since the API server stores more each time.
async fn revocations(world: &World, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let before = revocation_without(world, args, "before").await?;

    let behaviours =
        [("healthy", Behaviour::Accepts), ("hanging", Behaviour::Hangs), ("half", Behaviour::FailsHalf)];
    world.namespace("with").await?;
    let mut receivers = Vec::new();
    for (name, behaviour) in behaviours {
        // While the tokens are created, everything is accepted: only the revocation is measured.
        let receiver = Receiver::open().await?;
        world.webhook("with", name, &receiver.url(), json!(["token.*"])).await?;
        receivers.push((name, behaviour, receiver));
    }
    world.create("with", args.tokens).await?;
    for (_, _, receiver) in &receivers {
        receiver.until(args.tokens, "token.created").await?;
    }
    world.settled("with").await?;
    for (_, behaviour, receiver) in &receivers {
        receiver.behave(*behaviour);
        receiver.forget();
    }
    let with = world.revoke("with", args.tokens).await?;
    let healthy = &receivers[0].2;
    let accepted = healthy.until(args.tokens, "token.revoked").await?;
    let last = accepted.duration_since(with.start);
    // Delivery to the failing endpoint goes on for minutes; the benchmark does not wait for it.
    let after = world.counts().await?;
    let (memory, terms) = (world.memory()?, world.terms()?);
    for (name, ..) in &receivers {
        world.delete_webhook("with", name).await?;
    }
    world.settled("with").await?;
    let afterwards = revocation_without(world, args, "after").await?;

    report.section(
        "A mass revocation",
        &format!(
            "All {} tokens of a namespace are revoked at once, and the controller enforces it: without a TokenWebhook, with three that want each event (one healthy, one that hangs, one that answers 500 half of the time), and without one again.",
            args.tokens
        ),
    );
    let each = |cpu: Duration| format!("{:.2}", cpu.as_secs_f64() * 1e3 / args.tokens as f64);
    let row = |what: &str, revocation: &Revocation| {
        vec![
            what.to_owned(),
            format!("{:.1} s", revocation.patched.as_secs_f64()),
            format!("{:.1} s", revocation.enforced.as_secs_f64()),
            format!("{:.2}", revocation.writes() as f64 / args.tokens as f64),
            each(revocation.after.controller_cpu - revocation.before.controller_cpu),
            each(revocation.after.control_plane_cpu - revocation.before.control_plane_cpu),
        ]
    };
    report.table(
        &[
            "revocation of all",
            "patched in",
            "enforced after",
            "until then, each: ApiToken status writes",
            "controller's CPU ms",
            "control plane's CPU ms",
        ],
        &[row("no webhook", &before), row("three webhooks", &with), row("no webhook again", &afterwards)],
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
        "The healthy endpoint had the last of {} events {:.1} s after the first patch. Until then {:.2} statuses of ApiTokens were written for each token, and {} of TokenWebhooks in all. The controller's memory was at most {:.0} MiB. It has taken the lease {terms} times: more than once says that the API server did not keep up with its renewals.",
        args.tokens,
        last.as_secs_f64(),
        (after.statuses - with.before.statuses) as f64 / args.tokens as f64,
        after.hooks - with.before.hooks,
        memory
    ));
    ensure!(
        receivers[0].2.seen("token.revoked").accepted == args.tokens,
        "the healthy endpoint misses events"
    );
    Ok(())
}

async fn revocation_without(world: &World, args: &Args, namespace: &str) -> anyhow::Result<Revocation> {
    world.namespace(namespace).await?;
    world.create(namespace, args.tokens).await?;
    world.revoke(namespace, args.tokens).await
}

/// Paused events go out at once, right after a bare client has posted the same bodies over as many
/// connections. Every round has TokenWebhooks of its own, for which the same tokens' events have waited; the first one
/// only collects the bodies.
async fn deliveries(world: &World, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let namespace = "rates";
    world.namespace(namespace).await?;
    let mut rounds = Vec::new();
    for round in 0..=args.rounds {
        let (mut names, receiver) = (Vec::new(), Receiver::open().await?);
        for hook in 0..WEBHOOKS {
            let name = format!("round-{round}-{hook}");
            world.webhook(namespace, &name, &receiver.url(), json!(["token.created"])).await?;
            world.suspend(namespace, &name, true).await?;
            names.push(name);
        }
        rounds.push((names, receiver));
    }
    let tokens = args.tokens.min(TOKENS_PER_ROUND);
    world.create(namespace, tokens).await?;
    let events = tokens * WEBHOOKS;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / events as f64;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("controller-bench");
    std::fs::create_dir_all(&folder)?;
    let bodies = folder.join("bodies");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for (round, (names, receiver)) in rounds.into_iter().enumerate() {
        for name in &names {
            world.pending(namespace, name, tokens).await?;
        }
        world.quiet().await?;
        if round > 0 {
            receiver.gather(WEBHOOKS * CONNECTIONS);
            let cpu = each(post::run(receiver.address, &bodies, WEBHOOKS * CONNECTIONS)?);
            receiver.until_requests(events).await?;
            bare.push((receiver.rate(), cpu));
        }
        receiver.gather(WEBHOOKS * CONNECTIONS);
        let before = world.cpu()?;
        for name in &names {
            world.suspend(namespace, name, false).await?;
        }
        receiver.until_requests(events).await?;
        if let Some((bare_rate, bare_cpu)) = bare.last() {
            let (rate, cpu) = (receiver.rate(), each(world.cpu()? - before));
            eprintln!(
                "round {round}: {rate:.0} events a second (bare: {bare_rate:.0}), {cpu:.1} us of CPU each (bare: {bare_cpu:.1})"
            );
            ours.push((rate, cpu));
        }
        receiver.write_bodies(&bodies)?;
    }
    world.settled(namespace).await?;
    report.section(
        "Deliveries",
        &format!(
            "One event of each of {tokens} tokens waits for each of {WEBHOOKS} TokenWebhooks, which are suspended; {events} events go out when they no longer are. Right before, a bare client posts the same bodies to the same endpoint over as many connections, unsigned. The endpoint answers nobody until all connections have a request under way: from then to the last arrival; and the sender's CPU time, its beginning included. Medians of {} rounds.",
            args.rounds
        ),
    );
    let median = |of: &[(f64, f64)]| {
        let (rates, cpu): (Vec<_>, Vec<_>) = of.iter().copied().unzip();
        (report::median(rates), report::median(cpu))
    };
    let ratio = report::median(ours.iter().zip(&bare).map(|(ours, bare)| ours.0 / bare.0).collect());
    let (ours, bare) = (median(&ours), median(&bare));
    let row = |who: &str, (rate, cpu): (f64, f64), ratio: f64| {
        vec![who.to_owned(), format!("{rate:.0}"), format!("{ratio:.2}"), format!("{cpu:.1}")]
    };
    report.table(
        &["client", "events a second", "to bare, in the same round", "CPU µs/event"],
        &[row("tokenward, signed", ours, ratio), row("bare hyper", bare, 1.0)],
    );
    Ok(())
}

/// How many tokens have an event in each round. A round starts when the receipts of the last one are written.
const TOKENS_PER_ROUND: usize = 4_000;
/// How many TokenWebhooks deliver at once: enough that a round takes long enough to measure.
const WEBHOOKS: usize = 4;
/// The bare client's connections: as many as events of an endpoint are in flight at once.
const CONNECTIONS: usize = 16;

/// How long each wait of the benchmark may take.
const TIMEOUT: Duration = Duration::from_secs(600);
