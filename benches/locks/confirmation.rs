//! How soon a revocation is confirmed: from its patch until `Enforced=True` is seen, beside a plain client that patches an
//! ApiToken in the same way and writes the same statuses itself, one right after the other.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use devcluster::process::Guarded;
use futures::StreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tokenward_core::crd::{ApiToken, ApiTokenStatus, ConditionType, find_condition};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::report::{Report, quantile, time};
use super::server::free_address;
use super::world::World;
use super::{Bench, TIMEOUT, confirmer, verifier};

const VERIFIERS: usize = 3;
const SIMULATED: usize = 100;
/// After this time without a revocation, the controller asks verifiers rarely again.
const APART: Duration = Duration::from_secs(4);
/// Of those that are that far apart there are so many times fewer.
const FEWER: usize = 10;
/// The namespace that the controller watches.
const OURS: &str = "confirmed";
/// The namespace of the plain client, where no controller interferes.
const BARE: &str = "bare";

/// A change of an ApiToken that the benchmark's watch has seen.
type Change = (Instant, ApiToken);

/// What one run has seen.
#[derive(Default)]
struct Seen {
    /// In microseconds.
    ours: Vec<f64>,
    bare: Vec<f64>,
    /// Writes of statuses.
    writes: usize,
}

pub async fn measure(bench: &Bench, revocations: usize, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a control plane");
    let addresses = (0..VERIFIERS).map(|_| free_address()).collect::<anyhow::Result<Vec<_>>>()?;
    let flags = |addresses: &[SocketAddr]| {
        let addresses = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",");
        ["--watch-namespaces", OURS, "--verifiers", &addresses].map(str::to_owned)
    };
    let mut world = World::start(&bench.tokenward, &flags(&addresses).each_ref().map(String::as_str)).await?;
    let verifiers = start_verifiers(&world, &addresses, bench).await?;
    for namespace in [OURS, BARE] {
        world.namespace(namespace).await?;
    }
    let apart = revocations.div_ceil(FEWER);
    // In each run one is a warm-up.
    let tokens = 2 * (revocations + 1) + 2 * (apart + 1);
    eprintln!("creating {tokens} tokens");
    world.create(OURS, tokens).await?;
    let mut names = (0..tokens).map(|n| format!("t{n}"));
    let known = Arc::new(AtomicU64::new(0));
    let mut changes = watch(&world, &known);

    let real =
        run(&world, VERIFIERS, names.by_ref().take(revocations + 1), Duration::ZERO, &mut changes).await?;
    let real_apart = run(&world, VERIFIERS, names.by_ref().take(apart + 1), APART, &mut changes).await?;
    drop(verifiers);
    let simulated = confirmer::start(SIMULATED, world.client().clone(), &known).await?;
    world.restart_with(&flags(&simulated)).await?;
    let many =
        run(&world, SIMULATED, names.by_ref().take(revocations + 1), Duration::ZERO, &mut changes).await?;
    let many_apart = run(&world, SIMULATED, names.by_ref().take(apart + 1), APART, &mut changes).await?;

    report.section(
        "A confirmation",
        &format!(
            "Revocations one after the other on a real API server, from the patch `revoked: true` until a watch shows \
             `Enforced=True`, which needs the word of every verifier that the controller was told of: {VERIFIERS} verifiers, \
             then {SIMULATED} simulated ones, which only say how far a watch has come. {revocations} follow one another at \
             once, and {apart} after {} s each. After each a plain client patches an ApiToken of another namespace, and \
             writes the same statuses to it without waiting for anybody.",
            APART.as_secs()
        ),
    );
    let row = |who: String, times: &[f64], writes: usize| {
        let at = |share| time(quantile(times.to_vec(), share));
        let writes = format!("{:.2}", writes as f64 / times.len() as f64);
        vec![who, times.len().to_string(), at(0.5), at(0.99), at(1.0 - 1e-9), writes]
    };
    let (three, hundred) = (format!("{VERIFIERS} verifiers"), format!("{SIMULATED} simulated verifiers"));
    let seconds = APART.as_secs();
    let runs = [
        (three.clone(), &real),
        (format!("{three}, {seconds} s apart"), &real_apart),
        (hundred.clone(), &many),
        (format!("{hundred}, {seconds} s apart"), &many_apart),
    ];
    let rows: Vec<_> = runs
        .into_iter()
        .flat_map(|(who, seen)| {
            let bare = row("plain client beside".to_owned(), &seen.bare, seen.writes);
            [row(format!("tokenward, {who}"), &seen.ours, seen.writes), bare]
        })
        .collect();
    report.table(&["", "revocations", "p50", "p99", "longest", "status writes each"], &rows);
    Ok(())
}

async fn start_verifiers(
    world: &World,
    telemetry: &[SocketAddr],
    bench: &Bench,
) -> anyhow::Result<Vec<Guarded>> {
    let rights = world.cluster().kubeconfig_for_service_account("tokenward", "tokenward-verifier")?;
    let mut verifiers = Vec::new();
    for address in telemetry {
        let (mut command, _) = verifier::command(&bench.tokenward, &rights, *address)?;
        let log = std::fs::File::create(bench.folder.join(format!("verifier-{}.log", address.port())))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        verifiers.push(Guarded::spawn(command).context("a verifier")?);
        let url = format!("http://{address}/readyz");
        let ready = async || Ok(reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()));
        world.until("a ready verifier", ready).await?;
    }
    Ok(verifiers)
}

