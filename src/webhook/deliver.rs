//! One request: signed, sent once, and its answer judged.
//!
//! The answer's status counts. Its body is read, up to a bound, so that the connection can be used again, and is
//! neither kept nor logged: what an endpoint says is not ours to repeat. A redirect is not followed, because it would
//! lead to an address that nobody has named.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error as ThisError;

use super::address::AddressPolicy;
use super::connect::{ConnectError, Connector, Resolve};
use super::payload::Message;
use super::schedule::{Failure, Outcome, judge};
use super::sign::SigningKeys;

/// How much of an answer's body is read.
const BODY_BOUND: usize = 64 * 1024;
/// How much of an answer's head is read.
const HEAD_BOUND: usize = 32 * 1024;
/// How long a connection is kept for the next event.
const IDLE: Duration = Duration::from_secs(30);
const AGENT: HeaderValue = HeaderValue::from_static(concat!("tokenward/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Where events are sent. Its Debug shows no URL, which may be a secret.
pub struct Endpoint {
    client: Client<Connector, Full<Bytes>>,
    uri: Uri,
    timeout: Duration,
    ca_bundle: Option<String>,
}

/// Why nothing can be sent. Tells nothing of the URL.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum EndpointError {
    /// Not a URL that can be asked.
    #[error("the URL must be an absolute http or https URL without user name or password")]
    Url,
    /// Not certificates.
    #[error("spec.delivery.caBundle holds no certificate in PEM")]
    CaBundle,
    /// TLS can't be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

impl Endpoint {
    /// Prepares an endpoint. Nothing is sent, or resolved, yet.
    pub fn new(
        url: &str,
        ca_bundle: Option<&str>,
        timeout: Duration,
        policy: Arc<AddressPolicy>,
        resolve: Resolve,
    ) -> Result<Self, EndpointError> {
        let uri: Uri = url.trim().parse().map_err(|_| EndpointError::Url)?;
        let authority = uri.authority().ok_or(EndpointError::Url)?;
        let plain = matches!(uri.scheme_str(), Some("http" | "https")) && !authority.as_str().contains('@');
        if !plain || authority.host().is_empty() {
            return Err(EndpointError::Url);
        }
        let connector = Connector::new(policy, tls(ca_bundle)?, resolve);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .http1_max_buf_size(HEAD_BOUND)
            .build(connector);
        Ok(Self { client, uri, timeout, ca_bundle: ca_bundle.map(str::to_owned) })
    }

    /// Whether this is asked just like another.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.uri, self.timeout, &self.ca_bundle) == (&other.uri, other.timeout, &other.ca_bundle)
    }

    /// Sends an event once.
    pub async fn send(&self, message: &Message, namespace: &str, keys: &SigningKeys) -> Outcome {
        let Some(request) = self.request(message, namespace, keys) else {
            return Outcome::Failed(Failure::new("InvalidRequest", "the event makes no valid request"));
        };
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = format!("no whole answer within {} s", self.timeout.as_secs_f64());
                Outcome::Failed(Failure::new("Timeout", message))
            }
        }
    }

    fn request(
        &self,
        message: &Message,
        namespace: &str,
        keys: &SigningKeys,
    ) -> Option<Request<Full<Bytes>>> {
        let body = message.body(namespace);
        let timestamp = Timestamp::now().as_second();
        Request::post(self.uri.clone())
            .header(CONTENT_TYPE, JSON)
            .header(USER_AGENT, AGENT)
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", keys.sign(&message.id, timestamp, &body))
            .body(Full::new(body.into()))
            .ok()
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Outcome {
        let answer = match self.client.request(request).await {
            Ok(answer) => answer,
            Err(error) => return Outcome::Failed(failure(&error)),
        };
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let outcome = judge(answer.status().as_u16(), retry_after, Timestamp::now());
        drain(answer).await;
        outcome
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint(redacted, {:?})", self.timeout)
    }
}

/// Reads the body to its end, or to the bound, beyond which the connection is closed.
async fn drain(answer: Response<Incoming>) {
    let mut body = answer.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > BODY_BOUND {
            return;
        }
    }
}

/// Why there was no answer, without a word of what was or was not answered.
fn failure(error: &Error) -> Failure {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(connect) = cause.downcast_ref::<ConnectError>() {
            let word = match connect {
                ConnectError::Url => "InvalidUrl",
                ConnectError::Resolve(_) => "NameNotResolved",
                ConnectError::Address(_) => "AddressRefused",
                ConnectError::Connect(_) => "ConnectionFailed",
                ConnectError::Tls(_) => "TlsFailed",
            };
            return Failure::new(word, connect.to_string());
        }
        source = cause.source();
    }
    Failure::new("NoAnswer", "the connection ended without an answer that is HTTP")
}

fn tls(ca_bundle: Option<&str>) -> Result<Arc<ClientConfig>, EndpointError> {
    let roots = match ca_bundle {
        Some(bundle) => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
                let certificate = certificate.map_err(|_| EndpointError::CaBundle)?;
                roots.add(certificate).map_err(|_| EndpointError::CaBundle)?;
            }
            if roots.is_empty() {
                return Err(EndpointError::CaBundle);
            }
            roots
        }
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| EndpointError::Tls(error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
