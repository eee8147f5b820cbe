//! tokenward and a plain client side by side: the same tokens, on the same API server, one after the other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::apiserver::{Requests, settled};
use super::process;
use super::report::Report;
use super::world::World;

/// What has been used before one of both begins.
pub struct Before {
    requests: Requests,
    control_plane: Duration,
    controller: Option<Duration>,
    own: Duration,
    start: Instant,
}

/// What one of both took.
pub struct Side {
    who: &'static str,
    tokens: f64,
    took: Duration,
    requests: Requests,
    /// CPU time of the API server and etcd.
    control_plane: Duration,
    /// That of the controller, if there was one.
    controller: Option<Duration>,
}

impl Before {
    /// Waits until everything is quiet, and begins.
    pub async fn begin(world: &World) -> anyhow::Result<Self> {
        let requests = settled(world.client()).await?;
        Ok(Self {
            requests,
            control_plane: world.api_cpu()?,
            controller: world.is_running().then(|| world.cpu()).transpose()?,
            own: process::cpu(std::process::id())?,
            start: Instant::now(),
        })
    }

    /// Waits until nothing is written any more, and counts.
    pub async fn end(
        self,
        who: &'static str,
        tokens: usize,
        last: Instant,
        world: &World,
    ) -> anyhow::Result<Side> {
        let took = last.duration_since(self.start);
        let own = process::cpu(std::process::id())? - self.own;
        let requests = settled(world.client()).await?.since(&self.requests);
        let control_plane = world.api_cpu()? - self.control_plane;
        let controller = match self.controller {
            Some(before) => Some(world.cpu()? - before),
            None => None,
        };
        let side = Side { who, tokens: tokens as f64, took, requests, control_plane, controller };
        eprintln!(
            "{who}: {:.1} s, {:.0} tokens a second; the benchmark itself has used {:.1} s of CPU",
            took.as_secs_f64(),
            side.rate(),
            own.as_secs_f64()
        );
        Ok(side)
    }
}

impl Side {
    fn rate(&self) -> f64 {
        self.tokens / self.took.as_secs_f64()
    }

    fn row(&self, ratio: f64) -> Vec<String> {
        let each = |cpu: Duration| format!("{:.2}", cpu.as_secs_f64() * 1e3 / self.tokens);
        vec![
            self.who.to_owned(),
            format!("{:.1}", self.took.as_secs_f64()),
            format!("{:.0}", self.rate()),
            format!("{ratio:.2}"),
            format!("{:.2}", self.requests.total() as f64 / self.tokens),
            each(self.control_plane),
            self.controller.map_or_else(|| "-".to_owned(), each),
        ]
    }
}

/// Tables of both: how fast, and which requests, to show that they are the same.
pub fn table(ours: &Side, plain: &Side, report: &mut Report) {
    report.table(
        &[
            "client",
            "seconds",
            "tokens a second",
            "to plain",
            "each: requests",
            "API server's and etcd's CPU ms",
            "controller's CPU ms",
        ],
        &[ours.row(ours.rate() / plain.rate()), plain.row(1.0)],
    );
    let names: BTreeSet<_> = ours.requests.names().chain(plain.requests.names()).collect();
    let rows: Vec<_> = names
        .into_iter()
        .map(|name| {
            let each = |side: &Side| format!("{:.3}", side.requests.of(name) as f64 / side.tokens);
            vec![name.to_owned(), each(ours), each(plain)]
        })
        .collect();
    report.table(&["requests a token", ours.who, plain.who], &rows);
}
