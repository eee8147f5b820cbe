//! The gRPC endpoint, on a socket of its own: HTTP/2, by prior knowledge in the clear or in TLS.
//!
//! It also serves `grpc.health.v1.Health`, which follows the readiness of the process: Envoy's health
//! checks and the kubelet's gRPC probes go by it. What a hostile peer can hold is bounded by connection: streams,
//! header lists and messages by size and number, everything else by time.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{AuthorizationServer, SERVICE_NAME};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::{Timeouts, accept};
use crate::endpoints::gateway::ext_authz::{ExtAuthz, Peer};
use crate::metrics::ConnectionMetrics;
use tokenward_runtime::telemetry::probes::Readiness;

/// Connections at a time. A gateway has a few; whoever comes later waits for one that ends.
const MAX_CONNECTIONS: usize = 1_000;
/// Requests that a connection may have open. A gateway opens more connections if it needs more.
const MAX_STREAMS: u32 = 100;
/// The headers of a call, which are few. What a check is about travels in the message.
const MAX_HEADERS: u32 = 16 * 1024;
/// The largest message. Envoy takes up to 60 KiB of headers from a client by default, and sends the path twice.
const MAX_MESSAGE: usize = 128 * 1024;
/// What a client may send ahead on one stream, and on all streams of a connection.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Streams that were opened and reset before they were handled ("rapid reset", CVE-2023-44487).
const MAX_RESETS: usize = 20;
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// What is served, and within which bounds.
pub struct Server {
    endpoint: ExtAuthz,
    readiness: Readiness,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    metrics: ConnectionMetrics,
}

impl Server {
    /// Serves this endpoint and a health service that reports the readiness, with TLS if there is an acceptor.
    pub(crate) fn new(
        endpoint: ExtAuthz,
        readiness: Readiness,
        tls: Option<TlsAcceptor>,
        timeouts: Timeouts,
        metrics: ConnectionMetrics,
    ) -> Self {
        Self { endpoint, readiness, tls, timeouts, metrics }
    }

    /// Serves until `stop`, then finishes what is in flight.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let Self { endpoint, readiness, tls, timeouts, metrics } = self;
        let (reporter, health) = tonic_health::server::health_reporter();
        report(&reporter, false).await;
        let endpoint = AuthorizationServer::new(endpoint).max_decoding_message_size(MAX_MESSAGE);
        let routes =
            Routes::new(endpoint).add_service(health.max_decoding_message_size(MAX_MESSAGE)).prepare();
        let served = Served { routes, tls, timeouts, metrics, stop };
        tokio::select! {
            () = served.accept(listener) => {}
            () = follow(readiness, reporter) => {}
        }
    }
}

async fn follow(readiness: Readiness, reporter: HealthReporter) {
    loop {
        readiness.becomes(true).await;
        report(&reporter, true).await;
        readiness.becomes(false).await;
        report(&reporter, false).await;
    }
}

/// Reports the health of the server, under the empty name, and of the endpoint, under its own.
async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// What every connection shares.
#[derive(Clone)]
struct Served {
    routes: Routes,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    metrics: ConnectionMetrics,
    stop: CancellationToken,
}

impl Served {
    async fn accept(&self, listener: TcpListener) {
        let (places, connections) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), TaskTracker::new());
        while let Some(Ok(next)) = self.stop.run_until_cancelled(next(&listener, &places)).await {
            let (stream, peer, place) = next;
            let served = self.clone();
            connections.spawn(async move {
                served.metrics.open.inc();
                served.connection(stream, peer).await;
                served.metrics.open.dec();
                drop(place);
            });
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn connection(&self, stream: TcpStream, peer: IpAddr) {
        let Some(acceptor) = &self.tls else { return self.http2(stream, peer).await };
        let handshake = tokio::time::timeout(self.timeouts.header_read, acceptor.accept(stream)).await;
        if let Ok(Ok(stream)) = handshake {
            self.http2(stream, peer).await;
        }
    }

    /// Serves a connection to its end: the client's, one for lack of calls, or the end of the process. The last
    /// two are announced to whoever has made calls, so that none is sent into the closing.
    async fn http2(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, peer: IpAddr) {
        let (calls, timeouts) = (Arc::new(Calls::default()), self.timeouts);
        let (routes, counted) = (TowerToHyperService::new(self.routes.clone()), Arc::clone(&calls));
        let service = service_fn(move |mut request: Request<Incoming>| {
            counted.begin();
            request.extensions_mut().insert(Peer(peer));
            in_time(routes.call(request), timeouts)
        });
        let mut served = std::pin::pin!(protocol().serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // A connection that broke is its client's affair.
            _ = served.as_mut() => return,
            () = calls.cease(timeouts) => {}
            () = self.stop.cancelled() => {}
        }
        if calls.any() {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(timeouts.shutdown_grace, served).await;
        }
    }
}

/// The next connection, once there is a place for it.
async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Result<(TcpStream, IpAddr, OwnedSemaphorePermit), AcquireError> {
    let place = Arc::clone(places).acquire_owned().await?;
    let (stream, peer) = accept(listener).await;
    Ok((stream, peer, place))
}

fn protocol() -> http2::Builder<TokioExecutor> {
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    protocol
}

/// The answer, or that the message did not come: nothing here takes long once it is there.
async fn in_time(
    answer: impl Future<Output = Result<Response<Body>, Infallible>>,
    timeouts: Timeouts,
) -> Result<Response<Body>, Infallible> {
    tokio::time::timeout(timeouts.header_read, answer).await.unwrap_or_else(|_| {
        Ok(Status::deadline_exceeded("the request did not come to its end in time").into_http())
    })
}

/// The calls that came on a connection, counted.
#[derive(Debug, Default)]
struct Calls(AtomicUsize);

impl Calls {
    fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Returns when no call has come for too long: the first within the time that a head may take, as whoever
    /// connects has a call to make, each further one within the time that a connection may be idle.
    async fn cease(&self, timeouts: Timeouts) {
        let (mut before, mut wait) = (0, timeouts.header_read);
        loop {
            tokio::time::sleep(wait).await;
            let now = self.0.load(Ordering::Relaxed);
            if now == before {
                return;
            }
            (before, wait) = (now, timeouts.keep_alive);
        }
    }
}

#[cfg(test)]
mod tests;
