//! Serves the API server by HTTPS, with one path for each kind.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use kube::Resource;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::reviewer::Reviewer;
use tokenward_core::crd::{ApiToken, TokenWebhook};
use tokenward_runtime::serve::{self, Limits, WhenFull, response, text};

/// API servers have a few connections each, and nobody else is a client. One that is closed for want of a place makes the
/// API server try another replica. The API server waits for 30 s at most.
const LIMITS: Limits = Limits {
    connections: 256,
    when_full: WhenFull::CloseNew,
    request: Duration::from_secs(30),
    shutdown: Duration::from_secs(5),
};
/// The longest body of a request. A review contains an object twice, and the API server accepts objects of up to 3 MiB.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;

/// Serves until `stop`, then finishes what is in flight.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    reviewer: Reviewer,
    stop: CancellationToken,
) {
    let reviewer = Arc::new(reviewer);
    let service = move |request| {
        let reviewer = reviewer.clone();
        async move { respond_to(&reviewer, request).await }
    };
    serve::serve(listener, Some(acceptor), service, LIMITS, stop).await;
}

async fn respond_to(reviewer: &Reviewer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "the API server posts AdmissionReviews here\n");
    }
    let path = request.uri().path().to_owned();
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "an AdmissionReview has at most 8 MiB\n");
    };
    match &*path {
        "/validate/apitoken" => match read::<ApiToken>(&body.to_bytes()) {
            Ok(request) => review(reviewer.api_token(&request).await),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        "/validate/tokenwebhook" => match read::<TokenWebhook>(&body.to_bytes()) {
            Ok(request) => review(reviewer.token_webhook(&request)),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /validate/apitoken and /validate/tokenwebhook\n"),
    }
}

fn read<K: Resource + DeserializeOwned>(body: &[u8]) -> Result<AdmissionRequest<K>, String> {
    match serde_json::from_slice::<AdmissionReview<K>>(body) {
        Ok(AdmissionReview { types, request: Some(request), .. }) => {
            Ok(AdmissionRequest { types, ..request })
        }
        Ok(_) => Err("an AdmissionReview without a request\n".to_owned()),
        Err(error) => Err(format!("no AdmissionReview of this kind: {error}\n")),
    }
}

fn review(decision: AdmissionResponse) -> Response<Full<Bytes>> {
    match serde_json::to_vec(&decision.into_review()) {
        Ok(body) => response(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