/// Follows all ApiTokens. `known` is up to where.
fn watch(world: &World, known: &Arc<AtomicU64>) -> UnboundedReceiver<Change> {
    let (sender, receiver) = unbounded_channel();
    let mut events =
        watcher(Api::<ApiToken>::all(world.client().clone()), watcher::Config::default()).boxed();
    let known = known.clone();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            let Ok(Event::Apply(token) | Event::InitApply(token)) = event else { continue };
            let version = token.metadata.resource_version.as_deref().and_then(|text| text.parse().ok());
            known.fetch_max(version.unwrap_or_default(), Ordering::Relaxed);
            if sender.send((Instant::now(), token)).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Revokes tokens, each followed by one of the plain client and a pause. The first is a warm-up.
async fn run(
    world: &World,
    verifiers: usize,
    names: impl Iterator<Item = String>,
    pause: Duration,
    changes: &mut UnboundedReceiver<Change>,
) -> anyhow::Result<Seen> {
    world.quiet().await?;
    let (mut seen, mut printed) = (Seen::default(), Instant::now());
    for (n, name) in names.enumerate() {
        let (took, before, statuses) = ours(world, &name, verifiers, changes).await?;
        let bare = bare(world, &name, before, &statuses, changes).await?;
        if n > 0 {
            seen.ours.push(took);
            seen.bare.push(bare);
            seen.writes += statuses.len();
        }
        if printed.elapsed() > Duration::from_secs(5) {
            eprintln!("{verifiers} verifiers: {n} tokens are revoked");
            printed = Instant::now();
        }
        tokio::time::sleep(pause).await;
    }
    Ok(seen)
}

/// Revokes a token. Returns how long it took until it was confirmed, its status before, and those that were written.
async fn ours(
    world: &World,
    name: &str,
    verifiers: usize,
    changes: &mut UnboundedReceiver<Change>,
) -> anyhow::Result<(f64, ApiTokenStatus, Vec<ApiTokenStatus>)> {
    while changes.try_recv().is_ok() {}
    let api: Api<ApiToken> = Api::namespaced(world.client().clone(), OURS);
    let before = api.get(name).await?.status.context("a token without a status")?;
    let start = Instant::now();
    api.patch(name, &PatchParams::default(), &revoked()).await?;
    let (mut last, mut statuses) = (before.clone(), Vec::new());
    loop {
        let (at, token) = next(changes, OURS, name).await?;
        let status = token.status.context("a token without a status")?;
        if status != last {
            statuses.push(status.clone());
            last = status;
        }
        if is_enforced(&last) {
            let said = last.revocation.as_ref().and_then(|revocation| revocation.verifiers);
            let counts = said.map(|count| (count.asked, count.confirmed)).unwrap_or_default();
            let all = i64::try_from(verifiers)?;
            ensure!(
                counts == (all, all),
                "{OURS}/{name} is Enforced=True, but {} of {} verifiers have confirmed, and there are {all}",
                counts.1,
                counts.0
            );
            return Ok((at.duration_since(start).as_secs_f64() * 1e6, before, statuses));
        }
    }
}

/// Patches a token that is like it, and writes the statuses.
async fn bare(
    world: &World,
    name: &str,
    before: ApiTokenStatus,
    statuses: &[ApiTokenStatus],
    changes: &mut UnboundedReceiver<Change>,
) -> anyhow::Result<f64> {
    let api: Api<ApiToken> = Api::namespaced(world.client().clone(), BARE);
    let params = PostParams::default();
    let object = ApiToken::new(name, serde_json::from_value(json!({"scopes": ["a:b"]}))?);
    let mut token = api.create(&params, &object).await?;
    token.status = Some(before);
    api.replace_status(name, &params, &token).await?;
    while changes.try_recv().is_ok() {}
    let start = Instant::now();
    let mut token = api.patch(name, &PatchParams::default(), &revoked()).await?;
    for status in statuses {
        token.status = Some(status.clone());
        token = api.replace_status(name, &params, &token).await?;
    }
    loop {
        let (at, token) = next(changes, BARE, name).await?;
        if token.status.as_ref().is_some_and(is_enforced) {
            return Ok(at.duration_since(start).as_secs_f64() * 1e6);
        }
    }
}

fn revoked() -> Patch<serde_json::Value> {
    Patch::Merge(json!({"spec": {"revoked": true}}))
}

/// The next change of a token.
async fn next(
    changes: &mut UnboundedReceiver<Change>,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Change> {
    let wanted = async {
        while let Some((at, token)) = changes.recv().await {
            let metadata = &token.metadata;
            if metadata.namespace.as_deref() == Some(namespace) && metadata.name.as_deref() == Some(name) {
                return Ok((at, token));
            }
        }
        anyhow::bail!("the watch has ended")
    };
    let change = tokio::time::timeout(TIMEOUT, wanted).await;
    change.with_context(|| format!("{namespace}/{name} is not confirmed within {TIMEOUT:?}"))?
}

fn is_enforced(status: &ApiTokenStatus) -> bool {
    find_condition(&status.conditions, ConditionType::Enforced)
        .is_some_and(|condition| condition.status == "True")
}
