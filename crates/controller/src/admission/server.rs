//! Serves the API server by HTTPS, with one path for each kind.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use kube::Resource;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::reviewer::Reviewer;
use tokenward_core::crd::{ApiToken, ClusterTokenLock, TokenLock};
use tokenward_runtime::serve::{self, Limits, response, text};

/// API servers have a few connections each, and wait for 30 s at most. Anybody on the pod network can connect, so a new
/// connection takes the place of the oldest: otherwise silent ones would keep the API servers out.
const LIMITS: Limits =
    Limits { connections: 256, request: Duration::from_secs(30), shutdown: Duration::from_secs(5) };
/// The longest body of a request. A review contains an object twice, and the API server accepts objects of up to 3 MiB.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// What all bodies that are being read or reviewed may have together, so that the chart's limit of memory holds. A review beyond
/// it gets 503, which is for the webhook's failure policy.
const MAX_BODIES_BYTES: usize = 32 * 1024 * 1024;
/// For a body to arrive whole. An API server sends it at once.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `stop`, then finishes what is in flight.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    reviewer: Reviewer,
    stop: CancellationToken,
) {
    let shared = Arc::new((reviewer, Semaphore::new(MAX_BODIES_BYTES)));
    let service = move |request| {
        let shared = shared.clone();
        async move { respond_to(&shared.0, &shared.1, request).await }
    };
    serve::serve(listener, Some(acceptor), service, LIMITS, stop).await;
}

async fn respond_to(
    reviewer: &Reviewer,
    budget: &Semaphore,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "the API server posts AdmissionReviews here\n");
    }
    let path = request.uri().path().to_owned();
    let (body, _permits) = match timeout(BODY_TIMEOUT, read(request.into_body(), budget)).await {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return error.response(),
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "the body was not complete in time\n"),
    };
    match &*path {
        "/validate/apitoken" => match parse::<ApiToken>(&body) {
            Ok(request) => review(reviewer.api_token(&request).await),
            Err(why) => text(StatusCode::BAD_REQUEST, why),
        },
        "/validate/tokenwebhook" => answer(&body, |request| reviewer.token_webhook(request)),
        "/validate/tokenlock" => answer::<TokenLock>(&body, |request| reviewer.lock("TokenLock", request)),
        "/validate/clustertokenlock" => {
            answer::<ClusterTokenLock>(&body, |request| reviewer.lock("ClusterTokenLock", request))
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there is /validate/ with apitoken, tokenwebhook, tokenlock and clustertokenlock\n",
        ),
    }
}

/// Why a body is not reviewed.
enum BodyError {
    /// It has more than [`MAX_BODY_BYTES`].
    TooLarge,
    /// Other bodies have used up [`MAX_BODIES_BYTES`].
    NoBudget,
    /// The connection ended before it did.
    Incomplete,
}

impl BodyError {
    fn response(&self) -> Response<Full<Bytes>> {
        match self {
            Self::TooLarge => text(StatusCode::PAYLOAD_TOO_LARGE, "an AdmissionReview has at most 8 MiB\n"),
            Self::NoBudget => {
                text(StatusCode::SERVICE_UNAVAILABLE, "too many AdmissionReviews at once; try again\n")
            }
            Self::Incomplete => text(StatusCode::BAD_REQUEST, "the body is incomplete\n"),
        }
    }
}

/// Reads a body, and takes its bytes out of the budget until the permits are dropped.
async fn read(
    mut body: impl Body<Data = Bytes> + Unpin,
    budget: &Semaphore,
) -> Result<(Vec<u8>, Vec<SemaphorePermit<'_>>), BodyError> {
    let (mut read, mut permits) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Incomplete)?.into_data() else { continue };
        if data.len() > MAX_BODY_BYTES - read.len() {
            return Err(BodyError::TooLarge);
        }
        let bytes = u32::try_from(data.len()).map_err(|_| BodyError::TooLarge)?;
        permits.push(budget.try_acquire_many(bytes).map_err(|_| BodyError::NoBudget)?);
        read.extend_from_slice(&data);
    }
    Ok((read, permits))
}

/// The response to a review that asks nobody else.
fn answer<K: Resource + DeserializeOwned>(
    body: &[u8],
    decide: impl FnOnce(&AdmissionRequest<K>) -> AdmissionResponse,
) -> Response<Full<Bytes>> {
    match parse(body) {
        Ok(request) => review(decide(&request)),
        Err(why) => text(StatusCode::BAD_REQUEST, why),
    }
}

fn parse<K: Resource + DeserializeOwned>(body: &[u8]) -> Result<AdmissionRequest<K>, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bytes: usize) -> Full<Bytes> {
        Full::from(vec![b' '; bytes])
    }

    #[tokio::test]
    async fn all_bodies_together_are_bounded() {
        let budget = Semaphore::new(MAX_BODIES_BYTES);
        let mut held = Vec::new();
        for _ in 0..MAX_BODIES_BYTES / MAX_BODY_BYTES {
            let Ok(read) = read(body(MAX_BODY_BYTES), &budget).await else { panic!("there is room") };
            held.push(read);
        }
        assert!(matches!(read(body(1), &budget).await, Err(BodyError::NoBudget)));
        // Once a review has its answer, its bytes are those of others.
        held.pop();
        assert!(read(body(1), &budget).await.is_ok());
        assert!(matches!(read(body(MAX_BODY_BYTES + 1), &budget).await, Err(BodyError::TooLarge)));
    }
}
