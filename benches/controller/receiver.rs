//! A receiver that counts events.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::TIMEOUT;

#[derive(Clone, Copy)]
pub enum Behaviour {
    Accepts,
    Hangs,
    FailsHalf,
    /// Responds to none until so many requests are in flight, then accepts everything: a start line, so that all
    /// senders are measured at once.
    Gathers(usize),
}

struct Arrival {
    at: Instant,
    id: String,
    body: Bytes,
    accepted: bool,
}

struct State {
    behaviour: Behaviour,
    arrivals: Vec<Arrival>,
    /// When all requests of the start line were in flight.
    gathered: Option<Instant>,
}

/// What has arrived of one type of event.
pub struct Seen {
    pub requests: usize,
    pub accepted: usize,
    pub duplicates: usize,
}

#[derive(Clone)]
pub struct Receiver {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    gathering: Arc<Notify>,
}

impl Receiver {
    /// Starts one that accepts everything.
    pub async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let state = State { behaviour: Behaviour::Accepts, arrivals: Vec::new(), gathered: None };
        let address = listener.local_addr()?;
        let receiver = Self { address, state: Arc::new(Mutex::new(state)), gathering: Arc::default() };
        let serving = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let receiver = serving.clone();
                let service = service_fn(move |request| receiver.clone().receive(request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        Ok(receiver)
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        self.with(|state| state.behaviour = behaviour);
    }

    pub fn forget(&self) {
        self.with(|state| state.arrivals.clear());
    }

    /// Sets a start line for so many requests.
    pub fn gather(&self, all: usize) {
        self.forget();
        self.behave(Behaviour::Gathers(all));
    }

    /// Waits until so many requests have come.
    pub async fn until_requests(&self, count: usize) -> anyhow::Result<()> {
        self.wait(count, "requests", || self.requests()).await
    }

    /// Waits until so many events of a type were accepted; returns when the last of them was.
    pub async fn until(&self, count: usize, type_: &str) -> anyhow::Result<Instant> {
        let start = Instant::now();
        // Bodies are scanned only when enough have come, as scanning delays further ones.
        let accepted = || match self.requests() {
            enough if enough >= count => self.seen(type_).accepted,
            fewer => fewer,
        };
        self.wait(count, type_, accepted).await?;
        let last = self.with(|state| state.arrivals.iter().map(|arrival| arrival.at).max());
        Ok(last.unwrap_or(start))
    }

    async fn wait(&self, count: usize, what: &str, so_far: impl Fn() -> usize) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut printed = 0;
        loop {
            let come = so_far();
            if come >= count {
                return Ok(());
            }
            ensure!(start.elapsed() <= TIMEOUT, "{come} of {count} {what} within {TIMEOUT:?}");
            if start.elapsed().as_secs() / 10 > printed {
                printed = start.elapsed().as_secs() / 10;
                eprintln!("{come} of {count} {what}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn requests(&self) -> usize {
        self.with(|state| state.arrivals.len())
    }

    /// Requests a second since the start line.
    pub fn rate(&self) -> f64 {
        self.with(|state| {
            let start = state.gathered?;
            let later = || state.arrivals.iter().map(|arrival| arrival.at).filter(|at| *at > start);
            Some(later().count() as f64 / (later().max()? - start).as_secs_f64())
        })
        .unwrap_or(f64::NAN)
    }

    pub fn seen(&self, type_: &str) -> Seen {
        let wanted = format!("\"type\":\"{type_}\"");
        self.with(|state| {
            let of_type = |arrival: &&Arrival| contains(&arrival.body, wanted.as_bytes());
            let requests = state.arrivals.iter().filter(of_type).count();
            let accepted: Vec<&str> =
                state.arrivals.iter().filter(|a| a.accepted).filter(of_type).map(|a| &*a.id).collect();
            let distinct = accepted.iter().collect::<HashSet<_>>().len();
            Seen { requests, accepted: distinct, duplicates: accepted.len() - distinct }
        })
    }

    /// Writes the received bodies to a file, a line each.
    pub fn write_bodies(&self, path: &Path) -> anyhow::Result<()> {
        let lines: Vec<Bytes> = self.with(|state| state.arrivals.iter().map(|a| a.body.clone()).collect());
        Ok(std::fs::write(path, lines.join(&b'\n'))?)
    }

    async fn receive(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let id = request.headers().get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
        let id = id.to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let all_gathered = self.gathering.notified();
        let (status, waits) = self.with(|state| {
            let nth = state.arrivals.len() + 1;
            let status = match state.behaviour {
                Behaviour::Hangs => None,
                Behaviour::FailsHalf if nth % 2 == 1 => Some(StatusCode::INTERNAL_SERVER_ERROR),
                _ => Some(StatusCode::NO_CONTENT),
            };
            let (at, accepted) = (Instant::now(), status.is_some_and(|status| status.is_success()));
            state.arrivals.push(Arrival { at, id, body, accepted });
            let Behaviour::Gathers(all) = state.behaviour else { return (status, false) };
            if nth >= all {
                state.behaviour = Behaviour::Accepts;
                state.gathered = Some(at);
                self.gathering.notify_waiters();
            }
            (status, nth < all)
        });
        if waits {
            all_gathered.await;
        }
        let Some(status) = status else { return std::future::pending().await };
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = status;
        Ok(answer)
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a text contains some bytes.
fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|window| window == wanted)
}
