//! The endpoints on a socket: HTTP/1.1 on hyper itself, in the clear or in TLS.
//!
//! A task a connection, and nothing but hyper in its way: what a request costs here is a few relaxed writes to
//! memory of its own. Who may stay is decided in `connections.rs`.

mod connections;
pub mod grpc;
pub(super) mod open_files;
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
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use self::connections::Connections;
use self::progress::{Progress, Signal};
use self::socket::Socket;
use crate::endpoints::{Answer, Endpoints};
use crate::metrics::ConnectionMetrics;

/// The largest request head. A token has 78 characters; cookies of a forwarded request are what needs room.
const MAX_HEAD: usize = 32 * 1024;
/// Read ahead on one connection.
const MAX_BUFFER: usize = 64 * 1024;
/// A body up to this size is read and thrown away, so that the connection can go on.
const DRAINED: u64 = 64 * 1024;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// The first byte of a TLS connection (RFC 8446, section 5.1: a record of type handshake).
const TLS_HANDSHAKE: u8 = 22;
/// To who speaks HTTP where TLS is expected.
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

/// What is served, and within which bounds.
pub struct Server {
    endpoints: Arc<Endpoints>,
    tls: Option<TlsAcceptor>,
    timeouts: Timeouts,
    connections: Connections,
}

impl Server {
    /// Serves these endpoints, with TLS if there is an acceptor, on a bounded number of connections.
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

    /// Serves until `stop`, then finishes what is in flight.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let mut looks = tokio::time::interval(self.timeouts.header_read / 4);
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                (stream, peer) = accept(&listener) => {
                    let (place, progress) = self.connections.open(Instant::now());
                    self.spawn(Socket::new(stream, place, progress.clone()), progress, peer);
                }
                now = looks.tick() => self.connections.close_stalled(now.into_std(), self.timeouts),
                () = &mut stop => break,
            }
        }
        drop(listener);
        if tokio::time::timeout(self.timeouts.shutdown_grace, self.connections.finish()).await.is_err() {
            tracing::warn!(open = self.connections.len(), "some requests did not end in time");
        }
    }

    fn spawn(&self, socket: Socket, progress: Arc<Progress>, peer: IpAddr) {
        let service = Arc::new(Service { endpoints: self.endpoints.clone(), progress, peer });
        match &self.tls {
            None => tokio::spawn(http(socket, service)),
            Some(acceptor) => tokio::spawn(https(socket, acceptor.clone(), service)),
        };
    }
}

/// The next connection, and who it is from: an IPv4 client of a dual-stack socket has its IPv4 address.
pub(super) async fn accept(listener: &TcpListener) -> (TcpStream, IpAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // An answer is one small write: waiting for more to send only delays it.
                let _ = stream.set_nodelay(true);
                return (stream, peer.ip().to_canonical());
            }
            Err(error) => {
                // Too many open files, most likely: closing connections needs a moment.
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves a connection to its end.
async fn http(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: Arc<Service>) {
    let progress = service.progress.clone();
    progress.is_mine().await;
    let mut builder = http1::Builder::new();
    // Not pipeline_flush: with it, hyper does not send its own 400 and 431 while more input is buffered.
    builder.max_buf_size(MAX_BUFFER).max_header_size(MAX_HEAD).header_read_timeout(None);
    // An answer is one small buffer, which a plain write takes for less than a vectored one.
    builder.writev(false);
    let service = service_fn(move |request| Arc::clone(&service).call(request));
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut finishing = false;
    let served = poll_fn(|context| {
        if !finishing && progress.is_told(Signal::Finish) {
            finishing = true;
            connection.as_mut().graceful_shutdown();
        }
        // A connection that broke is its client's affair.
        connection.as_mut().poll(context).map(|_| ())
    });
    progress.unless(Signal::Close, served).await;
}

/// Serves a connection in TLS, once its handshake is done.
async fn https(mut socket: Socket, acceptor: TlsAcceptor, service: Arc<Service>) {
    let progress = service.progress.clone();
    progress.is_mine().await;
    let handshake = async {
        if socket.first_byte().await.ok()?? == TLS_HANDSHAKE {
            return acceptor.accept(socket).await.ok();
        }
        let _ = socket.write_all(NOT_TLS).await;
        None
    };
    // Boxed, or the connection would keep the room for it.
    if let Some(Some(stream)) = Box::pin(progress.unless(Signal::Finish, handshake)).await {
        http(stream, service).await;
    }
}

/// The endpoints, as one connection sees them. Its requests count up what this connection alone has: a count that all
/// share would slow every core.
struct Service {
    endpoints: Arc<Endpoints>,
    progress: Arc<Progress>,
    peer: IpAddr,
}

impl Service {
    async fn call(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        self.progress.begin();
        let answer = answer(&self.endpoints, request, self.peer).await;
        self.progress.end();
        Ok(answer)
    }
}

async fn answer<B: Body + Unpin>(endpoints: &Endpoints, mut request: Request<B>, peer: IpAddr) -> Answer {
    let mut answer = endpoints.answer(&mut request, peer).await;
    // What was not read of a body must not be taken for the next request. Boxed, as hardly any check has one, and
    // every connection would keep the room for it.
    if !request.body().is_end_stream() && !Box::pin(drain(request)).await {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// Reads a small body to its end. False: there is more than is worth reading.
async fn drain<B: Body>(request: Request<B>) -> bool {
    // Whoever asks first whether to send it has not sent it.
    if request.headers().contains_key(EXPECT) || request.body().size_hint().lower() > DRAINED {
        return false;
    }
    let mut body = std::pin::pin!(request.into_body());
    let all = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, |data| data.remaining() as u64);
            if read > DRAINED {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, all).await.unwrap_or(false)
}

#[cfg(test)]
mod tests;
