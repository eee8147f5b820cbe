//! `envoy.service.auth.v3.Authorization/Check`: the gRPC call of Envoy's ext_authz filter, which Istio, Envoy Gateway,
//! Contour and others configure.
//!
//! The message contains the client's headers and the route's requirements: `scope` and `audience` among the route's
//! `context_extensions`. The rules are those of `/auth`. The response to every message that can be decoded is "allowed"
//! or "denied", never a gRPC error: on an error, Envoy lets the request pass if `failure_mode_allow` is set.
//!
//! Source: `envoy/service/auth/v3/external_auth.proto` and `attribute_context.proto`.

mod request;
mod response;

use std::net::IpAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::Authorization;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use prometheus_client::metrics::counter::Counter;
use tonic::{Request, Response, Status};

use self::request::ExtAuthzRequest;
use super::GatewayCheck;
use crate::endpoints::TrustedProxies;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// The `Authorization` service.
pub struct ExtAuthz(GatewayCheck);

/// The address of the gateway that makes a call. The server adds it to the call's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Marks the response to a message with a valid token. The server looks for it among the response's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Allowed;

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let Some(&Peer(peer)) = request.extensions().get() else {
            return Err(Status::internal("the listener does not report the peer's address"));
        };
        let mut response = Response::new(self.respond(request.get_ref(), peer));
        if let Some(HttpResponse::OkResponse(_)) = response.get_ref().http_response {
            response.extensions_mut().insert(Allowed);
        }
        Ok(response)
    }
}

impl ExtAuthz {
    /// A service that decides by this snapshot.
    pub fn new(snapshot: Arc<Snapshot>, trusted_proxies: TrustedProxies, metrics: &Metrics) -> Self {
        Self(GatewayCheck::new("ext_authz", snapshot, trusted_proxies, metrics))
    }

    /// The counter of calls that fail before they are checks: what they send is no message, or none of the right type or size.
    pub fn failed_calls(&self) -> Counter {
        self.0.metrics.malformed()
    }

    fn respond(&self, request: &CheckRequest, peer: IpAddr) -> CheckResponse {
        self.0.respond(ExtAuthzRequest::decode(request, peer))
    }
}

#[cfg(test)]
mod tests;
