//! One delivery attempt: a signed request, and what its response means.
//!
//! Only the status code of the response counts. Its body is read, up to a bound, so that the connection can be reused; it
//! is neither stored nor logged, since it may contain anything. Redirects are not followed: they would lead to an
//! address that the spec does not name.

pub mod connect;
mod connection;
pub mod resolve;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use jiff::Timestamp;
use rustls::ClientConfig;
use thiserror::Error as ThisError;

use self::connect::{ConnectError, Connector};
use self::connection::{Connection, RequestError};
use self::resolve::Resolve;
use tokenward_core::outbox::destination::AddressPolicy;
use tokenward_core::outbox::payload::Message;
use tokenward_core::outbox::retry::{Failure, Outcome, classify_response};
use tokenward_core::outbox::signature::SigningKeys;
use tokenward_runtime::sync::lock;
use tokenward_runtime::tls::authorities_of;

/// How much of a response body is read, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long an idle connection stays open for the next event.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const USER_AGENT_VALUE: HeaderValue =
    HeaderValue::from_static(concat!("tokenward/", env!("CARGO_PKG_VERSION")));
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Where events are sent. Its Debug shows no URL, which may be a secret.
pub struct Endpoint {
    connector: Connector,
    /// Open connections for the next events, the most recently used one last.
    idle: Mutex<Vec<Connection>>,
    uri: Uri,
    /// The request target: path and query of `uri`.
    path: Uri,
    /// The header `host`, without the default port of the scheme.
    host: HeaderValue,
    timeout: Duration,
    ca_bundle: Option<String>,
    /// Whether the URL is from a Secret. Then no failure tells anything of the host.
    is_secret: bool,
}

/// Why an endpoint cannot be used. Contains nothing of the URL, which may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum EndpointError {
    #[error("the URL must be an absolute http or https URL without user name or password")]
    Url,
    #[error("spec.delivery.caBundle contains no certificate in PEM")]
    CaBundle,
    #[error("TLS can't be set up: {0}")]
    Tls(String),
}

impl Endpoint {
    /// Checks the URL and the CA bundle. Nothing is resolved or sent yet.
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
        let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let is_default = matches!(
            (uri.scheme_str(), uri.port_u16()),
            (Some("http"), Some(80)) | (Some("https"), Some(443))
        );
        let host = if is_default { authority.host() } else { authority.as_str() };
        Ok(Self {
            connector: Connector::new(policy, tls(ca_bundle)?, resolve),
            idle: Mutex::default(),
            path: path.into(),
            host: HeaderValue::from_str(host).map_err(|_| EndpointError::Url)?,
            uri,
            timeout,
            ca_bundle: ca_bundle.map(str::to_owned),
            is_secret: false,
        })
    }

    /// Keeps all that is known of the host out of failures, which conditions and Events show.
    pub fn with_secret_url(self) -> Self {
        Self { is_secret: true, ..self }
    }

    /// Closes the connections that have been idle for too long.
    pub fn close_idle(&self) {
        self.idle().retain(|connection| connection.idle() < IDLE_TIMEOUT);
    }

    /// Whether requests go to the same URL in the same way, so that connections of the one can be used for the other.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.uri, self.timeout, &self.ca_bundle, self.is_secret)
            == (&other.uri, other.timeout, &other.ca_bundle, other.is_secret)
    }

    /// Makes one attempt to deliver an event.
    pub async fn send(&self, message: &Message, namespace: &str, keys: &SigningKeys) -> Outcome {
        let Some(request) = self.request(message, namespace, keys) else {
            return Outcome::Failed(Failure::new("InvalidRequest", "the event makes no valid request"));
        };
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let message = format!("no complete response within {} s", self.timeout.as_secs_f64());
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
        let signature = keys.sign(&message.id, timestamp, &body);
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = HeaderMap::from_iter([
            (HOST, self.host.clone()),
            (CONTENT_TYPE, JSON),
            (USER_AGENT, USER_AGENT_VALUE),
            (WEBHOOK_ID, HeaderValue::from_str(&message.id).ok()?),
            (WEBHOOK_TIMESTAMP, timestamp.into()),
            (WEBHOOK_SIGNATURE, signature.try_into().ok()?),
        ]);
        Some(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Outcome {
        let (mut connection, response) = match self.send_request(request).await {
            Ok(sent) => sent,
            Err(failure) => return Outcome::Failed(failure),
        };
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let outcome = classify_response(response.status().as_u16(), retry_after, Timestamp::now());
        if connection.finish(response, MAX_BODY_BYTES).await {
            self.idle().push(connection);
        }
        outcome
    }

    /// Sends the request over an idle connection, or else over a new one.
    ///
    /// A server may close an idle connection just as a request goes out on it. If it did so without a byte of a
    /// response, the request is sent once more, over a new connection: delivery is at least once, and `webhook-id` stays
    /// the same. A response that is incomplete or invalid is a failure, and the request is not sent again.
    async fn send_request(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Connection, Response<Incoming>), Failure> {
        while let Some(mut connection) = self.take_idle() {
            match connection.request(request.clone()).await {
                Ok(response) => return Ok((connection, response)),
                // The next idle connection may work.
                Err(RequestError::NotSent) => {}
                Err(RequestError::NoResponse) => break,
                Err(RequestError::InvalidResponse) => return Err(no_response()),
            }
        }
        let stream = self.connector.connect(&self.uri).await.map_err(|error| self.no_connection(&error))?;
        let mut connection = Connection::over(stream).await.map_err(|_| no_response())?;
        let response = connection.request(request).await.map_err(|_| no_response())?;
        Ok((connection, response))
    }

    /// The failure for an error before there is a connection.
    fn no_connection(&self, error: &ConnectError) -> Failure {
        let code = match error {
            ConnectError::Url => "InvalidUrl",
            ConnectError::Resolve(_) => "NameNotResolved",
            ConnectError::Address(_) => "AddressNotAllowed",
            ConnectError::Connect(_) => "ConnectionFailed",
            ConnectError::Tls(_) => "TlsFailed",
        };
        let message = if self.is_secret { error.redacted().to_owned() } else { error.to_string() };
        Failure::new(code, message)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle();
        std::iter::from_fn(|| idle.pop()).find_map(|mut connection| {
            (connection.idle() < IDLE_TIMEOUT && connection.is_open()).then_some(connection)
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        lock(&self.idle)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint(redacted, {:?})", self.timeout)
    }
}

/// Contains nothing of what the server sent, since conditions and Events show it.
fn no_response() -> Failure {
    Failure::new("NoResponse", "the connection ended without a complete HTTP response")
}

fn tls(ca_bundle: Option<&str>) -> Result<Arc<ClientConfig>, EndpointError> {
    let roots = match ca_bundle {
        Some(bundle) => authorities_of(bundle.as_bytes()).map_err(|_| EndpointError::CaBundle)?,
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
