//! What the endpoints that say why have in common: an authenticated caller, a POST, a bounded body.
//!
//! In that order: nobody makes us read a body who may not ask.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Buf};
use zeroize::Zeroizing;

use super::Answer;
use crate::caller_auth::{CallerAuthenticator, Refused};
use crate::metrics::{EndpointMetrics, Metrics, Outcome};
use crate::snapshot::{Snapshot, Unavailable};

/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(5);

/// A protocol behind [`Authenticated`]: from a snapshot and a body to a response.
pub(super) trait Handler {
    /// Its name in metrics.
    const NAME: &'static str;
    /// The path by which the API server is asked whether a caller may use it.
    const NON_RESOURCE_URL: &'static str;
    /// The media type of its requests.
    const MEDIA_TYPE: &'static str;
    /// The largest body, in bytes.
    const MAX_BODY: usize;

    /// Responds to a request, and reports the outcome of each check in it.
    fn answer(snapshot: &Snapshot, body: &[u8], outcomes: &mut dyn FnMut(Outcome))
    -> Result<Answer, Failure>;

    /// The body of a failure, in the protocol's own form.
    fn failure(failure: &Failure) -> Answer;
}

/// Why an endpoint returns no decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The body breaks the protocol; says how.
    Malformed(Cow<'static, str>),
    /// Not a POST.
    Method,
    /// Not of this media type.
    MediaType(&'static str),
    /// A body of more than so many bytes.
    TooLarge(usize),
    /// A body that did not come to its end.
    Incomplete,
    /// The caller may not ask.
    Caller(Refused),
    /// There is nothing to answer from.
    Unavailable(Unavailable),
}

/// An endpoint whose callers authenticate.
pub(super) struct Authenticated<D> {
    snapshot: Arc<Snapshot>,
    callers: Arc<CallerAuthenticator>,
    metrics: EndpointMetrics,
    endpoint: PhantomData<D>,
}

impl<D: Handler> Authenticated<D> {
    pub(super) fn new(snapshot: Arc<Snapshot>, callers: Arc<CallerAuthenticator>, metrics: &Metrics) -> Self {
        Self { snapshot, callers, metrics: metrics.endpoint(D::NAME), endpoint: PhantomData }
    }

    pub(super) async fn answer<B: Body + Unpin>(
        &self,
        request: &mut Request<B>,
        caller: Option<IpAddr>,
    ) -> Answer {
        let began = Instant::now();
        let answer = match self.try_answer(request, caller).await {
            Ok(answer) => answer,
            Err(failure) => {
                self.metrics.count(failure.outcome());
                refuse::<D>(&failure)
            }
        };
        self.metrics.took(began.elapsed());
        answer
    }

    async fn try_answer<B: Body + Unpin>(
        &self,
        request: &mut Request<B>,
        caller: Option<IpAddr>,
    ) -> Result<Answer, Failure> {
        if request.method() != Method::POST {
            return Err(Failure::Method);
        }
        self.callers.admit(request.headers(), caller, D::NON_RESOURCE_URL).await?;
        if !is_media_type(request.headers(), D::MEDIA_TYPE) {
            return Err(Failure::MediaType(D::MEDIA_TYPE));
        }
        let body = tokio::time::timeout(BODY_TIME, read(request.body_mut(), D::MAX_BODY))
            .await
            .unwrap_or(Err(Failure::Incomplete))?;
        D::answer(&self.snapshot, &body, &mut |outcome| self.metrics.count(outcome))
    }
}

fn refuse<D: Handler>(failure: &Failure) -> Answer {
    let mut answer = D::failure(failure);
    *answer.status_mut() = failure.status();
    if let Some((name, value)) = failure.header() {
        answer.headers_mut().insert(name, value);
    }
    answer
}

impl Failure {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Incomplete => StatusCode::REQUEST_TIMEOUT,
            Self::Caller(Refused::Unauthenticated(_)) => StatusCode::UNAUTHORIZED,
            Self::Caller(Refused::Forbidden(_)) => StatusCode::FORBIDDEN,
            Self::Caller(Refused::Unavailable(_)) | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for machines.
    pub(super) fn error(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Method | Self::MediaType(_) | Self::TooLarge(_) | Self::Incomplete => {
                "invalid_request"
            }
            Self::Caller(Refused::Unauthenticated(_)) => "unauthenticated",
            Self::Caller(Refused::Forbidden(_)) => "forbidden",
            Self::Caller(Refused::Unavailable(_)) => "caller_unknown",
            Self::Unavailable(why) => why.error(),
        }
    }

    /// The sentence for people.
    pub(super) fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Malformed(how) => how.clone(),
            Self::Method => "only POST is answered here".into(),
            Self::MediaType(expected) => format!("the Content-Type must be {expected}").into(),
            Self::TooLarge(limit) => format!("the body is larger than {limit} bytes").into(),
            Self::Incomplete => "the body did not come to its end in time".into(),
            Self::Caller(
                Refused::Unauthenticated(why) | Refused::Forbidden(why) | Refused::Unavailable(why),
            ) => why.clone(),
            Self::Unavailable(why) => why.message().into(),
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Self::Caller(Refused::Unavailable(_)) | Self::Unavailable(_) => Outcome::Unavailable,
            Self::Caller(_) => Outcome::CallerRefused,
            _ => Outcome::Malformed,
        }
    }

    /// The header that belongs to the status (RFC 9110 sections 10.2.1, 10.2.3 and 11.6.1).
    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self.status() {
            StatusCode::METHOD_NOT_ALLOWED => Some((ALLOW, HeaderValue::from_static("POST"))),
            StatusCode::UNAUTHORIZED => {
                Some((WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="tokenward""#)))
            }
            StatusCode::SERVICE_UNAVAILABLE => Some((RETRY_AFTER, HeaderValue::from_static("1"))),
            _ => None,
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Caller(refused)
    }
}

impl From<Unavailable> for Failure {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

/// Whether a request says that its body is of a media type; parameters such as a charset are ignored.
fn is_media_type(headers: &HeaderMap, expected: &str) -> bool {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let media_type = value.split(|byte| *byte == b';').next().unwrap_or_default();
    media_type.trim_ascii().eq_ignore_ascii_case(expected.as_bytes())
}

/// Reads a body that holds tokens, so it is wiped afterwards.
async fn read<B: Body + Unpin>(body: &mut B, limit: usize) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(Failure::TooLarge(limit));
    }
    // As large as it may become: a vector that grows leaves copies behind.
    let capacity = body.size_hint().exact().map_or(limit, |_| announced);
    let mut read = Zeroizing::new(Vec::with_capacity(capacity));
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(Failure::Incomplete) };
        let Ok(mut data) = frame.into_data() else { continue };
        if data.remaining() > limit - read.len() {
            return Err(Failure::TooLarge(limit));
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            read.extend_from_slice(chunk);
            let length = chunk.len();
            data.advance(length);
        }
    }
    Ok(read)
}
