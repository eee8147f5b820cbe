//! `envoy.service.auth.v3.Authorization/Check`: what Envoy's ext_authz filter asks over gRPC, and with it Istio,
//! Envoy Gateway, Contour and others that configure Envoy.
//!
//! The client's headers come in the message, as does what the route needs: `scope` and `audience` among the
//! `context_extensions` of the route. The rules are those of `/auth`. Every answer is an allowed or a denied one,
//! never an error of the call: Envoy would let requests pass on errors where `failure_mode_allow` is set.
//!
//! Source: `envoy/service/auth/v3/external_auth.proto` and `attribute_context.proto`.

mod request;
mod response;

use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use ipnet::IpNet;
use jiff::Timestamp;
use tonic::{Request, Response, Status};

use self::request::Asked;
use super::super::View;
use super::super::metrics::{DoorMetrics, Metrics};
use super::forward_auth::{Needs, Refusal, denial, presented, refused};
use crate::check::{self, Code, Decision, Identity, decide};
use crate::token::Token;

/// The door.
pub struct ExtAuthz {
    view: Arc<View>,
    trusted_proxies: Vec<IpNet>,
    metrics: DoorMetrics,
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
    pub fn new(view: Arc<View>, trusted_proxies: Vec<IpNet>, metrics: &Metrics) -> Self {
        Self { view, trusted_proxies, metrics: metrics.door("ext_authz") }
    }

    fn answer(&self, request: &CheckRequest, peer: IpAddr) -> CheckResponse {
        self.decide(request, peer).unwrap_or_else(|refusal| self.refuse(&refusal))
    }

    fn decide(&self, request: &CheckRequest, peer: IpAddr) -> Result<CheckResponse, Refusal> {
        let asked = Asked::of(request)?;
        let needs = asked.needs()?;
        let headers = asked.headers()?;
        let presented = presented(&headers)?;
        let peppers = self.view.peppers.load();
        let peppers = peppers.as_deref().filter(|_| self.view.is_listed()).ok_or(Refusal::NotReady)?;
        let Some(token) = std::str::from_utf8(presented).ok().and_then(Token::parse) else {
            return Ok(self.deny(Code::NotFound, &needs));
        };
        let scopes: Vec<&str> = needs.scopes.iter().map(AsRef::as_ref).collect();
        let question = check::Request {
            token,
            scopes: &scopes,
            audience: needs.audience.as_deref(),
            client: asked.client(&headers, peer, &self.trusted_proxies),
        };
        let now = Timestamp::now();
        Ok(self.view.index.claimants(token.key_id(), |claimants| {
            match decide(claimants.iter().map(AsRef::as_ref), peppers, &question, now) {
                Decision::Allow(identity) => self.allow(identity, &asked),
                Decision::Deny(code) => self.deny(code, &needs),
            }
        }))
    }

    fn allow(&self, identity: Identity<'_>, asked: &Asked<'_>) -> CheckResponse {
        self.metrics.allowed();
        response::allowed(identity, asked.like_ours())
    }

    fn deny(&self, code: Code, needs: &Needs<'_>) -> CheckResponse {
        self.metrics.denied(code);
        response::denied(denial(code, needs))
    }

    fn refuse(&self, refusal: &Refusal) -> CheckResponse {
        self.metrics.malformed();
        response::denied(refused(refusal))
    }
}

#[cfg(test)]
mod tests;
