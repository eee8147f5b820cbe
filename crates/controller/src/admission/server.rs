//! HTTPS for the API server: one path a kind.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Resource;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::reviewer::Reviewer;
use tokenward_core::crd::{ApiToken, TokenWebhook};

/// Connections at a time: API servers hold a few, and nobody else has business here.
const CONNECTIONS: usize = 256;
/// A review carries an object twice, and the API server takes objects of up to 3 MiB.
const MAX_BODY: usize = 8 * 1024 * 1024;
/// For a handshake, for a request's head, and for a whole request. The API server gives up after 30 s at most.
const PATIENCE: Duration = Duration::from_secs(30);
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Serves until `stop`, then finishes what is in flight.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    reviewer: Reviewer,
    stop: CancellationToken,
) {
    let (reviewer, places, connections) =
        (Arc::new(reviewer), Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accepting a connection of the API server");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Whoever comes on top is turned away, so that the API server asks another replica.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let (acceptor, reviewer, stop) = (acceptor.clone(), reviewer.clone(), stop.clone());
        connections.spawn(async move {
            connection(stream, acceptor, reviewer, stop).await;
            drop(place);
        });
    }
    connections.close();
    let _ = tokio::time::timeout(SHUTDOWN, connections.wait()).await;
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    reviewer: Arc<Reviewer>,
    stop: CancellationToken,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request| {
        let reviewer = reviewer.clone();
        async move {
            let answered = tokio::time::timeout(PATIENCE, answer(&reviewer, request)).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "too slow\n")))
        }
    });
    let mut protocol = http1::Builder::new();
    protocol.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut served = std::pin::pin!(protocol.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A connection that broke is the API server's affair.
        _ = served.as_mut() => return,
        () = stop.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

async fn answer(reviewer: &Reviewer, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "the API server posts AdmissionReviews here\n");
    }
    let path = request.uri().path().to_owned();
    let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "an AdmissionReview has at most 8 MiB\n");
    };
    match &*path {
        "/validate/apitoken" => match read::<ApiToken>(&body.to_bytes()) {
            Ok(request) => review(reviewer.api_token(&request).await),
            Err(why) => text(StatusCode::BAD_REQUEST, &why),
        },
        "/validate/tokenwebhook" => match read::<TokenWebhook>(&body.to_bytes()) {
            Ok(request) => review(reviewer.token_webhook(&request)),
            Err(why) => text(StatusCode::BAD_REQUEST, &why),
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

fn review(answer: AdmissionResponse) -> Response<Full<Bytes>> {
    match serde_json::to_vec(&answer.into_review()) {
        Ok(body) => respond(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes()))
}

fn respond(status: StatusCode, media_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
