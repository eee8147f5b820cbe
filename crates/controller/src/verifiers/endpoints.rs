//! Which verifiers there are: those behind a Service, and those that are named by address.

use std::net::{IpAddr, SocketAddr};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, future};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tracing::warn;

use crate::config::VerifierArgs;
use tokenward_runtime::backoff::WatchBackoff;
use tokenward_runtime::cluster::error::watch_message;
use tokenward_runtime::cluster::watch::in_pages;

/// A verifier's telemetry port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// The name of its pod, or its address.
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// The verifiers.
pub(super) struct Endpoints {
    named: Vec<SocketAddr>,
    slices: Option<Store<EndpointSlice>>,
    port: u16,
}

impl Endpoints {
    /// The verifiers of these flags, and the task that follows the Service. `None`: there are no such flags.
    pub(super) fn of(
        client: &Client,
        namespace: &str,
        args: &VerifierArgs,
    ) -> Option<(Self, BoxFuture<'static, ()>)> {
        let VerifierArgs { verifiers, verifier_service, verifier_telemetry_port: port } = args;
        if verifiers.is_empty() && verifier_service.is_none() {
            return None;
        }
        let followed = verifier_service.as_ref().map(|service| {
            let (store, writer) = reflector::store();
            let slices = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
            let of_service = in_pages().labels(&format!("kubernetes.io/service-name={service}"));
            let watch = watcher(slices, of_service)
                .inspect_err(|error| {
                    warn!(
                        error = watch_message(error),
                        "the verifiers' EndpointSlices can't be watched; trying again"
                    );
                })
                .backoff(WatchBackoff::default())
                .reflect(writer)
                .for_each(|_| future::ready(()));
            (store, watch.boxed())
        });
        let (slices, watch) = followed.unzip();
        let watch = watch.unwrap_or_else(|| future::pending().boxed());
        Some((Self { named: verifiers.clone(), slices, port: *port }, watch))
    }

    /// Ends when the Service's verifiers are listed.
    pub(super) async fn listed(&self) {
        if let Some(slices) = &self.slices {
            // An error means that the watch has ended, which whoever polls the watch notices.
            drop(slices.wait_until_ready().await);
        }
    }

    /// All verifiers, each with whether it may serve by what the API server knows.
    pub(super) fn current(&self) -> Vec<(Endpoint, bool)> {
        let named = self
            .named
            .iter()
            .map(|address| (Endpoint { name: address.to_string(), address: *address }, true));
        let slices = self.slices.iter().flat_map(Store::state);
        let of_service = slices.flat_map(|slice| of_slice(&slice, self.port));
        named.chain(of_service).collect()
    }
}

/// The verifiers of a slice. One that is neither ready nor serving nor terminating may run all the same: a gateway may still have
/// connections to it.
fn of_slice(slice: &EndpointSlice, port: u16) -> Vec<(Endpoint, bool)> {
    let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
        // All addresses of one are the same pod's (KEP-752), so the first does.
        let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let name = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
        let conditions = endpoint.conditions.as_ref();
        let is = |condition: Option<bool>, unset| condition.unwrap_or(unset);
        let may_serve = conditions.is_none_or(|conditions| {
            is(conditions.ready, true) || is(conditions.serving, false) || is(conditions.terminating, false)
        });
        let name = name.unwrap_or_else(|| ip.to_string());
        Some((Endpoint { name, address: SocketAddr::new(ip, port) }, may_serve))
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_endpoint_is_a_verifier_and_some_may_not_serve() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": "s"}, "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["192.0.2.1"], "conditions": {"ready": true}, "targetRef": {"name": "a"}},
                {"addresses": ["192.0.2.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
                {"addresses": ["192.0.2.3"], "conditions": {"ready": false, "serving": false, "terminating": false}},
                {"addresses": ["192.0.2.4"]},
                {"addresses": ["not one"]},
            ],
        }))
        .expect("a slice");
        let found: Vec<_> = of_slice(&slice, 9090)
            .into_iter()
            .map(|(endpoint, may_serve)| (endpoint.name, endpoint.address.to_string(), may_serve))
            .collect();
        let expected = [
            ("a", "192.0.2.1:9090", true),
            ("192.0.2.2", "192.0.2.2:9090", true),
            ("192.0.2.3", "192.0.2.3:9090", false),
            ("192.0.2.4", "192.0.2.4:9090", true),
        ];
        let expected = expected.map(|(name, address, serves)| (name.to_owned(), address.to_owned(), serves));
        assert_eq!(found, expected);
    }
}
