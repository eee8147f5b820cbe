//! The doors: each decodes its protocol, asks the one decision, and encodes the answer.
//!
//! Served by hyper itself: a router costs more than a check does. What a client can hold open is bounded here.

mod forward_auth;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tracing::{debug, warn};

use self::forward_auth::ForwardAuth;
use super::View;
use super::metrics::Metrics;

/// The most bytes of a request's head. More is answered with 431.
const HEAD: usize = 32 * 1024;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer, whose body is small and at hand.
pub type Answer = Response<Full<Bytes>>;

/// All doors of a verifier.
pub struct Doors {
    forward_auth: ForwardAuth,
}

impl Doors {
    /// Opens the doors on a view.
    pub fn new(view: Arc<View>, trusted_proxies: Vec<IpNet>, metrics: Metrics) -> Self {
        Self { forward_auth: ForwardAuth::new(view, trusted_proxies, &metrics) }
    }

    /// Answers a request that came from `peer`. The body, if any, is not looked at.
    pub fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Answer {
        match request.uri().path() {
            "/auth" => self.forward_auth.answer(request, peer),
            path if path.starts_with("/auth/") => self.forward_auth.answer(request, peer),
            _ => plain(StatusCode::NOT_FOUND, "no such door; checks are answered at /auth\n"),
        }
    }
}

fn plain(status: StatusCode, body: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // A 404 may be cached if nothing forbids it, and would outlive the mistake that it tells of.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Serves until `stop`, then finishes what is under way within `grace`.
pub(super) async fn serve(
    listener: TcpListener,
    doors: Arc<Doors>,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).pipeline_flush(true);
    // The buffer's own limit is looked at only while a head is incomplete: one read may take more.
    server.max_header_size(HEAD).max_buf_size(HEAD);
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Most likely no file descriptor is left; one is soon, when a connection ends.
                    warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let _ = stream.set_nodelay(true);
        let doors = doors.clone();
        let service = service_fn(move |request| {
            let answer = doors.answer(&request, canonical(peer));
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let connection = graceful.watch(server.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection has ended early");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        warn!("some requests were not finished in time");
    }
}

/// An IPv4 client of a dual-stack socket has its IPv4 address.
fn canonical(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}
