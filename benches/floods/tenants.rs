//! What a tenant does by the objects of its namespace.

use std::net::TcpListener;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use super::good::Protocol;
use super::report::{Report, time};
use super::site::{self, Site};
use super::strangers::{Run, run};

const LARGEST: usize = 500;
const ROTATING: usize = 1_500;
const DEAD: usize = 128;
/// Whose events nobody takes.
const EVENTFUL: usize = 40;

struct Measured {
    what: String,
    run: Run,
    controller: f64,
    verifier: f64,
}

pub async fn measure(site: &mut Site, seconds: u64, report: &mut Report) -> anyhow::Result<()> {
    let all = Duration::from_secs(seconds);
    let rows = [
        beside(site, "nothing", all).await?,
        dead_webhooks(site, all).await?,
        largest(site, all).await?,
        // Last, as nothing stops them.
        rotating(site, all).await?,
    ];
    let of_quiet = rows[0].run.good.p99_of_a_second;
    report.section("A tenant", &format!(
        "Each for {seconds} s, with 1,000 good checks a second beside it, and new tokens in another namespace. The control plane and the controller share the second core; the verifier and the good load have the first. Memory is the peak since the objects were made; the limit is {:.0} MiB. Controller and verifier are started anew with the largest ApiTokens, which they list.",
        site::LIMIT_MIB
    ));
    let table: Vec<_> = rows
        .iter()
        .map(|row| {
            let good = &row.run.good;
            vec![
                row.what.clone(),
                format!("{} of {}", good.failed, good.checks),
                time(good.p99_of_a_second),
                format!("{:.1}", good.p99_of_a_second / of_quiet),
                row.run.new_token(),
                format!("{:.0} MiB", row.controller),
                format!("{:.0} MiB", row.verifier),
            ]
        })
        .collect();
    report.table(
        &[
            "beside",
            "good checks failed",
            "p99",
            "ratio",
            "new token active",
            "controller's memory",
            "verifier's memory",
        ],
        &table,
    );
    Ok(())
}

async fn beside(site: &mut Site, what: &str, all: Duration) -> anyhow::Result<Measured> {
    let probes = site.world.telemetry().to_owned();
    let run = run(site, Protocol::Http, &probes, all).await?;
    let (controller, verifier) = (site::peak(site.world.controller_pid())?, site::peak(site.verifier.pid())?);
    let measured = Measured { what: what.to_owned(), run, controller, verifier };
    eprintln!("beside {what}: {:?}, new token {}", measured.run.good, measured.run.new_token());
    Ok(measured)
}

fn reset(site: &Site) -> anyhow::Result<()> {
    site::reset_peak(site.world.controller_pid())?;
    site::reset_peak(site.verifier.pid())
}

async fn rotating(site: &mut Site, all: Duration) -> anyhow::Result<Measured> {
    site.world.namespace("rotating").await?;
    reset(site)?;
    site.world.create_rotating("rotating", ROTATING).await?;
    beside(site, &format!("{ROTATING} tokens that rotate every 10 s, and the former"), all).await
}

/// Endpoints that take a connection, as far as the kernel does, and never answer.
async fn dead_webhooks(site: &mut Site, all: Duration) -> anyhow::Result<Measured> {
    let endpoint = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/", endpoint.local_addr()?);
    site.world.namespace("dead").await?;
    reset(site)?;
    let hooks = |n: usize| {
        json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "TokenWebhook",
            "metadata": {"name": format!("h{n}")}, "spec": {"url": url, "events": ["*"]},
        })
    };
    create(site, "dead", "tokenwebhooks", (0..DEAD).map(hooks).collect()).await?;
    site.world.create_rotating("dead", EVENTFUL).await?;
    let what =
        format!("{DEAD} TokenWebhooks that never answer, for {EVENTFUL} tokens that rotate every 10 s");
    let measured = beside(site, &what, all).await?;
    let hooks = site.world.cluster().kubectl();
    site::output(hooks, &["delete", "tokenwebhooks", "--all", "-n", "dead", "--wait=false"])?;
    site.world.delete_tokens("dead").await?;
    Ok(measured)
}

/// As large as the CRDs and the policies on sizes let them be. Revoked, since no Secret is what is measured.
async fn largest(site: &mut Site, all: Duration) -> anyhow::Result<Measured> {
    site.world.namespace("largest").await?;
    let label = |n: usize| (format!("label-{n:050}"), Value::from("x".repeat(60)));
    let labels: serde_json::Map<_, _> = (0..140).map(label).collect();
    let scopes: Vec<_> = (0..64).map(|n| format!("{n:0>120}:read")).collect();
    let object = |n: usize| {
        json!({
            "apiVersion": "tokenward.dev/v1alpha1", "kind": "ApiToken",
            "metadata": {"name": format!("t{n}"), "labels": labels, "annotations": {"a": "x".repeat(65_535)}},
            "spec": {"scopes": scopes, "revoked": true},
        })
    };
    create(site, "largest", "apitokens", (0..LARGEST).map(object).collect()).await?;
    site.world.restart().await?;
    site.verifier = site.another_verifier().await?;
    site.pin()?;
    // The controller that was killed has left its lease, which must run out first.
    site.new_token().await?;
    let measured = beside(site, &format!("{LARGEST} of the largest ApiTokens"), all).await?;
    Ok(measured)
}

async fn create(site: &Site, namespace: &str, kind: &str, objects: Vec<Value>) -> anyhow::Result<()> {
    let path = format!("/apis/tokenward.dev/v1alpha1/namespaces/{namespace}/{kind}");
    let created = objects.iter().map(|object| site.world.create_object(&path, object));
    stream::iter(created).buffer_unordered(16).try_collect().await
}
