//! A gRPC client of a verifier. Envoy itself is tested in `tests/gateways`.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{self, HttpRequest, Peer};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Shared;
use testkit::{Process, eventually};

pub async fn a_grpc_client_gets_the_decisions_of_auth(shared: &Shared) {
    let space = shared.site.namespace("grpc").await;
    let token = space.active("t", json!({"scopes": ["a:b"]})).await;
    let constraints = json!({"cidrs": ["192.0.2.0/24"]});
    let placed = space.active("p", json!({"scopes": ["a:b"], "constraints": constraints})).await;
    let mut verifier = shared.site.verifier(&["--trusted-proxies", "127.0.0.1/32"]).ready().await;
    let channel = connect(&verifier).await;
    assert_eq!(health(&channel).await, ServingStatus::Serving);

    let check = async |token: &str, scope: &str, from: &str| ask(&channel, token, scope, from).await;
    for token in [&token, &placed] {
        eventually("an answer", async || match check(token, "", "192.0.2.1").await {
            200 => Ok(()),
            status => Err(status.to_string()),
        })
        .await;
    }
    assert_eq!(check(&token, "a:b", "198.51.100.1").await, 200);
    assert_eq!(check(&token, "a:b x:y", "198.51.100.1").await, 403);
    assert_eq!(check(&token[1..], "a:b", "198.51.100.1").await, 401);
    assert_eq!(check(&placed, "a:b", "198.51.100.1").await, 403);

    space.patch("t", json!({"spec": {"revoked": true}})).await;
    verifier.answers(&token, "", 401).await;
    assert_eq!(check(&token, "a:b", "192.0.2.1").await, 401, "revoked at one endpoint and not at the other");
    let counted = r#"tokenward_checks_total{endpoint="ext_authz",code="REVOKED"} 1"#;
    assert!(verifier.metrics().await.contains(counted), "{}", verifier.metrics().await);
    assert!(!verifier.log().contains(&token), "the log contains a token");

    let (code, took) = verifier.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "an open connection delays the shutdown by {took:?}");
}

pub async fn a_verifier_without_a_pepper_denies_and_is_not_healthy(shared: &Shared) {
    let tenant = shared.site.namespace("grpc-no-pepper").await;
    let verifier = shared.site.verifier(&["--namespace", &tenant.name]);
    eventually("a listener", async || {
        Endpoint::new(url(&verifier))
            .expect("a URL")
            .connect()
            .await
            .map(drop)
            .map_err(|error| format!("{error}; {}", verifier.log()))
    })
    .await;
    let channel = connect(&verifier).await;
    assert_eq!(health(&channel).await, ServingStatus::NotServing);
    assert_eq!(ask(&channel, "tw_junk", "", "192.0.2.1").await, 503);
}

fn url(verifier: &Process) -> String {
    format!("http://{}", verifier.grpc)
}

async fn connect(verifier: &Process) -> Channel {
    Endpoint::new(url(verifier)).expect("a URL").connect().await.expect("a connection")
}

async fn health(channel: &Channel) -> ServingStatus {
    let answer = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    answer.expect("an answer").into_inner().status()
}

/// The HTTP status that a client gets through a gateway.
async fn ask(channel: &Channel, token: &str, scope: &str, from: &str) -> i32 {
    let headers = [("authorization".to_owned(), format!("Bearer {token}"))].into();
    let http = Some(HttpRequest { headers, ..Default::default() });
    let socket = SocketAddress { address: from.to_owned(), ..Default::default() };
    let address = Some(Address { address: Some(Kind::SocketAddress(socket)) });
    let needs = (!scope.is_empty()).then(|| ("scope".to_owned(), scope.to_owned()));
    let attributes = AttributeContext {
        request: Some(attribute_context::Request { http, ..Default::default() }),
        source: Some(Peer { address, ..Default::default() }),
        context_extensions: needs.into_iter().collect(),
        ..Default::default()
    };
    let request = CheckRequest { attributes: Some(attributes) };
    let answer = AuthorizationClient::new(channel.clone()).check(request).await.expect("an answer");
    match answer.into_inner().http_response.expect("an HTTP response") {
        HttpResponse::OkResponse(_) => 200,
        HttpResponse::DeniedResponse(denied) => denied.status.expect("a status").code,
        HttpResponse::ErrorResponse(error) => panic!("left to failure_mode_allow: {error:?}"),
    }
}
