//! `/livez`, `/readyz` and `/metrics`, on a port of their own that faces the cluster only.
//!
//! Readiness is a list of named parts. A part is not ready until it reports that it is, so none can be left out by mistake.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::ALLOW;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::listen::listen_on;
use crate::serve::{self, Limits, text};

/// The kubelet and a few Prometheus servers have a connection or two each. Unless a NetworkPolicy forbids it, every pod
/// can connect, too: they must neither fill the memory nor lock out the kubelet, which would restart the process.
const LIMITS: Limits =
    Limits { connections: 64, request: Duration::from_secs(5), shutdown: Duration::from_secs(5) };

/// The parts of the process, and which of them are ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<watch::Sender<BTreeMap<&'static str, bool>>>);

/// One part of the process, to report its readiness with.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Adds a part, which is not ready until [`Part::set`] says so.
    pub fn part(&self, name: &'static str) -> Part {
        self.set(name, false);
        Part { name, readiness: self.clone() }
    }

    /// The names of the parts that are not ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.borrow().iter().filter(|(_, ready)| !**ready).map(|(name, _)| *name).collect()
    }

    /// Waits until all parts are ready, or until one is not.
    pub async fn becomes(&self, ready: bool) {
        // An error would mean that the sender is gone, and `self` is the sender.
        let _ = self.0.subscribe().wait_for(|parts| parts.values().all(|part| *part) == ready).await;
    }

    fn set(&self, name: &'static str, ready: bool) {
        self.0.send_if_modified(|parts| parts.insert(name, ready) != Some(ready));
    }
}

impl Part {
    /// Reports whether this part is ready.
    pub fn set(&self, ready: bool) {
        self.readiness.set(self.name, ready);
    }
}

/// What a process answers on this port beside the probes, to a GET of a URI. `None`: it does not know the path.
pub type Further = Box<dyn Fn(&Uri) -> Option<Response<Full<Bytes>>> + Send + Sync>;

/// Binds to the address, and returns the server, which runs until `stop`.
pub fn serve(
    listen: SocketAddr,
    readiness: Readiness,
    registry: Registry,
    further: Option<Further>,
    stop: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()>> {
    let shared = Shared { readiness, registry, further };
    Ok(run(listen_on("--telemetry-listen", listen)?, shared, stop))
}

struct Shared {
    readiness: Readiness,
    registry: Registry,
    further: Option<Further>,
}

async fn run(listener: TcpListener, shared: Shared, stop: CancellationToken) {
    let shared = Arc::new(shared);
    let service = move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move { respond(request.method(), request.uri(), &shared) }
    };
    serve::serve(listener, None, service, LIMITS, stop).await;
}

fn respond(method: &Method, uri: &Uri, shared: &Shared) -> Response<Full<Bytes>> {
    let Shared { readiness, registry, further } = shared;
    if !matches!(*method, Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET,HEAD"));
        return response;
    }
    match uri.path() {
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => match &*readiness.missing() {
            [] => text(StatusCode::OK, "ok\n"),
            missing => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
            }
        },
        "/metrics" => metrics(registry),
        _ => further.as_ref().and_then(|further| further(uri)).unwrap_or_else(|| {
            text(StatusCode::NOT_FOUND, "not found; there are /livez, /readyz and /metrics\n")
        }),
    }
}

fn metrics(registry: &Registry) -> Response<Full<Bytes>> {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, registry) {
        Ok(()) => serve::response(StatusCode::OK, OPENMETRICS, body),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be encoded\n"),
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;
    use crate::listen::listen;

    /// Status and body of the response to a request.
    fn ask(method: Method, path: &str, readiness: &Readiness) -> (u16, String) {
        let shared = Shared {
            readiness: readiness.clone(),
            registry: Registry::default(),
            further: Some(Box::new(further)),
        };
        let response = respond(&method, &path.parse().expect("a URI"), &shared);
        let status = response.status().as_u16();
        let body =
            response.into_body().collect().now_or_never().expect("no wait").expect("a body").to_bytes();
        (status, String::from_utf8(body.into()).expect("text"))
    }

    fn further(uri: &Uri) -> Option<Response<Full<Bytes>>> {
        (uri.path() == "/further")
            .then(|| text(StatusCode::ACCEPTED, uri.query().unwrap_or_default().to_owned()))
    }

    #[test]
    fn ready_only_while_every_part_is() {
        let readiness = Readiness::default();
        let (tokens, pepper) = (readiness.part("tokens"), readiness.part("pepper"));
        let missing = (503, "waiting for: pepper, tokens\n".to_owned());
        assert_eq!(ask(Method::GET, "/readyz", &readiness), missing);
        tokens.set(true);
        pepper.set(true);
        assert_eq!(ask(Method::GET, "/readyz", &readiness).0, 200);
        pepper.set(false);
        assert_eq!(readiness.missing(), ["pepper"]);
    }

    #[test]
    fn every_path_has_its_response() {
        for (method, path, status) in [
            (Method::GET, "/livez", 200),
            (Method::HEAD, "/livez", 200),
            (Method::GET, "/metrics", 200),
            (Method::POST, "/metrics", 405),
            (Method::GET, "/further?a=b", 202),
            (Method::POST, "/further", 405),
            (Method::GET, "/", 404),
        ] {
            assert_eq!(ask(method, path, &Readiness::default()).0, status, "{path}");
        }
    }

    /// Ten times as many connections as there is room for, each with a long head that is never finished: the
    /// kubelet's probe succeeds all the same, and all but the newest are closed.
    #[tokio::test]
    async fn unfinished_requests_lock_nobody_out() {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Shared { readiness: Readiness::default(), registry: Registry::default(), further: None };
        tokio::spawn(run(listener, shared, CancellationToken::new()));
        let head = format!("GET /metrics HTTP/1.1\r\nx: {}", "x".repeat(8 * 1024));
        let mut open = Vec::new();
        for _ in 0..10 * LIMITS.connections {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            // The server may have closed it already.
            let _ = stream.write_all(head.as_bytes()).await;
            open.push(stream);
        }
        let mut probe = TcpStream::connect(address).await.expect("a connection");
        probe
            .write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await
            .expect("a request");
        let mut response = String::new();
        probe.read_to_string(&mut response).await.expect("a response");
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        for stream in &mut open[..9 * LIMITS.connections] {
            // An end or an error: in both cases the server has closed it.
            let _ = timeout(Duration::from_secs(2), stream.read(&mut [0])).await.expect("closed");
        }
    }

    #[tokio::test]
    async fn waiting_ends_when_readiness_changes() {
        let readiness = Readiness::default();
        let (tokens, pepper) = (readiness.part("tokens"), readiness.part("pepper"));
        readiness.becomes(false).await;
        let waiting = readiness.becomes(true);
        tokio::pin!(waiting);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        tokens.set(true);
        assert_eq!(waiting.as_mut().now_or_never(), None);
        pepper.set(true);
        waiting.await;
        assert_eq!(readiness.becomes(false).now_or_never(), None);
    }
}
