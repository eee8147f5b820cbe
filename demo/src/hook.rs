//! An endpoint on loopback, as a team would run one: it verifies each event by the key in the Secret, in the few lines
//! that the specification takes, and shows what it has verified.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::TIMEOUT;
use crate::show::unmet;

/// An event, as it came.
#[derive(Clone)]
pub struct Arrival {
    pub id: String,
    pub timestamp: String,
    pub signature: String,
    pub body: Bytes,
    pub at: Instant,
}

impl Arrival {
    /// What it says.
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether it was signed with the key: HMAC-SHA256 over `id.timestamp.body`.
    pub fn verifies(&self, key: &str) -> bool {
        let Some(Ok(key)) = key.strip_prefix("whsec_").map(|key| STANDARD.decode(key)) else { return false };
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return false };
        mac.update(format!("{}.{}.", self.id, self.timestamp).as_bytes());
        mac.update(&self.body);
        let mut signatures = self.signature.split(' ').filter_map(|signature| signature.strip_prefix("v1,"));
        signatures.any(|signature| {
            STANDARD.decode(signature).is_ok_and(|given| mac.clone().verify_slice(&given).is_ok())
        })
    }
}

/// The endpoint; it listens as long as this lives.
pub struct Endpoint {
    pub address: SocketAddr,
    arrived: watch::Receiver<Vec<Arrival>>,
    _server: JoinSet<()>,
}

impl Endpoint {
    pub async fn open() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?;
        let (sender, arrived) = watch::channel(Vec::new());
        let (sender, mut server) = (Arc::new(sender), JoinSet::new());
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request| receive(request, sender.clone()));
                let http = hyper::server::conn::http1::Builder::new();
                let connection = http.serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Ok(Self { address, arrived, _server: server })
    }

    /// Waits until an event of a type has arrived.
    pub async fn until(&self, type_: &str) -> anyhow::Result<Arrival> {
        let mut arrived = self.arrived.clone();
        let of_type = |arrivals: &Vec<Arrival>| arrivals.iter().find(|a| a.event()["type"] == type_).cloned();
        let wait = arrived.wait_for(|arrivals| of_type(arrivals).is_some());
        let found = timeout(TIMEOUT, wait).await.ok().and_then(Result::ok).and_then(|seen| of_type(&seen));
        found.ok_or_else(|| unmet("the endpoint", type_, format!("{} events", self.arrived.borrow().len())))
    }
}

async fn receive(
    request: Request<Incoming>,
    arrived: Arc<watch::Sender<Vec<Arrival>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let text = |headers: &HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let arrival = Arrival {
        id: text(&head.headers, "webhook-id"),
        timestamp: text(&head.headers, "webhook-timestamp"),
        signature: text(&head.headers, "webhook-signature"),
        body: body.collect().await.map(|body| body.to_bytes()).unwrap_or_default(),
        at: Instant::now(),
    };
    arrived.send_modify(|arrivals| arrivals.push(arrival));
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}
