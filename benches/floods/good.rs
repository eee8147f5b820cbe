//! The good load: a thousand checks a second over a few connections, as gateways hold them, at a fixed rate whether or not
//! earlier ones were answered. Latency counts from when a check was due.
//!
//! Threads that block and sleep: exact to some 50 µs, which all rows have in common, and the core is free in between.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

const RATE: u32 = 1_000;
const CONNECTIONS: u32 = 20;
/// As long as a gateway waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a failure was printed.
static REPORTED: AtomicBool = AtomicBool::new(false);

/// How checks are asked for.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    Http,
    Grpc,
}

/// What became of the checks.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Outcome {
    pub checks: usize,
    /// Answered otherwise than with yes, or not in time.
    pub failed: usize,
    /// Sent again, as gateways do, since the server had closed the idle connection.
    pub retried: usize,
    /// In microseconds.
    pub p50: f64,
    pub p99: f64,
    /// The median of the p99 of each second: what others do on the machine for a moment does not count.
    pub p99_of_a_second: f64,
}

/// The load itself, in its own process: prints the outcome.
pub fn main(protocol: Protocol, address: SocketAddr, tokens: &Path, time: Duration) -> anyhow::Result<()> {
    let tokens = std::fs::read_to_string(tokens)?;
    let tokens: Vec<&str> = tokens.lines().collect();
    ensure!(!tokens.is_empty(), "no tokens");
    let start = Instant::now() + Duration::from_millis(100);
    let interval = Duration::from_secs(1) * CONNECTIONS / RATE;
    let (mut outcome, mut latencies) = (Outcome::default(), Vec::new());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|nth| {
                let (tokens, offset) = (&tokens, interval * nth / CONNECTIONS);
                scope.spawn(move || ask_all(protocol, address, tokens, start + offset, interval, time))
            })
            .collect();
        for thread in threads {
            let (of_thread, times) =
                thread.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            outcome.failed += of_thread.failed;
            outcome.retried += of_thread.retried;
            latencies.extend(times);
        }
        anyhow::Ok(())
    })?;
    outcome.checks = latencies.len();
    let second =
        |nth| latencies.iter().filter(move |(at, _): &&(u64, f64)| *at == nth).map(|(_, time)| *time);
    let of_seconds = (0..time.as_secs()).map(|nth| quantile(second(nth).collect(), 0.99)).collect();
    let all: Vec<_> = latencies.iter().map(|(_, time)| *time).collect();
    (outcome.p50, outcome.p99) = (quantile(all.clone(), 0.5), quantile(all, 0.99));
    outcome.p99_of_a_second = quantile(of_seconds, 0.5);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// Returns the latencies too, each with the second in which it was due.
fn ask_all(
    protocol: Protocol,
    address: SocketAddr,
    tokens: &[&str],
    start: Instant,
    interval: Duration,
    time: Duration,
) -> anyhow::Result<(Outcome, Vec<(u64, f64)>)> {
    let mut gateway = Gateway::new(protocol, address)?;
    let (mut outcome, mut latencies) = (Outcome::default(), Vec::new());
    let mut due = start;
    for token in tokens.iter().cycle() {
        if due >= start + time {
            break;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let reused = gateway.is_connected();
        let mut answer = gateway.ask(token);
        if answer.is_err() && reused {
            outcome.retried += 1;
            answer = gateway.ask(token);
        }
        if let Err(error) = answer {
            outcome.failed += 1;
            // Once for each load: the others fail for the same reason.
            if !REPORTED.swap(true, Ordering::Relaxed) {
                eprintln!("a good check failed: {error:#}");
            }
        }
        latencies.push(((due - start).as_secs(), due.elapsed().as_secs_f64() * 1e6));
        due += interval;
    }
    Ok((outcome, latencies))
}

/// A connection that is opened when it is needed, and kept.
enum Gateway {
    Http { address: SocketAddr, stream: Option<BufReader<TcpStream>> },
    Grpc { runtime: Runtime, channel: Channel },
}

impl Gateway {
    fn new(protocol: Protocol, address: SocketAddr) -> anyhow::Result<Self> {
        if protocol == Protocol::Http {
            return Ok(Self::Http { address, stream: None });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.timeout(PATIENCE);
        let channel = {
            let _guard = runtime.enter();
            endpoint.connect_lazy()
        };
        Ok(Self::Grpc { runtime, channel })
    }

    /// Whether a failure may be that of a connection from before.
    fn is_connected(&self) -> bool {
        match self {
            Self::Http { stream, .. } => stream.is_some(),
            Self::Grpc { .. } => true,
        }
    }

    /// Sends a check, which must be answered with yes.
    fn ask(&mut self, token: &str) -> anyhow::Result<()> {
        match self {
            Self::Grpc { runtime, channel } => runtime.block_on(ask_grpc(channel.clone(), token)),
            Self::Http { address, stream } => {
                let mut open = match stream.take() {
                    Some(open) => open,
                    None => connect(*address)?,
                };
                let request =
                    format!("GET /auth HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {token}\r\n\r\n");
                open.get_mut().write_all(request.as_bytes())?;
                let status = read_response(&mut open)?;
                *stream = Some(open);
                ensure!(status == 200, "HTTP {status}");
                Ok(())
            }
        }
    }
}

fn connect(address: SocketAddr) -> anyhow::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Reads a response with a `content-length`; returns its status.
fn read_response(stream: &mut BufReader<TcpStream>) -> anyhow::Result<u16> {
    let mut line = String::new();
    ensure!(stream.read_line(&mut line)? > 0, "the connection was closed");
    let status = line.split(' ').nth(1).context("no status")?.parse()?;
    let mut length = 0;
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the connection was closed");
        match line.trim_end().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?
            }
            Some(_) => {}
            None => break,
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    Ok(status)
}

/// A good check over a connection of its own.
pub async fn ask_once(protocol: Protocol, address: SocketAddr, token: &str) -> anyhow::Result<()> {
    let url = format!("http://{address}");
    match protocol {
        Protocol::Http => {
            let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
            let answer = client.get(format!("{url}/auth")).bearer_auth(token).send().await?;
            ensure!(answer.status().is_success(), "{}", answer.status());
            Ok(())
        }
        Protocol::Grpc => {
            let endpoint = Endpoint::from_shared(url)?.connect_timeout(PATIENCE).timeout(PATIENCE);
            ask_grpc(endpoint.connect().await?, token).await
        }
    }
}

async fn ask_grpc(channel: Channel, token: &str) -> anyhow::Result<()> {
    match AuthorizationClient::new(channel).check(check(token)).await?.into_inner().http_response {
        Some(HttpResponse::OkResponse(_)) => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// A check of a token, as Envoy sends it.
pub fn check(token: &str) -> CheckRequest {
    let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
    let http = Some(HttpRequest { headers, ..Default::default() });
    let request = Some(Request { http, ..Default::default() });
    CheckRequest { attributes: Some(AttributeContext { request, ..Default::default() }) }
}
