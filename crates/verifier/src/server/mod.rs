//! The HTTP server: HTTP/1.1 by hyper itself, in the clear or in TLS.
//!
//! One task for each connection, and nothing but hyper in between: a request costs a few relaxed writes to memory of its own
//! connection. Which connections stay open is decided in `connections.rs`.

pub(super) mod capacity;
mod connections;
pub mod grpc;
mod progress;
mod socket;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::poll_fn;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Buf, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use self::connections::Connections;
use self::progress::{Progress, Signal};
use self::socket::Socket;
use crate::endpoints::{self, Endpoints, HttpResponse};
use crate::metrics::ConnectionMetrics;
use tokenward_runtime::listen::accept;
use tokenward_runtime::turns::Turns;

/// The largest request head. A token has 78 characters; cookies of a forwarded request are what needs room.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// The most that is read ahead on one connection: a head, and the start of its body.
const MAX_BUFFER_BYTES: usize = 64 * 1024;
/// An unused body up to this size is read and discarded, so that the connection can be used again. A larger one costs more
/// than a new connection does.
const MAX_DRAINED_BYTES: u64 = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// The first byte of a TLS connection (RFC 8446, section 5.1: a record of type handshake).
const TLS_HANDSHAKE: u8 = 22;
/// The response to plain HTTP where TLS is expected.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Cache-Control: no-store\r\nConnection: close\r\n\r\nthis port speaks HTTPS; ask https:// instead\n";

/// Time limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// For a request head, from its first byte (or from the start of a new connection, including the TLS handshake)
    /// until it is complete. Enforced with a delay of up to half as much again.
    pub header_read: Duration,
    /// For an idle connection between two requests.
    pub keep_alive: Duration,
    /// For requests in flight after SIGTERM.
    pub shutdown_grace: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header_read: Duration::from_secs(10),
            keep_alive: Duration::from_secs(600),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// The HTTP server's endpoints and limits.
pub struct Server {
    endpoints: Arc<Endpoints>,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    connections: Connections,
}

impl Server {
    /// A server of these endpoints, with TLS if there is an acceptor.
    pub(super) fn new(
        endpoints: Endpoints,
        tls: Option<TlsAcceptor>,
        timeouts: Timeouts,
        max_connections: usize,
        metrics: ConnectionMetrics,
    ) -> Self {
        let connections = Connections::new(max_connections, metrics);
        Self { endpoints: Arc::new(endpoints), tls, timeouts, connections }
    }

    /// Serves until `stop`, then finishes the requests in flight.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut inspections = tokio::time::interval(self.timeouts.header_read / 4);
        let turns = Turns::of_this_runtime();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                (stream, peer) = accept(&listener) => {
                    let (slot, progress) = self.connections.open(peer, Instant::now());
                    let socket = Socket::new(stream, slot, progress.clone(), turns.clone());
                    self.spawn(socket, progress, peer, turns.clone());
                    self.connections.room().await;
                }
                now = inspections.tick() => self.connections.close_stalled(now.into_std(), self.timeouts),
                () = &mut stop => break,
            }
        }
        drop(listener);
        if tokio::time::timeout(self.timeouts.shutdown_grace, self.connections.finish()).await.is_err() {
            tracing::warn!(open = self.connections.len(), "some requests did not end in time");
        }
    }

    fn spawn(&self, socket: Socket, progress: Arc<Progress>, peer: IpAddr, turns: Turns) {
        let service = Arc::new(Service { endpoints: self.endpoints.clone(), progress, peer });
        match &self.tls {
            None => tokio::spawn(http(socket, service, turns)),
            Some(acceptor) => tokio::spawn(https(socket, acceptor.clone(), service, turns)),
        };
    }
}

/// Serves a connection to its end.
async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Arc<Service>,
    turns: Turns,
) {
    let progress = service.progress.clone();
    progress.register_task().await;
    let mut builder = http1::Builder::new();
    // Not pipeline_flush: with it, hyper does not send its own 400 and 431 while more input is buffered.
    builder.max_buf_size(MAX_BUFFER_BYTES).max_header_size(MAX_HEAD_BYTES).header_read_timeout(None);
    // A response is one small buffer, for which a plain write is cheaper than a vectored one.
    builder.writev(false);
    let service = service_fn(move |request| Arc::clone(&service).call(request));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut finishing = false;
    let served = poll_fn(|context| {
        if !finishing && progress.has_received(Signal::Finish) {
            finishing = true;
            connection.as_mut().graceful_shutdown();
        }
        // An error here is the client's: it broke the connection or the protocol.
        connection.as_mut().poll(context).map(|_| ())
    });
    // A signal waits for no turn: what it frees is needed.
    progress.run_until(Signal::Close, turns.take(|| progress.is_strangers(), served)).await;
}

/// Serves a connection in TLS, once its handshake is done.
async fn https(mut socket: Socket, acceptor: TlsAcceptor, service: Arc<Service>, turns: Turns) {
    let progress = service.progress.clone();
    progress.register_task().await;
    let handshake = async {
        if socket.first_byte().await.ok()?? == TLS_HANDSHAKE {
            return acceptor.accept(socket).await.ok();
        }
        let _ = socket.write_all(NOT_TLS).await;
        None
    };
    // Boxed: otherwise the task of each connection would contain space for the handshake.
    let handshake = Box::pin(progress.run_until(Signal::Finish, turns.take(|| true, handshake)));
    if let Some(Some(stream)) = handshake.await {
        http(stream, service, turns).await;
    }
}

/// The service of one connection. Each request writes to this connection's own counters; shared ones would slow every core.
struct Service {
    endpoints: Arc<Endpoints>,
    progress: Arc<Progress>,
    peer: IpAddr,
}

impl Service {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Result<HttpResponse, Infallible> {
        self.progress.begin();
        let response = respond(&self.endpoints, request, self.peer).await;
        self.progress.end();
        self.progress.set_known(endpoints::knows_the_client(&response));
        Ok(response)
    }
}

async fn respond<B: Body + Unpin>(
    endpoints: &Endpoints,
    mut request: Request<B>,
    peer: IpAddr,
) -> HttpResponse {
    let mut response = endpoints.answer(&mut request, peer).await;
    // The unread rest of a body must not be taken for the next request. Boxed, because few requests have a body, and the
    // task of each connection would contain space for this.
    if !request.body().is_end_stream() && !Box::pin(drain(request)).await {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads a small body to its end. False: the body is too large or too slow.
async fn drain<B: Body>(request: Request<B>) -> bool {
    // With Expect: 100-continue, the client has not sent the body.
    if request.headers().contains_key(EXPECT) || request.body().size_hint().lower() > MAX_DRAINED_BYTES {
        return false;
    }
    let mut body = std::pin::pin!(request.into_body());
    let all = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            if read > MAX_DRAINED_BYTES {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIMEOUT, all).await.unwrap_or(false)
}

#[cfg(test)]
mod tests;
