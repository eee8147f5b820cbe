//! How soon a revocation takes effect: from the API server's acknowledgement until every replica returns 401. The
//! baseline is how soon a client that does nothing but watch sees the same change.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use devcluster::process::Guarded;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use tokenward_core::crd::ApiToken;

use super::report::{Report, quantile, time};
use super::server::{Server, free_address};
use super::{Bench, cluster, tokens, verifier};

const REVOCATIONS: u64 = 500;
const REPLICAS: usize = 3;
/// Those that are not revoked are the load meanwhile.
const TOKENS: u64 = 1_500;
const TIMEOUT: Duration = Duration::from_secs(30);

/// The interval of checks of the token that is being revoked.
const CHECK_INTERVAL: Duration = Duration::from_micros(250);

/// A replica or a watch has seen that a token is revoked.
struct Seen {
    token: u64,
    at: Instant,
    watch: bool,
}

/// Measures revocations one after the other.
pub fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("starting a control plane with {TOKENS} tokens");
    let cluster = cluster::start(Vec::new())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let client = runtime.block_on(async {
        let client = cluster::client(&cluster).await?;
        cluster::fill(&client, TOKENS).await?;
        anyhow::Ok(client)
    })?;
    let kubeconfig = cluster.kubeconfig_for_service_account("tokenward", "tokenward-verifier")?;
    let replicas =
        (0..REPLICAS).map(|i| replica(i, &kubeconfig, bench)).collect::<anyhow::Result<Vec<_>>>()?;
    let _load = replicas.iter().map(|replica| load(replica, bench)).collect::<anyhow::Result<Vec<_>>>()?;

    let (sender, seen) = channel();
    // The token that is being revoked, which each replica is asked to check repeatedly.
    let asked = AtomicU64::new(u64::MAX);
    let (watches, verifiers) = std::thread::scope(|scope| {
        for replica in &replicas {
            let (asked, sender) = (&asked, sender.clone());
            scope.spawn(move || ask(replica, asked, &sender));
        }
        let measured = runtime.block_on(async {
            for _ in 0..REPLICAS {
                let events = watch(&client).await?;
                tokio::spawn(report_events(events, sender.clone()));
            }
            revoke_all(&client, &asked, &seen).await
        });
        asked.store(u64::MAX - 1, Ordering::Release);
        measured
    })?;
    let row = |name: &str, delays: Vec<f64>| {
        let at = |share: f64| quantile(delays.clone(), share);
        (vec![name.to_owned(), time(at(0.5)), time(at(0.99)), time(at(1.0 - 1e-9))], at(0.99))
    };
    let (watch_row, watch_p99) = row("bare watch", watches);
    let (verifier_row, verifier_p99) = row("verifier", verifiers);
    report.section(
        "A revocation",
        &format!(
            "{REVOCATIONS} revocations on a real API server, {REPLICAS} verifiers under load and {REPLICAS} bare watches, \
             all on the same cores. From the API server's acknowledgement until a check is answered with 401, and until \
             the watch shows the change."
        ),
    );
    report.table(&["", "p50", "p99", "longest"], &[watch_row, verifier_row]);
    report.note(&format!("p99 of a verifier to that of a bare watch: {:.2}.", verifier_p99 / watch_p99));
    Ok(())
}

fn replica(i: usize, kubeconfig: &std::path::Path, bench: &Bench) -> anyhow::Result<Server> {
    let (command, listen) = verifier::command(&bench.tokenward, kubeconfig, free_address()?)?;
    let log = bench.folder.join(format!("replica-{i}.log"));
    Server::start_anywhere(format!("replica {i}"), listen, "/auth", TOKENS, command, &log)
}

/// A moderate load: 8 connections that pause for 5 ms after each response.
fn load(replica: &Server, bench: &Bench) -> anyhow::Result<Guarded> {
    let script = bench.folder.join("resting.lua");
    let lines = std::fs::read_to_string(bench.folder.join("load.lua"))?;
    std::fs::write(&script, format!("{lines}\nfunction delay() return 5 end\n"))?;
    let mut wrk = bench.wrk.command(&script, &replica.url());
    wrk.args(["-t1", "-c8", "-d600s", "--"]).arg(bench.wrk.tokens(TOKENS)?);
    wrk.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    Guarded::spawn(wrk).context("wrk can't be run")
}

/// Sends checks of the current token to a replica until it is denied, then waits for the next token.
fn ask(replica: &Server, asked: &AtomicU64, seen: &Sender<Seen>) {
    let Ok(mut client) = replica.connect() else { return };
    let mut done = u64::MAX;
    loop {
        match asked.load(Ordering::Acquire) {
            token if token == u64::MAX - 1 => return,
            token if token == done || token == u64::MAX => std::thread::sleep(Duration::from_micros(50)),
            token => match client.ask(&tokens::good(token)) {
                Ok(401) => {
                    done = token;
                    if seen.send(Seen { token, at: Instant::now(), watch: false }).is_err() {
                        return;
                    }
                }
                // Without a pause, three replicas would leave the API server no CPU time.
                Ok(_) => std::thread::sleep(CHECK_INTERVAL),
                Err(_) => return,
            },
        }
    }
}

type Events = BoxStream<'static, Result<WatchEvent<DynamicObject>, kube::Error>>;

/// Opens a watch from now on.
async fn watch(client: &Client) -> anyhow::Result<Events> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("tokenward.dev", "v1alpha1", "ApiToken"));
    let tokens: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let now = tokens.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version;
    Ok(tokens.watch(&WatchParams::default(), &now.unwrap_or_default()).await?.boxed())
}

/// Reports each change, and does nothing else.
async fn report_events(mut events: Events, seen: Sender<Seen>) -> anyhow::Result<()> {
    while let Some(event) = events.try_next().await? {
        let at = Instant::now();
        if let WatchEvent::Modified(object) = event {
            let name = object.metadata.name.unwrap_or_default();
            let token = name.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
            seen.send(Seen { token, at, watch: true })?;
        }
    }
    Ok(())
}

/// Returns the delays of the watches and of the verifiers, in microseconds.
async fn revoke_all(
    client: &Client,
    asked: &AtomicU64,
    seen: &Receiver<Seen>,
) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let (mut watches, mut verifiers) = (Vec::new(), Vec::new());
    for token in 0..REVOCATIONS {
        asked.store(token, Ordering::Release);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let tokens: Api<ApiToken> = Api::namespaced(client.clone(), &tokens::namespace(token));
        let patch = Patch::Merge(serde_json::json!({"spec": {"revoked": true}}));
        tokens.patch(&tokens::name(token), &PatchParams::default(), &patch).await?;
        let acknowledged = Instant::now();
        let mut missing: HashMap<bool, usize> = [(true, REPLICAS), (false, REPLICAS)].into();
        while missing.values().any(|left| *left > 0) {
            let report = seen.recv_timeout(TIMEOUT).context("a revocation was not seen")?;
            if report.token != token {
                continue;
            }
            // It may be seen before the acknowledgement arrives.
            let delay = report.at.saturating_duration_since(acknowledged).as_secs_f64() * 1e6;
            if report.watch {
                watches.push(delay)
            } else {
                verifiers.push(delay)
            }
            *missing.entry(report.watch).or_default() -= 1;
        }
        if token % 100 == 99 {
            eprintln!("{} of {REVOCATIONS} tokens are revoked", token + 1);
        }
    }
    Ok((watches, verifiers))
}
