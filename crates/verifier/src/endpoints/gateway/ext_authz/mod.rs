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

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use tonic::{Request, Response, Status};

use self::request::Asked;
use super::GatewayCheck;
use crate::endpoints::TrustedProxies;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// The Authorization service.
pub struct ExtAuthz(GatewayCheck);

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
    /// Serves checks from a snapshot.
    pub fn new(snapshot: Arc<Snapshot>, trusted_proxies: TrustedProxies, metrics: &Metrics) -> Self {
        Self(GatewayCheck::new("ext_authz", snapshot, trusted_proxies, metrics))
    }

    fn answer(&self, request: &CheckRequest, peer: IpAddr) -> CheckResponse {
        self.0.respond(Asked::of(request, peer))
    }
}

#[cfg(test)]
mod tests;
