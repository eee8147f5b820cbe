//! `ANY /auth`: the question that a gateway asks for a request that it is about to forward.
//!
//! What nginx calls `auth_request`, Traefik ForwardAuth, Caddy `forward_auth` and Envoy an HTTP authorization
//! service. The gateway passes the client's headers on, the operator of the gateway puts into the query what the
//! route needs. Tokens are presented as RFC 6750 section 2.1 has it, or in `X-API-Key`; never in the query, which
//! ends up in logs. Refusals follow RFC 6750 section 3.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use ipnet::IpNet;
use jiff::Timestamp;

use super::super::View;
use super::super::metrics::{DoorMetrics, Metrics};
use super::Answer;
use crate::check::{self, Code, Decision, Identity, decide};
use crate::token::Token;
use crate::token::scope::{MAX_SCOPES, is_scope};

const BEARER: &[u8] = b"Bearer";
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const ID: HeaderName = HeaderName::from_static("x-tokenward-id");
const SUBJECT: HeaderName = HeaderName::from_static("x-tokenward-subject");
const SCOPES: HeaderName = HeaderName::from_static("x-tokenward-scopes");

/// The door.
pub(super) struct ForwardAuth {
    view: Arc<View>,
    trusted_proxies: Vec<IpNet>,
    metrics: DoorMetrics,
}

/// Why a request can't be answered with a decision.
enum Refusal {
    /// 400: it breaks the protocol; says how.
    Malformed(Cow<'static, str>),
    /// 401: it presents nothing.
    NoToken,
    /// 503: nothing is known yet.
    NotReady,
}

/// What the route needs, as the query says it.
#[derive(Debug, Default)]
struct Needs<'q> {
    scopes: Vec<Cow<'q, str>>,
    audience: Option<Cow<'q, str>>,
}

impl ForwardAuth {
    pub(super) fn new(view: Arc<View>, trusted_proxies: Vec<IpNet>, metrics: &Metrics) -> Self {
        Self { view, trusted_proxies, metrics: metrics.door("auth") }
    }

    pub(super) fn answer<B>(&self, request: &Request<B>, peer: IpAddr) -> Answer {
        self.check(request, peer).unwrap_or_else(|refusal| self.refuse(&refusal))
    }

    fn check<B>(&self, request: &Request<B>, peer: IpAddr) -> Result<Answer, Refusal> {
        // Below /auth/ a gateway has put the client's own path and query: what is unknown there is not ours.
        let ours = request.uri().path() == "/auth";
        let needs = needs(request.uri().query().unwrap_or_default(), ours)?;
        let presented = presented(request.headers())?;
        let peppers = self.view.peppers.load();
        let peppers = peppers.as_deref().filter(|_| self.view.is_listed()).ok_or(Refusal::NotReady)?;
        let Some(token) = std::str::from_utf8(presented).ok().and_then(Token::parse) else {
            return Ok(self.deny(Code::NotFound, &needs));
        };
        let scopes: Vec<&str> = needs.scopes.iter().map(AsRef::as_ref).collect();
        let question = check::Request {
            token,
            scopes: &scopes,
            audience: needs.audience.as_deref(),
            client: self.client(request.headers(), peer),
        };
        let now = Timestamp::now();
        Ok(self.view.index.claimants(token.key_id(), |claimants| {
            match decide(claimants, peppers, &question, now) {
                Decision::Allow(identity) => self.allow(identity),
                Decision::Deny(code) => self.deny(code, &needs),
            }
        }))
    }

    /// The client's address: the peer's, or what trusted proxies say in front of it, read from the right.
    ///
    /// `None`: a proxy of ours passed on what can't be read. That is nobody's address, and least of all the
    /// proxy's own, which may be in a network that the client is not in.
    fn client(&self, headers: &HeaderMap, peer: IpAddr) -> Option<IpAddr> {
        let trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|network| network.contains(address));
        let mut client = peer;
        // As bytes: what a client puts in front may be no text, and must not hide what a proxy added to it.
        let values = headers.get_all(FORWARDED_FOR).iter().rev().map(HeaderValue::as_bytes);
        let mut hops = values.flat_map(|value| value.rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        while trusted(&client) {
            match hops.find(|hop| !hop.is_empty()) {
                Some(hop) => client = address(hop)?,
                None => break,
            }
        }
        Some(client)
    }

    fn allow(&self, identity: Identity<'_>) -> Answer {
        self.metrics.allowed();
        let entry = identity.entry;
        let mut answer = Response::new(Full::default());
        let headers = answer.headers_mut();
        for (name, value) in [(ID, entry.token_id()), (SUBJECT, entry.subject()), (SCOPES, identity.scopes())]
        {
            // Names, ids and scopes are ASCII by the API server's rules; a value that is not is left out.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        answer
    }

    fn deny(&self, code: Code, needs: &Needs<'_>) -> Answer {
        self.metrics.denied(code);
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

    fn refuse(&self, refusal: &Refusal) -> Answer {
        self.metrics.malformed();
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
            Refusal::NotReady => {
                let mut answer = answer(
                    StatusCode::SERVICE_UNAVAILABLE,
                    None,
                    "not_ready",
                    "the tokens are not known yet",
                );
                answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                answer
            }
        }
    }
}

/// What a request presents as its token. It may be no text at all: that is junk like any other.
fn presented(headers: &HeaderMap) -> Result<&[u8], Refusal> {
    let bearer = single(headers, AUTHORIZATION, "more than one Authorization header")?;
    // Another scheme is for somebody behind the gateway.
    let bearer = bearer.and_then(|value| credentials(value.as_bytes()));
    let api_key = single(headers, API_KEY, "more than one X-API-Key header")?;
    let api_key = api_key.map(|value| value.as_bytes().trim_ascii());
    match (bearer, api_key) {
        (None, None) => Err(Refusal::NoToken),
        (Some(token), None) | (None, Some(token)) => Ok(token),
        (Some(bearer), Some(api_key)) if bearer == api_key => Ok(bearer),
        // RFC 6750 section 2: a client must not use more than one way in a request.
        (Some(_), Some(_)) => {
            Err(Refusal::Malformed("Authorization and X-API-Key present different tokens".into()))
        }
    }
}

fn single<'h>(
    headers: &'h HeaderMap,
    name: HeaderName,
    otherwise: &'static str,
) -> Result<Option<&'h HeaderValue>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() { Err(Refusal::Malformed(otherwise.into())) } else { Ok(first) }
}

/// The credentials of the Bearer scheme, whose name is not case-sensitive (RFC 9110 section 11.1).
fn credentials(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.trim_ascii().split_at_checked(BEARER.len())?;
    let bearer = scheme.eq_ignore_ascii_case(BEARER) && rest.first().is_none_or(|byte| *byte == b' ');
    bearer.then(|| rest.trim_ascii())
}

/// A hop of X-Forwarded-For. Some proxies write the port too, and RFC 3986 brackets around IPv6.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = std::str::from_utf8(hop).ok()?;
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().or_else(|_| hop.parse::<SocketAddr>().map(|address| address.ip()));
    Some(address.ok()?.to_canonical())
}

/// Reads what the route needs. `strict`: the query is all ours, so an unknown parameter is a mistake, and one that
/// would leave a route open.
fn needs(query: &str, strict: bool) -> Result<Needs<'_>, Refusal> {
    let mut needs = Needs::default();
    if query.is_empty() {
        return Ok(needs);
    }
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
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
pub(in crate::verifier) mod tests;
