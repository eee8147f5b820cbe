//! `ANY /auth`: the question that a gateway asks for a request that it is about to forward.
//!
//! What nginx calls `auth_request`, Traefik ForwardAuth, Caddy `forward_auth` and Envoy an HTTP authorization
//! service. The gateway passes the client's headers on, the operator of the gateway puts into the query what the
//! route needs. Tokens are presented as RFC 6750 section 2.1 has it, or in `X-API-Key`; never in the query, which
//! ends up in logs. Refusals follow RFC 6750 section 3.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;

use crate::endpoints::Answer;
use crate::endpoints::authorization::presented;
use crate::endpoints::challenge::{Refusal, denial, insert_identity, refused};
use crate::endpoints::client_address::TrustedProxies;
use crate::endpoints::requirements;
use crate::metrics::{EndpointMetrics, Metrics, Outcome};
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Decision, Identity};

/// The door.
pub(in crate::endpoints) struct ForwardAuth {
    view: Arc<Snapshot>,
    trusted_proxies: TrustedProxies,
    metrics: EndpointMetrics,
}

impl ForwardAuth {
    pub(in crate::endpoints) fn new(
        view: Arc<Snapshot>,
        trusted_proxies: TrustedProxies,
        metrics: &Metrics,
    ) -> Self {
        Self { view, trusted_proxies, metrics: metrics.door("auth") }
    }

    pub(in crate::endpoints) fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Answer {
        let began = Instant::now();
        let answer = self.check(request, peer).unwrap_or_else(|refusal| self.refuse(&refusal));
        self.metrics.took(began.elapsed());
        answer
    }

    fn check<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<Answer, Refusal> {
        // Below /auth/ a gateway has put the client's own path and query: what is unknown there is not ours.
        let ours = request.uri().path() == "/auth";
        let needs = requirements::from_query(request.uri().query().unwrap_or_default(), ours)?;
        let scopes: Vec<&str> = needs.scopes.iter().map(AsRef::as_ref).collect();
        let question = TokenCheck {
            presented: presented(request.headers())?,
            scopes: &scopes,
            audience: needs.audience.as_deref(),
            client: self.trusted_proxies.client(request.headers(), peer),
        };
        let answer = self.view.decide(&question, |decision| {
            self.metrics.count(Outcome::from(&decision));
            match decision {
                Decision::Allow(identity) => allowed(identity),
                Decision::Deny(code) => denial(code, &needs),
            }
        });
        Ok(answer?)
    }

    fn refuse(&self, refusal: &Refusal) -> Answer {
        self.metrics.count(refusal.outcome());
        refused(refusal)
    }
}

fn allowed(identity: Identity<'_>) -> Answer {
    let mut answer = Response::new(Full::default());
    let headers = answer.headers_mut();
    insert_identity(headers, identity);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests;
