//! The gRPC server, on a socket of its own: HTTP/2, with prior knowledge in the clear, or in TLS.
//!
//! It also serves `grpc.health.v1.Health` for Envoy's health checks and the kubelet's gRPC probes; the status is the
//! readiness of the process. What hostile peers can occupy is bounded, also by all of them together: connections, streams,
//! header lists and messages by size and number, everything else by time. All together have at most 1.2 MiB for each of
//! `MAX_CONNECTIONS`, some 300 MiB: a window, and `MAX_STREAMS` header lists and messages.

mod message;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{AuthorizationServer, SERVICE_NAME};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Timeouts;
use super::connections::Connections;
use super::progress::{Progress, Signal};
use crate::endpoints::gateway::ext_authz::{Allowed, ExtAuthz, Peer};
use crate::metrics::ConnectionMetrics;
use tokenward_runtime::listen::accept;
use tokenward_runtime::telemetry::probes::Readiness;
use tokenward_runtime::turns::Turns;

/// The path of the one call that is a check.
const CHECK_PATH: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Open connections; a further one displaces the one that has made no call for longest, as over HTTP. An Envoy opens one
/// for each worker thread, so this is enough for dozens of gateways.
const MAX_CONNECTIONS: usize = 256;
/// Concurrent calls on a connection, each of which may make the verifier store a message. A check takes microseconds, so
/// this is thousands of calls a second; Envoy opens another connection if it needs more.
const MAX_STREAMS: u32 = 8;
/// For a call to arrive whole. Gateways are near, and send it at once.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(2);
/// The headers of a call, which are few: the client's headers are in the message.
const MAX_HEADER_LIST_BYTES: u32 = 8 * 1024;
/// Without the client's body. Envoy accepts up to 60 KiB of headers from a client by default, and sends the path twice.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// What all connections together may make the verifier store.
#[cfg(test)]
pub(super) const MAX_BYTES: usize = MAX_CONNECTIONS * MAX_STREAMS as usize * MAX_MESSAGE_BYTES;
/// How much a client may send ahead on one stream, and on all streams of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 128 * 1024;
/// Streams that were opened and reset before they were handled ("rapid reset", CVE-2023-44487). The default of h2.
const MAX_PENDING_RESETS: usize = 20;
/// When a silent peer is sent a ping, and how long its acknowledgement may take.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// The gRPC server's services and limits.
pub struct Server {
    endpoint: ExtAuthz,
    readiness: Readiness,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    connections: Connections,
}

impl Server {
    /// A server of this endpoint, and of a health service that reports the readiness, with TLS if there is an acceptor.
    pub(crate) fn new(
        endpoint: ExtAuthz,
        readiness: Readiness,
        tls: Option<TlsAcceptor>,
        timeouts: Timeouts,
        metrics: ConnectionMetrics,
    ) -> Self {
        let connections = Connections::new(MAX_CONNECTIONS, metrics);
        Self { endpoint, readiness, tls, timeouts, connections }
    }

    /// Serves until `stop`, then finishes the calls in flight.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let Self { endpoint, readiness, tls, timeouts, connections } = self;
        let (reporter, health) = tonic_health::server::health_reporter();
        report(&reporter, false).await;
        let failed = endpoint.failed_calls();
        let endpoint = AuthorizationServer::new(endpoint).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let routes =
            Routes::new(endpoint).add_service(health.max_decoding_message_size(MAX_MESSAGE_BYTES)).prepare();
        let shared = Shared { routes, failed, tls, timeouts, connections, stop };
        tokio::select! {
            () = shared.accept(listener) => {}
            () = follow(readiness, reporter) => {}
        }
    }
}

/// Sets the health status at each change of the readiness.
async fn follow(readiness: Readiness, reporter: HealthReporter) {
    loop {
        readiness.becomes(true).await;
        report(&reporter, true).await;
        readiness.becomes(false).await;
        report(&reporter, false).await;
    }
}

/// Sets the status of the server, whose name is empty, and of the endpoint's service.
async fn report(reporter: &HealthReporter, ready: bool) {
    let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, status).await;
    }
}

/// The part of the server that all connections share.
#[derive(Clone)]
struct Shared {
    routes: Routes,
    /// Counts the checks whose message could not be read.
    failed: Counter,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    connections: Connections,
    stop: CancellationToken,
}

