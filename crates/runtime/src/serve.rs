//! A small HTTP/1.1 server for a few clients, with or without TLS. The verifier has one of its own, made for many.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::listen::accept;
use crate::turns::Turns;

/// The most bytes that are buffered of a connection, and so the longest head of a request: by default hyper buffers some
/// 400 KiB. It is the size of a TLS record, so that a body is read in as few pieces as it arrives in.
const MAX_BUFFER: usize = 16 * 1024;

/// What a server lets its clients use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. One more closes the oldest of the address that has the most, so that nobody is locked out by
    /// connections that do nothing, or by one address.
    pub connections: usize,
    /// For a handshake, for a request's head, and for a whole request with its response. A connection without a request
    /// is closed after it, too.
    pub request: Duration,
    /// For the requests that are in flight at the end.
    pub shutdown: Duration,
}

/// Serves until `stop`, then finishes what is in flight.
pub async fn serve<S, F>(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let accept_all = async move {
        // Oldest first.
        let mut open = VecDeque::<(IpAddr, AbortHandle)>::new();
        let (tasks, turns) = (TaskTracker::new(), Turns::of_this_runtime());
        while let Some((stream, peer)) = stop.run_until_cancelled(accept(&listener)).await {
            open.retain(|(_, connection)| !connection.is_finished());
            if open.len() >= limits.connections
                && let Some((_, displaced)) =
                    most_frequent(open.iter().map(|(peer, _)| *peer)).and_then(|at| open.remove(at))
            {
                displaced.abort();
            }
            let served = connection(stream, tls.clone(), service.clone(), limits, stop.clone());
            let turns = turns.clone();
            let task = tasks.spawn(async move { turns.take(|| true, served).await });
            open.push_back((peer, task.abort_handle()));
        }
        tasks.close();
        let _ = timeout(limits.shutdown, tasks.wait()).await;
    };
    // In a task of its own. A process's main task has a thread for itself, which would have to be woken for each connection,
    // and which a flood would make compete for the processor with the threads that answer.
    let _ = AbortOnDropHandle::new(tokio::spawn(accept_all)).await;
}

/// The index of the first of the addresses that occur most often.
fn most_frequent(peers: impl Iterator<Item = IpAddr> + Clone) -> Option<usize> {
    let mut counts = HashMap::<IpAddr, usize>::new();
    for peer in peers.clone() {
        *counts.entry(peer).or_default() += 1;
    }
    let most = counts.values().max()?;
    peers.into_iter().position(|peer| counts.get(&peer) == Some(most))
}

async fn connection<S, F>(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    match tls {
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(limits.request, tls.accept(stream)).await {
                requests(stream, service, limits, stop).await;
            }
        }
        None => requests(stream, service, limits, stop).await,
    }
}

/// Responds to the requests of a connection.
async fn requests<S, F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    service: S,
    limits: Limits,
    stop: CancellationToken,
) where
    S: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(move |request| {
        let response = timeout(limits.request, service(request));
        async move {
            let too_slow = |_| text(StatusCode::REQUEST_TIMEOUT, "too slow\n");
            Ok::<_, Infallible>(response.await.unwrap_or_else(too_slow))
        }
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(limits.request).max_buf_size(MAX_BUFFER);
    let mut served = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A connection that broke is the client's concern.
        _ = served.as_mut() => return,
        () = stop.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

/// A response of plain text.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

/// A response of a media type.
pub fn response(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::listen::listen;

    /// A server without TLS that responds `ok`.
    async fn start(limits: Limits) -> (SocketAddr, CancellationToken) {
        let listener = listen("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let (address, stop) = (listener.local_addr().expect("an address"), CancellationToken::new());
        let service = |_| async { text(StatusCode::OK, "ok") };
        tokio::spawn(serve(listener, None, service, limits, stop.clone()));
        (address, stop)
    }

    fn limits(connections: usize) -> Limits {
        Limits { connections, request: Duration::from_secs(60), shutdown: Duration::from_secs(1) }
    }

    /// Sends `request`, and returns what arrives until the server closes the connection.
    async fn exchange(stream: &mut TcpStream, request: &[u8]) -> String {
        // The server may have closed it already.
        let _ = stream.write_all(request).await;
        let mut response = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut response)).await.expect("an end");
        String::from_utf8(response).expect("text")
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_full_server_closes_the_oldest_connection() {
        let (address, _stop) = start(limits(2)).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(TcpStream::connect(address).await.expect("a connection"));
        }
        assert!(exchange(&mut open[2], GET).await.starts_with("HTTP/1.1 200"));
        assert!(exchange(&mut open[1], GET).await.starts_with("HTTP/1.1 200"));
        assert_eq!(exchange(&mut open[0], GET).await, "");
    }

    #[test]
    fn the_address_with_the_most_connections_loses_its_oldest() {
        let first = |peers: &[u8]| most_frequent(peers.iter().map(|peer| IpAddr::from([10, 0, 0, *peer])));
        assert_eq!(first(&[]), None);
        assert_eq!(first(&[1]), Some(0));
        assert_eq!(first(&[1, 2, 3, 2]), Some(1));
        assert_eq!(first(&[1, 2, 2, 1, 2]), Some(1));
        assert_eq!(first(&[3, 2, 1]), Some(0));
    }

    #[tokio::test]
    async fn a_slow_or_long_head_ends_the_connection() {
        let quick = Limits { request: Duration::from_millis(50), ..limits(2) };
        let (address, _stop) = start(quick).await;
        let mut slow = TcpStream::connect(address).await.expect("a connection");
        let response = exchange(&mut slow, b"GET / HTTP/1.1\r\nhost").await;
        assert!(!response.starts_with("HTTP/1.1 200"), "{response}");
        let (address, _stop) = start(limits(2)).await;
        let mut long = TcpStream::connect(address).await.expect("a connection");
        let head = format!("GET / HTTP/1.1\r\nx: {}", "x".repeat(2 * MAX_BUFFER));
        let response = exchange(&mut long, head.as_bytes()).await;
        assert!(response.starts_with("HTTP/1.1 431") || response.is_empty(), "{response}");
    }
}
