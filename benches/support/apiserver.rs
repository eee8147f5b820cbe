//! What the API server says of itself: the requests that it has answered, and its heap.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use http::Request;
use kube::Client;

use super::TIMEOUT;

/// How often it is looked whether the API server is still written to.
const INTERVAL: Duration = Duration::from_secs(2);

/// The answered requests for single objects, by verb and resource, such as `PUT apitokens/status`, and by the code if that is an
/// error. Those of leases, which are renewed by the clock, do not count.
#[derive(Clone, Default, PartialEq)]
pub struct Requests(BTreeMap<String, u64>);

impl Requests {
    /// Those since the API server has started.
    pub async fn so_far(client: &Client) -> anyhow::Result<Self> {
        let text = client.request_text(Request::get("/metrics").body(Vec::new())?).await?;
        let mut requests = BTreeMap::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let (labels, count) = line.split_once("} ").context("a metric without labels")?;
            if let Some(name) = name(labels) {
                *requests.entry(name).or_default() += count.parse::<f64>()? as u64;
            }
        }
        Ok(Self(requests))
    }

    /// Those that have come since.
    pub fn since(&self, before: &Self) -> Self {
        let new = self.0.iter().map(|(name, count)| (name.clone(), count - before.of(name)));
        Self(new.filter(|(_, count)| *count > 0).collect())
    }

    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

/// The name of a metric with these labels. `None`: it does not count.
fn name(labels: &str) -> Option<String> {
    let label = |name: &str| {
        let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
        value.map(|value| value.trim_end_matches('"'))
    };
    let (verb, resource) = (label("verb")?, label("resource")?);
    if !["GET", "POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb)
        || resource.is_empty()
        || resource == "leases"
    {
        return None;
    }
    let part = label("subresource").filter(|part| !part.is_empty());
    let part = part.map(|part| format!("/{part}")).unwrap_or_default();
    let error = label("code").filter(|code| !code.starts_with('2'));
    let error = error.map(|code| format!(", {code}")).unwrap_or_default();
    Some(format!("{verb} {resource}{part}{error}"))
}

/// Waits until the API server gets no more requests than those of leases. Returns those so far.
pub async fn settled(client: &Client) -> anyhow::Result<Requests> {
    let mut before = Requests::so_far(client).await?;
    for _ in 0..TIMEOUT.as_secs() / INTERVAL.as_secs() {
        tokio::time::sleep(INTERVAL).await;
        let now = Requests::so_far(client).await?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    bail!("the requests to the API server never end")
}

/// The bytes of the API server's heap, after it was collected. The API server must have `--profiling`.
pub async fn heap(client: &Client) -> anyhow::Result<f64> {
    // What pools keep survives one collection.
    for _ in 0..2 {
        let collect = Request::get("/debug/pprof/heap?gc=1&debug=1").body(Vec::new())?;
        client.request_text(collect).await.context("the API server's heap")?;
    }
    let text = client.request_text(Request::get("/metrics").body(Vec::new())?).await?;
    let value = text.lines().find_map(|line| line.strip_prefix("go_memstats_heap_inuse_bytes "));
    Ok(value.context("no heap")?.parse()?)
}
