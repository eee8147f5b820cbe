//! The open load: requests are sent at a fixed rate whether or not earlier ones were answered, as by many independent
//! clients. Latency counts from when a request was due, so a server that stalls can't hide it by slowing the load.
//!
//! wrk has no rate limit. This is one thread on the second core that never sleeps.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::server::{Server, output};
use super::tokens;

const CONNECTIONS: usize = 64;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Loads a server from a process on the second core; returns the median, 99 and 99.9 of 100 in microseconds.
pub fn run(server: &Server, tokens: &Path, rate: f64, time: Duration) -> anyhow::Result<[f64; 3]> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["load", &server.address.to_string(), server.path]).arg(tokens);
    command.args([rate.to_string(), time.as_secs().to_string()]);
    let text = output(&command)?;
    let latency: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    latency.try_into().map_err(|_| anyhow::anyhow!("the load printed {text}"))
}

/// The load itself, in its own process: prints what [`run`] returns.
pub fn main(address: SocketAddr, path: &str, tokens: &Path, rate: f64, time: Duration) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(tokens)?;
    let requests: Vec<String> = text
        .lines()
        .map(|token| format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n"))
        .collect();
    let mut load = Load::connect(address)?;
    let (mut latencies, refused) = load.run(&requests, rate, time)?;
    let expected = latencies.len() / tokens::BAD_EVERY as usize;
    ensure!(
        refused.abs_diff(expected) <= CONNECTIONS,
        "{refused} of {} requests were denied, not {expected}",
        latencies.len()
    );
    latencies.sort_unstable();
    for share in [0.5, 0.99, 0.999] {
        let at = (latencies.len() as f64 * share) as usize;
        let latency = latencies.get(at.min(latencies.len() - 1)).context("no request was answered")?;
        println!("{}", latency.as_secs_f64() * 1e6);
    }
    Ok(())
}

struct Load {
    poll: Poll,
    connections: Vec<Connection>,
    /// The connections without a request in flight.
    idle: Vec<usize>,
}

struct Connection {
    stream: TcpStream,
    /// When its request was due.
    due: Instant,
    /// The part of the response that has arrived.
    answer: Vec<u8>,
}

impl Load {
    fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::new();
        for i in 0..CONNECTIONS {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            poll.registry().register(&mut stream, Token(i), Interest::READABLE)?;
            connections.push(Connection { stream, due: Instant::now(), answer: Vec::new() });
        }
        Ok(Self { poll, connections, idle: (0..CONNECTIONS).collect() })
    }

    /// Returns the latencies, and how many requests were denied.
    fn run(
        &mut self,
        requests: &[String],
        rate: f64,
        time: Duration,
    ) -> anyhow::Result<(Vec<Duration>, usize)> {
        let total = (rate * time.as_secs_f64()) as usize;
        let (mut sent, mut refused, mut latencies) = (0, 0, Vec::with_capacity(total));
        let mut events = Events::with_capacity(CONNECTIONS);
        let start = Instant::now();
        while latencies.len() < total {
            ensure!(
                start.elapsed() < time * 3,
                "the server does not keep up with {rate:.0} requests a second"
            );
            // Send all that is due, as far as there are idle connections; the rest is sent late, and counts as late.
            while sent < total {
                let due = start + Duration::from_secs_f64(sent as f64 / rate);
                if due > Instant::now() {
                    break;
                }
                let Some(connection) = self.idle.pop() else { break };
                self.connections[connection].send(&requests[sent % requests.len()], due)?;
                sent += 1;
            }
            self.poll.poll(&mut events, Some(Duration::ZERO))?;
            for event in &events {
                let Token(i) = event.token();
                let connection = &mut self.connections[i];
                if let Some(status) = connection.receive()? {
                    latencies.push(connection.due.elapsed());
                    refused += usize::from(status == 401);
                    ensure!(matches!(status, 200..=299 | 401), "unexpected status {status}");
                    self.idle.push(i);
                }
            }
        }
        Ok((latencies, refused))
    }
}

impl Connection {
    fn send(&mut self, request: &str, due: Instant) -> anyhow::Result<()> {
        self.due = due;
        self.answer.clear();
        // The kernel's buffer always has room for one small request on an idle connection.
        self.stream.write_all(request.as_bytes()).context("a request could not be sent")
    }

    /// Reads what has arrived; returns the status once the response is complete.
    fn receive(&mut self) -> anyhow::Result<Option<u16>> {
        let mut space = [0; 2048];
        loop {
            match self.stream.read(&mut space) {
                Ok(0) => bail!("the server has closed a connection"),
                Ok(read) => self.answer.extend_from_slice(&space[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if let Some(status) = status(&self.answer)? {
                return Ok(Some(status));
            }
        }
    }
}

/// The status of a response, if it is complete: the head, and a body of `content-length` bytes.
fn status(answer: &[u8]) -> anyhow::Result<Option<u16>> {
    let Some(head) = answer.windows(HEAD_END.len()).position(|bytes| bytes == HEAD_END) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&answer[..head]).context("a head that is no text")?;
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>())
    });
    if answer.len() < head + HEAD_END.len() + length.transpose()?.unwrap_or(0) {
        return Ok(None);
    }
    let status = text.split(' ').nth(1).context("no status")?;
    Ok(Some(status.parse()?))
}
