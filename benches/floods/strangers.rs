//! What a stranger on the network does to each port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use devcluster::process::Guarded;
use tokio::task::JoinHandle;

use super::flood::{Done, Kind, Wire};
use super::good::{self, Outcome, Protocol};
use super::process;
use super::report::{Report, median, time};
use super::site::{self, Site};
use super::steal::Processors;

/// Floods come from another address than the good load, as in life: a full server closes connections of the address that
/// has the most.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// A flood is under way when the good load begins.
const LEAD: Duration = Duration::from_secs(2);
/// How many new tokens are waited for beside each flood, one after the other.
const NEW_TOKENS: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Check,
    Grpc,
    Telemetry,
    Admission,
}

impl Port {
    fn name(self) -> &'static str {
        match self {
            Self::Check => "checks",
            Self::Grpc => "gRPC",
            Self::Telemetry => "telemetry",
            Self::Admission => "admission",
        }
    }

    fn wire(self) -> Wire {
        match self {
            Self::Check | Self::Telemetry => Wire::Http,
            Self::Grpc => Wire::Grpc,
            Self::Admission => Wire::Tls,
        }
    }

    fn address(self, site: &Site) -> SocketAddr {
        match self {
            Self::Check => site.verifier.http,
            Self::Grpc => site.verifier.grpc,
            Self::Telemetry => site.verifier.telemetry,
            Self::Admission => site.admission,
        }
    }

    /// Whose memory it is, and whose probes.
    fn process(self, site: &Site) -> (u32, String) {
        match self {
            Self::Admission => (site.world.controller_pid(), site.world.telemetry().to_owned()),
            _ => (site.verifier.pid(), site.verifier.telemetry.to_string()),
        }
    }

    fn kinds(self) -> &'static [Kind] {
        use Kind::{Bodies, Connections, Forged, Heads, Idle, Junk, Resets, Slow};
        match self {
            Self::Check => &[Idle, Slow, Connections, Heads, Bodies, Junk, Forged],
            Self::Grpc => &[Idle, Slow, Connections, Heads, Bodies, Resets, Junk],
            Self::Telemetry | Self::Admission => &[Idle, Slow, Connections, Heads, Bodies],
        }
    }
}

/// What came of the good load, and of others, in one run.
pub struct Run {
    pub good: Outcome,
    pub newcomers: Newcomers,
    /// New tokens: after how many seconds they were active. `None`: not at all.
    pub new_tokens: Vec<Option<f64>>,
    pub probes_failed: usize,
}

impl Run {
    /// The new tokens' column.
    pub fn new_token(&self) -> String {
        let times: Vec<f64> = self.new_tokens.iter().flatten().copied().collect();
        let failed = and_failed(self.new_tokens.len() - times.len());
        format!("{:.2} s{failed}", median(times))
    }
}

/// What a cell says of failures beside its times.
fn and_failed(failed: usize) -> String {
    if failed > 0 { format!(", {failed} failed") } else { String::new() }
}

/// The good load for a time, with new tokens and probes beside it.
pub async fn run(site: &mut Site, protocol: Protocol, probes: &str, time: Duration) -> anyhow::Result<Run> {
    let good = tokio::spawn(site.good_load(protocol, time)?.run());
    let coming = tokio::spawn(newcomers(protocol, site.address(protocol), site.good_token()?, time));
    let probing = tokio::spawn(probe(format!("http://{probes}/readyz"), time));
    let mut new_tokens = Vec::new();
    while new_tokens.len() < NEW_TOKENS && !good.is_finished() {
        let active = site.new_token().await;
        if let Err(error) = &active {
            eprintln!("a new token: {error:#}");
        }
        new_tokens.push(active.ok());
    }
    Ok(Run { good: good.await??, newcomers: coming.await?, new_tokens, probes_failed: probing.await? })
}

/// Good checks that each come over a connection of their own, ten a second.
pub struct Newcomers {
    /// In microseconds.
    times: Vec<f64>,
    failed: usize,
}

