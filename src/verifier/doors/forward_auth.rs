//! `ANY /auth`: the question that a gateway asks for a request that it is about to forward.
//!
//! What nginx calls `auth_request`, Traefik ForwardAuth, Caddy `forward_auth` and Envoy an HTTP authorization
//! service. The gateway passes the client's headers on, the operator of the gateway puts into the query what the
//! route needs. Tokens are presented as RFC 6750 section 2.1 has it, or in `X-API-Key`; never in the query, which
//! ends up in logs. Refusals follow RFC 6750 section 3.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;

use super::super::metrics::{DoorMetrics, Metrics, Outcome};
use super::super::view::{Question, Unavailable, View};
use super::Answer;
use super::client_address::TrustedProxies;
use super::credentials::{NoToken, presented};
use crate::check::{Code, Decision, Identity};
use crate::token::scope::{MAX_SCOPES, is_scope};

const ID: HeaderName = HeaderName::from_static("x-tokenward-id");
const SUBJECT: HeaderName = HeaderName::from_static("x-tokenward-subject");
const SCOPES: HeaderName = HeaderName::from_static("x-tokenward-scopes");

/// The door.
pub(super) struct ForwardAuth {
    view: Arc<View>,
    trusted_proxies: TrustedProxies,
    metrics: DoorMetrics,
}

/// Why a request can't be answered with a decision.
pub(super) enum Refusal {
    /// 400: it breaks the protocol; says how.
    Malformed(Cow<'static, str>),
    /// 401: it presents nothing.
    NoToken,
    /// 503: there is nothing to answer from.
    Unavailable(Unavailable),
}

impl From<NoToken> for Refusal {
    fn from(no_token: NoToken) -> Self {
        match no_token {
            NoToken::Missing => Self::NoToken,
            NoToken::Ambiguous(what) => Self::Malformed(what.into()),
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable)
    }
}

impl Refusal {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Malformed(_) => Outcome::Malformed,
            Self::NoToken => Outcome::NoToken,
            Self::Unavailable(_) => Outcome::Unavailable,
        }
    }
}

/// What the route needs, as the gateway's operator says it.
#[derive(Debug, Default)]
pub(super) struct Needs<'q> {
    pub(super) scopes: Vec<Cow<'q, str>>,
    pub(super) audience: Option<Cow<'q, str>>,
}