impl Shared {
    async fn accept(&self, listener: TcpListener) {
        let turns = Turns::of_this_runtime();
        while let Some((stream, peer)) = self.stop.run_until_cancelled(accept(&listener)).await {
            let (slot, progress) = self.connections.open(peer, Instant::now());
            let (shared, turns) = (self.clone(), turns.clone());
            tokio::spawn(async move {
                progress.register_task().await;
                let served = shared.connection(stream, peer, progress.clone());
                progress.run_until(Signal::Close, turns.take(|| progress.is_strangers(), served)).await;
                drop(slot);
            });
            self.connections.room().await;
        }
        drop(listener);
        self.connections.finish().await;
    }

    async fn connection(&self, stream: TcpStream, peer: IpAddr, progress: Arc<Progress>) {
        let Some(acceptor) = &self.tls else { return self.http2(stream, peer, progress).await };
        let handshake = tokio::time::timeout(self.timeouts.header_read, acceptor.accept(stream)).await;
        if let Ok(Ok(stream)) = handshake {
            self.http2(stream, peer, progress).await;
        }
    }

    /// Serves a connection until the client closes it, no call has come for too long, or the process stops. A client that
    /// has made calls gets a GOAWAY in the last two cases, so that it sends no call on a connection that is closing.
    async fn http2(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: IpAddr,
        progress: Arc<Progress>,
    ) {
        let (routes, failed) = (TowerToHyperService::new(self.routes.clone()), self.failed.clone());
        let counted = Arc::clone(&progress);
        let service = service_fn(move |mut request: Request<Incoming>| {
            // As several calls may be in progress at once, only their number counts.
            counted.begin();
            counted.end();
            request.extensions_mut().insert(Peer(peer));
            let is_check = request.uri().path() == CHECK_PATH;
            let (routes, failed, progress) = (routes.clone(), failed.clone(), counted.clone());
            async move {
                let response = in_time(call(&routes, request, is_check)).await;
                if is_check {
                    // An error is in the head of the response; the status of a success follows its message.
                    if response.headers().contains_key(Status::GRPC_STATUS) {
                        failed.inc();
                    }
                    progress.set_known(response.extensions().get::<Allowed>().is_some());
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut served = std::pin::pin!(protocol().serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            // An error here is the client's: it broke the connection or the protocol.
            _ = served.as_mut() => return,
            () = calls_stopped(&progress, self.timeouts) => {}
            () = self.stop.cancelled() => {}
        }
        if progress.steps() > 0 {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(self.timeouts.shutdown_grace, served).await;
        }
    }
}

fn protocol() -> http2::Builder<TokioExecutor> {
    let mut protocol = http2::Builder::new(TokioExecutor::new());
    protocol
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    protocol
}

/// The response to a call. The message of a check is read first, without the client's body.
async fn call(
    routes: &TowerToHyperService<Routes>,
    request: Request<Incoming>,
    is_check: bool,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = if is_check {
        match message::read(body, MAX_MESSAGE_BYTES).await {
            Ok(message) => Body::new(message),
            Err(status) => return status.into_http(),
        }
    } else {
        Body::new(body)
    };
    let Ok(response) = routes.call(Request::from_parts(head, body)).await;
    response
}

/// The response, or `DEADLINE_EXCEEDED` if the message is not complete in time. Once it is, no call takes long.
async fn in_time(response: impl Future<Output = Response<Body>>) -> Response<Body> {
    tokio::time::timeout(MESSAGE_TIMEOUT, response)
        .await
        .unwrap_or_else(|_| Status::deadline_exceeded("the request was not complete in time").into_http())
}

/// Returns when no call has come for too long. The first must come within the time for a request head, because a client
/// connects to make a call; each further one within the time for which a connection may be idle.
async fn calls_stopped(progress: &Progress, timeouts: Timeouts) {
    let (mut before, mut wait) = (0, timeouts.header_read);
    loop {
        tokio::time::sleep(wait).await;
        let now = progress.steps();
        if now == before {
            return;
        }
        (before, wait) = (now, timeouts.keep_alive);
    }
}

#[cfg(test)]
mod tests;