impl Newcomers {
    /// The column of new connections: how long half of them took at most, and the longest.
    pub fn cell(&self) -> String {
        let longest = self.times.iter().copied().fold(0.0, f64::max);
        format!("{}, {}{}", time(median(self.times.clone())), time(longest), and_failed(self.failed))
    }
}

async fn newcomers(protocol: Protocol, address: SocketAddr, token: String, time: Duration) -> Newcomers {
    let (mut outcome, end) = (Newcomers { times: Vec::new(), failed: 0 }, Instant::now() + time);
    let mut due = tokio::time::interval(Duration::from_millis(100));
    while Instant::now() < end {
        due.tick().await;
        let begun = Instant::now();
        match good::ask_once(protocol, address, &token).await {
            Ok(()) => outcome.times.push(begun.elapsed().as_secs_f64() * 1e6),
            Err(error) => {
                outcome.failed += 1;
                if outcome.failed == 1 {
                    eprintln!("a good check over a new connection: {error:#}");
                }
            }
        }
    }
    outcome
}

/// Asks once a second, as kubelet does, over a connection of its own. Returns how often there was no answer within 3 s.
async fn probe(url: String, time: Duration) -> usize {
    let builder = reqwest::Client::builder().pool_max_idle_per_host(0).timeout(Duration::from_secs(3));
    let Ok(client) = builder.build() else { return usize::MAX };
    let mut failed = 0;
    for _ in 0..time.as_secs() {
        let answer = client.get(&url).send().await;
        failed += usize::from(!answer.is_ok_and(|answer| answer.status().is_success()));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    failed
}

/// What is done to which port, from which address.
#[derive(Clone, Copy)]
struct Flood {
    port: Port,
    kind: Kind,
    from: IpAddr,
}

impl Flood {
    fn start(self, site: &Site, time: Duration) -> anyhow::Result<JoinHandle<anyhow::Result<Done>>> {
        let (kind, wire) = (site::argument(self.kind), site::argument(self.port.wire()));
        let mut command = site::behind_all()?;
        command.args(["flood", &kind, &wire, &self.port.address(site).to_string()]);
        command.args([&self.from.to_string(), &(time + LEAD).as_secs().to_string(), &site.jwt]);
        Ok(tokio::task::spawn_blocking(move || Ok(serde_json::from_str(&site::output(command, &[])?)?)))
    }

    fn name(self) -> String {
        let own = if self.from == OWN { ", from the gateway's own address" } else { "" };
        format!("{}: {}{own}", self.port.name(), format!("{:?}", self.kind).to_lowercase())
    }
}

/// The good load beside a flood, and then its baseline: a row of the table.
async fn row(
    site: &mut Site,
    flood: Flood,
    time_of_each: Duration,
    quiet_cpu: Duration,
) -> anyhow::Result<Vec<String>> {
    let (pid, probes) = flood.port.process(site);
    let protocol = protocol(flood.port.wire());
    site::reset_peak(pid)?;
    let processors = Processors::now()?;
    let flooding = flood.start(site, time_of_each)?;
    tokio::time::sleep(LEAD).await;
    let before = process::cpu(site.verifier.pid())?;
    let begun = Instant::now();
    let run = run(site, protocol, &probes, time_of_each).await?;
    let cpu = (process::cpu(site.verifier.pid())? - before).saturating_sub(quiet_cpu);
    let percent = (cpu.as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0) as u32;
    let done = flooding.await??;
    let peak = site::peak(pid)?;
    let baseline = baseline(site, protocol, percent, time_of_each).await?.p99_of_a_second;
    let requests = done.requests as f64 / (time_of_each + LEAD).as_secs_f64();
    Ok(vec![
        flood.name(),
        format!("{}, {} at once", done.opened, flood.kind.connections()),
        if done.requests > 0 { format!("{requests:.0}") } else { "-".to_owned() },
        format!("{percent} %"),
        format!("{} of {}", run.good.failed, run.good.checks),
        run.good.retried.to_string(),
        time(baseline),
        time(run.good.p99_of_a_second),
        format!("{:.1}", run.good.p99_of_a_second / baseline),
        time(run.good.p99),
        run.newcomers.cell(),
        format!("{peak:.0} MiB"),
        run.new_token(),
        run.probes_failed.to_string(),
        format!("{:.1} %", processors.stolen_since()?),
    ])
}

/// The good load without a flood, beside what costs as much: on the verifier's core so many percent, on the other one what
/// is left.
async fn baseline(site: &Site, protocol: Protocol, percent: u32, time: Duration) -> anyhow::Result<Outcome> {
    let seconds = (time + LEAD).as_secs().to_string();
    let mut burning = Vec::new();
    for (mut command, percent) in [(site::beside_the_verifier()?, percent), (site::behind_all()?, 100)] {
        command.args(["burn", &percent.to_string(), &seconds]);
        burning.push(Guarded::spawn(command)?);
    }
    site.good_load(protocol, time)?.run().await
}

/// The good load is that of the port, if checks are asked for there.
fn protocol(wire: Wire) -> Protocol {
    if wire == Wire::Grpc { Protocol::Grpc } else { Protocol::Http }
}

pub async fn measure(
    site: &mut Site,
    seconds: u64,
    only: Option<Kind>,
    report: &mut Report,
) -> anyhow::Result<()> {
    let all = Duration::from_secs(seconds);
    let probes = site.verifier.telemetry.to_string();
    let before = process::cpu(site.verifier.pid())?;
    let quiet = run(site, Protocol::Http, &probes, all).await?;
    let quiet_cpu = process::cpu(site.verifier.pid())? - before;
    let quiet_grpc = run(site, Protocol::Grpc, &probes, all).await?;
    let mut rows = Vec::new();
    let ports = [Port::Check, Port::Grpc, Port::Telemetry, Port::Admission];
    let of_port =
        |port: Port| port.kinds().iter().map(move |kind| Flood { port, kind: *kind, from: STRANGER });
    let mut floods: Vec<_> = ports.into_iter().flat_map(of_port).collect();
    floods.extend([Kind::Idle, Kind::Connections].map(|kind| Flood { port: Port::Check, kind, from: OWN }));
    floods.retain(|flood| only.is_none_or(|only| only == flood.kind));
    for flood in floods {
        let row = row(site, flood, all, quiet_cpu).await?;
        eprintln!("{}", row.join(" | "));
        rows.push(row);
    }
    report.section(
        "A stranger",
        &format!(
            "Each flood for {seconds} s, from an address of its own, on the second core with what the others there leave; \
             beside it 1,000 good checks a second over 20 connections, at the same port if it answers checks, and new \
             tokens of a namespace that admission reviews. The verifier and the good load have the first core. p99 is that of a second, in \
             the median of the seconds, and then that of all checks. Beside these, ten good checks a second come over \
             connections of their own: how long half of them took at most, and the longest. The baseline comes right after: the same good load \
             without the flood, but with a process on the verifier's core that uses as much of it as the flood made the \
             verifier use, and touches nothing, and one on the other core in the place of the flood. Memory is the peak of \
             the process whose port it is; its limit is {:.0} MiB. Probes: one each second, of which so many failed. \
             Stolen: what the host took of the processors' time for other machines meanwhile.",
            site::LIMIT_MIB
        ),
    );
    report.table(
        &[
            "port: flood",
            "connections opened",
            "requests/s",
            "verifier's core",
            "good checks failed",
            "sent again",
            "p99 of the baseline",
            "p99",
            "ratio",
            "p99 of all",
            "new connection",
            "memory",
            "new token active",
            "probes failed",
            "stolen",
        ],
        &rows,
    );
    report.note(&format!(
        "Without a flood: p50 {}, p99 {} over HTTP, p50 {}, p99 {} over gRPC; over new connections {} and {}; {} good checks failed; a new token is active after {}.",
        time(quiet.good.p50), time(quiet.good.p99_of_a_second), time(quiet_grpc.good.p50), time(quiet_grpc.good.p99_of_a_second),
        quiet.newcomers.cell(), quiet_grpc.newcomers.cell(), quiet.good.failed + quiet_grpc.good.failed, quiet.new_token()
    ));
    Ok(())
}
