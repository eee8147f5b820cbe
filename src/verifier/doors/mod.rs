//! The doors: each decodes its protocol, asks the one decision, and encodes the answer.
//!
//! A router costs more than a check does, so the path is matched by hand. Sockets are `server.rs`'s affair.

pub mod ext_authz;
mod forward_auth;
#[cfg(test)]
pub(super) use forward_auth::tests as forward_auth_fixture;

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use ipnet::IpNet;

use self::forward_auth::ForwardAuth;
use super::View;
use super::metrics::Metrics;

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
