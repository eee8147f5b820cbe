//! `envoy.service.auth.v3.Authorization/Check`: what Envoy's ext_authz filter asks over gRPC, and with it Istio,
//! Envoy Gateway, Contour and others that configure Envoy.
//!
//! The client's headers come in the message, as does what the route needs: `scope` and `audience` among the
//! `context_extensions` of the route. The rules are those of `/auth`. Every message that can be
//! read is answered with allowed or denied, never with an error of the call: on those Envoy lets requests pass where
//! `failure_mode_allow` is set.
//!
//! Source: `envoy/service/auth/v3/external_auth.proto` and `attribute_context.proto`.

mod request;
mod response;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tonic::{Request, Response, Status};

use self::request::Asked;
use crate::endpoints::TrustedProxies;
use crate::endpoints::authorization::presented;
use crate::endpoints::challenge::{denial, refused};
use crate::endpoints::refusal::Refusal;
use crate::metrics::{EndpointMetrics, Metrics, Outcome};
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::Decision;

/// The door.
pub struct ExtAuthz {
    view: Arc<Snapshot>,
    trusted_proxies: TrustedProxies,
    metrics: EndpointMetrics,
}

/// The address of the gateway that asks, among the extensions of a call.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let Some(&Peer(peer)) = request.extensions().get() else {
            return Err(Status::internal("the listener does not say who asks"));
        };
        Ok(Response::new(self.answer(request.get_ref(), peer)))
    }
}

impl ExtAuthz {
    /// Opens the door on a view.
    pub fn new(view: Arc<Snapshot>, trusted_proxies: TrustedProxies, metrics: &Metrics) -> Self {
        Self { view, trusted_proxies, metrics: metrics.endpoint("ext_authz") }
    }

    fn answer(&self, request: &CheckRequest, peer: IpAddr) -> CheckResponse {
        let began = Instant::now();
        let answer = self.decide(request, peer).unwrap_or_else(|refusal| self.refuse(&refusal));
        self.metrics.took(began.elapsed());
        answer
    }

    fn decide(&self, request: &CheckRequest, peer: IpAddr) -> Result<CheckResponse, Refusal> {
        let asked = Asked::of(request)?;
        let needs = asked.needs()?;
        let headers = asked.headers()?;
        let scopes: Vec<&str> = needs.scopes.iter().map(AsRef::as_ref).collect();
        let question = TokenCheck {
            presented: presented(&headers)?,
            scopes: &scopes,
            audience: needs.audience.as_deref(),
            client: asked.client(&headers, peer, &self.trusted_proxies),
        };
        let answer = self.view.decide(&question, |decision| {
            self.metrics.count(Outcome::from(&decision));
            match decision {
                Decision::Allow(identity) => response::allowed(identity, asked.like_ours()),
                Decision::Deny(code) => response::denied(denial(code, &needs)),
            }
        });
        Ok(answer?)
    }

    fn refuse(&self, refusal: &Refusal) -> CheckResponse {
        self.metrics.count(refusal.outcome());
        response::denied(refused(refusal))
    }
}

#[cfg(test)]
mod tests;
