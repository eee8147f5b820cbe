//! The service behind a gateway. It responds with the request that it has received, as JSON.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Ends when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// A request as it arrived.
#[derive(Debug, Deserialize, Serialize)]
pub struct Seen {
    pub method: String,
    /// With the query, not normalized.
    pub path: String,
    /// Names and values; names are in lower case.
    headers: Vec<(String, String)>,
    /// The size of the body in bytes.
    pub body: usize,
}

impl Upstream {
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests = Arc::<AtomicU64>::default();
        let counted = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counted = counted.clone();
                let service = service_fn(move |request| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    echo(request)
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, requests, task }
    }

    /// How many requests have arrived.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    /// The values of a header.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }

    /// Headers that a service could take for tokenward's: many read an underscore as a hyphen.
    pub fn identity(&self) -> Vec<(String, String)> {
        let alike = self.headers.iter().map(|(name, value)| (name.replace('_', "-"), value.clone()));
        alike.filter(|(name, _)| name.contains("tokenward")).collect()
    }
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes().len()).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes())));
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        headers: headers.collect(),
        body,
    };
    let answer = serde_json::to_vec(&seen).expect("JSON");
    Ok(Response::new(Full::new(Bytes::from(answer))))
}
