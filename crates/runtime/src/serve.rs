//! A small HTTPS server (HTTP/1.1) for a few clients that are known. The verifier has one of its own, made for many.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// The pause after `accept` failed, which it does again at once while there are no file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What a server lets its clients use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. More are closed at once.
    pub connections: usize,
    /// For a handshake, for a request's head, and for a whole request with its response.
    pub request: Duration,
    /// For the requests that are in flight at the end.
    pub shutdown: Duration,
}

/// Serves until `stop`, then finishes what is in flight.
pub async fn serve<S, F>(
    listener: TcpListener,
    tls: TlsAcceptor,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send,
{
    let (permits, connections) = (Arc::new(Semaphore::new(limits.connections)), TaskTracker::new());
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else { continue };
        let (tls, service, stop) = (tls.clone(), service.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, tls, service, limits, stop).await;
            drop(permit);
        });
    }
    connections.close();
    let _ = timeout(limits.shutdown, connections.wait()).await;
}

async fn connection<S, F>(
    stream: TcpStream,
    tls: TlsAcceptor,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let Ok(Ok(stream)) = timeout(limits.request, tls.accept(stream)).await else { return };
    let service = service_fn(move |request| {
        let response = timeout(limits.request, service(request));
        async move { Ok::<_, Infallible>(response.await.unwrap_or_else(|_| too_slow())) }
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(limits.request);
    let mut served = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A connection that broke is the client's concern.
        _ = served.as_mut() => return,
        () = stop.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

fn too_slow() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from("too slow\n"));
    *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