impl ForwardAuth {
    pub(super) fn new(view: Arc<View>, trusted_proxies: TrustedProxies, metrics: &Metrics) -> Self {
        Self { view, trusted_proxies, metrics: metrics.door("auth") }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Answer {
        let began = Instant::now();
        let answer = self.check(request, peer).unwrap_or_else(|refusal| self.refuse(&refusal));
        self.metrics.took(began.elapsed());
        answer
    }

    fn check<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<Answer, Refusal> {
        // Below /auth/ a gateway has put the client's own path and query: what is unknown there is not ours.
        let ours = request.uri().path() == "/auth";
        let needs = needs(request.uri().query().unwrap_or_default(), ours)?;
        let scopes: Vec<&str> = needs.scopes.iter().map(AsRef::as_ref).collect();
        let question = Question {
            presented: presented(request.headers())?,
            scopes: &scopes,
            audience: needs.audience.as_deref(),
            client: self.trusted_proxies.client(request.headers(), peer),
        };
        let answer = self.view.decide(&question, |decision| match decision {
            Decision::Allow(identity) => self.allow(identity),
            Decision::Deny(code) => self.deny(code, &needs),
        });
        Ok(answer?)
    }

    fn allow(&self, identity: Identity<'_>) -> Answer {
        self.metrics.count(Outcome::Allowed);
        let mut answer = Response::new(Full::default());
        let headers = answer.headers_mut();
        insert_identity(headers, identity);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    fn deny(&self, code: Code, needs: &Needs<'_>) -> Answer {
        self.metrics.count(Outcome::Denied(code));
        denial(code, needs)
    }

    fn refuse(&self, refusal: &Refusal) -> Answer {
        self.metrics.count(refusal.outcome());
        refused(refusal)
    }
}

/// Tells the service behind the gateway whose request it has.
pub(super) fn insert_identity(headers: &mut HeaderMap, identity: Identity<'_>) {
    let entry = identity.entry;
    for (name, value) in [(ID, entry.token_id()), (SUBJECT, entry.subject()), (SCOPES, identity.scopes())] {
        // Names, ids and scopes are ASCII by the API server's rules; a value that is not is left out.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
}

/// The answer to a token that is not valid for what is asked.
pub(super) fn denial(code: Code, needs: &Needs<'_>) -> Answer {
    match code {
        Code::InsufficientScope => {
            let scopes = needs.scopes.join(" ");
            let challenge =
                format!(r#"Bearer realm="tokenward", error="insufficient_scope", scope="{scopes}""#);
            answer(
                StatusCode::FORBIDDEN,
                Some(&challenge),
                "insufficient_scope",
                "the token lacks a scope that this needs",
            )
        }
        Code::IpNotAllowed => answer(
            StatusCode::FORBIDDEN,
            None,
            "ip_not_allowed",
            "the token may not be used from this address",
        ),
        // One answer for all of these, made beforehand: whether a token was revoked or never existed is not told.
        Code::NotFound
        | Code::Revoked
        | Code::Expired
        | Code::Suspended
        | Code::Retired
        | Code::AudienceMismatch => answer_with(
            StatusCode::UNAUTHORIZED,
            Some(HeaderValue::from_static(r#"Bearer realm="tokenward", error="invalid_token""#)),
            Bytes::from_static(br#"{"error":"invalid_token","message":"the token is not valid"}"#),
        ),
    }
}

/// The answer to a request that can't be decided on.
pub(super) fn refused(refusal: &Refusal) -> Answer {
    match refusal {
        Refusal::Malformed(what) => answer(
            StatusCode::BAD_REQUEST,
            Some(r#"Bearer realm="tokenward", error="invalid_request""#),
            "invalid_request",
            what,
        ),
        Refusal::NoToken => answer(
            StatusCode::UNAUTHORIZED,
            Some(r#"Bearer realm="tokenward""#),
            "no_token",
            "present a token as Authorization: Bearer, or as X-API-Key",
        ),
        Refusal::Unavailable(why) => {
            let mut answer = answer(StatusCode::SERVICE_UNAVAILABLE, None, why.error(), why.message());
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            answer
        }
    }
}

/// Reads what the route needs. `strict`: the query is all ours, so an unknown parameter is a mistake, and one that
/// would leave a route open.
fn needs(query: &str, strict: bool) -> Result<Needs<'_>, Refusal> {
    if query.is_empty() {
        return Ok(Needs::default());
    }
    read_needs(form_urlencoded::parse(query.as_bytes()), strict)
}

/// The same from parameters that were decoded already.
pub(super) fn read_needs<'q>(
    parameters: impl IntoIterator<Item = (Cow<'q, str>, Cow<'q, str>)>,
    strict: bool,
) -> Result<Needs<'q>, Refusal> {
    let mut needs = Needs::default();
    for (name, value) in parameters {
        match &*name {
            "scope" => {
                let scopes: Vec<&str> = value.split_ascii_whitespace().collect();
                if scopes.is_empty() {
                    return Err(Refusal::Malformed("scope is empty: leave it out, or name one".into()));
                }
                if let Some(bad) = scopes.iter().find(|scope| !is_scope(scope)) {
                    let bad: String = bad.chars().take(64).collect();
                    return Err(Refusal::Malformed(format!("scope {bad:?} is not resource:action").into()));
                }
                needs.scopes.extend(scopes.into_iter().map(|scope| Cow::Owned(scope.to_owned())));
                if needs.scopes.len() > MAX_SCOPES {
                    return Err(Refusal::Malformed("more than 64 scopes".into()));
                }
            }
            "audience" if needs.audience.is_some() => {
                return Err(Refusal::Malformed("more than one audience".into()));
            }
            "audience" => needs.audience = Some(value),
            _ if strict => {
                let name: String = name.chars().take(64).collect();
                return Err(Refusal::Malformed(
                    format!("unknown parameter {name:?}: there are scope and audience").into(),
                ));
            }
            _ => {}
        }
    }
    Ok(needs)
}

fn answer(status: StatusCode, challenge: Option<&str>, error: &str, message: &str) -> Answer {
    let body = serde_json::json!({ "error": error, "message": message }).to_string();
    answer_with(status, challenge.and_then(|text| HeaderValue::from_str(text).ok()), body.into())
}

fn answer_with(status: StatusCode, challenge: Option<HeaderValue>, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(challenge) = challenge {
        headers.insert(WWW_AUTHENTICATE, challenge);
    }
    answer
}

#[cfg(test)]
mod tests;
