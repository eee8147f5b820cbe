//! `POST /v1/verify` and `/v1/verify:batch`: checks as JSON, for services that need the reason of a denial.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::HttpResponse;
use super::authenticated::Handler;
use super::json::{self, json, parse};
use super::request_error::RequestError;
use super::resource_version::AtLeastRequest;
use super::routes::Route;
use super::schema::{CodeSchema, IpAddress, Scope};
use crate::outcome::Outcome;
use crate::snapshot::{Snapshot, TokenCheck, Unavailable};
use tokenward_core::check::{Audience, Code, Decision, Identity};
use tokenward_core::token::scope;

/// The most checks in one batch. With one scope and an audience each they have some 20 KiB, and take less than a
/// millisecond of one core.
const MAX_BATCH_CHECKS: usize = 100;
/// The largest check in bytes: 64 scopes of 128 characters, with room for the token and an audience.
const MAX_CHECK_BYTES: usize = 10 * 1024;

/// `/v1/verify`: one check.
pub(super) struct Verify;

/// `/v1/verify:batch`: several checks.
pub(super) struct VerifyBatch;

/// One check, and what must be known to make it. An unknown field is an error, because a misspelt `scopes` would require nothing.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VerifyRequest<'a> {
    /// What a client presented. Any text is accepted; one that is no token is not found.
    #[serde(borrow)]
    #[schema(value_type = String, example = "tw_…")]
    token: Cow<'a, str>,
    /// The scopes that are required, all of them. None: any valid token passes.
    #[serde(default)]
    #[schema(value_type = Vec<Scope>, max_items = 64)]
    scopes: Vec<Cow<'a, str>>,
    /// The service for which the token is presented.
    #[schema(value_type = Option<String>, min_length = 1)]
    audience: Option<Cow<'a, str>>,
    /// The client's address. Without it a token with `constraints.cidrs` is denied.
    #[schema(value_type = Option<IpAddress>)]
    client_ip: Option<IpAddr>,
    /// What the verifier must know before it decides. Without it, it decides at once, by what it knows.
    #[serde(default)]
    at_least: Option<AtLeastRequest<'a>>,
}

/// One check of a batch. An unknown field is an error, because a misspelt `scopes` would require nothing.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VerifyCheck<'a> {
    /// What a client presented. Any text is accepted; one that is no token is not found.
    #[serde(borrow)]
    #[schema(value_type = String, example = "tw_…")]
    token: Cow<'a, str>,
    /// The scopes that are required, all of them. None: any valid token passes.
    #[serde(default)]
    #[schema(value_type = Vec<Scope>, max_items = 64)]
    scopes: Vec<Cow<'a, str>>,
    /// The service for which the token is presented.
    #[schema(value_type = Option<String>, min_length = 1)]
    audience: Option<Cow<'a, str>>,
    /// The client's address. Without it a token with `constraints.cidrs` is denied.
    #[schema(value_type = Option<IpAddress>)]
    client_ip: Option<IpAddr>,
}

/// The result of one check.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerifyResponse {
    /// Whether the token is valid and meets all that the check requires.
    valid: bool,
    /// Why it is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<CodeSchema>)]
    code: Option<Code>,
    /// The identity of the token, if it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<VerifiedToken>,
}

/// The identity of a valid token.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerifiedToken {
    /// `status.tokenId` of the ApiToken: the same over all rotations.
    id: String,
    /// The ApiToken's namespace.
    namespace: String,
    /// The ApiToken's name.
    name: String,
    /// The id of the secret that was presented, as in `status.versions`.
    key_id: String,
    /// The scopes that the token has now.
    scopes: Vec<String>,
    /// The services for which the token is meant; empty: any.
    audiences: Vec<String>,
    /// When this secret was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    issued_at: Option<Timestamp>,
    /// When this secret stops working: at the token's expiry, or at the end of its overlap if it has been replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    expires_at: Option<Timestamp>,
}

/// Several checks in one request.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VerifyBatchRequest<'a> {
    /// The checks, 1 to 100.
    #[serde(borrow)]
    #[schema(value_type = Vec<VerifyCheck>, min_items = 1, max_items = 100)]
    checks: Vec<VerifyCheck<'a>>,
    /// What the verifier must know before it decides any of them. Without it, it decides at once, by what it knows.
    #[serde(default)]
    at_least: Option<AtLeastRequest<'a>>,
}

/// The results of several checks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerifyBatchResponse {
    /// One result for each check, in the same order.
    results: Vec<VerifyResponse>,
}

/// Why there is no result.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerifyError {
    /// An error code, for programs.
    #[schema(value_type = String, example = "invalid_request")]
    pub(super) error: &'static str,
    /// An explanation, for people.
    #[schema(value_type = String)]
    pub(super) message: Cow<'static, str>,
}

impl Handler for Verify {
    const NAME: &'static str = "verify";
    const ROUTE: Route = Route::Verify;
    const MEDIA_TYPE: &'static str = json::MEDIA_TYPE;
    const MAX_BODY_BYTES: usize = 32 * 1024;

    type Request = VerifyRequest<'static>;
    type Response = VerifyResponse;
    type Error = VerifyError;

    fn respond(
        snapshot: &Snapshot,
        body: &[u8],
        report: &mut dyn FnMut(Outcome),
    ) -> Result<HttpResponse, RequestError> {
        let VerifyRequest { token, scopes, audience, client_ip, at_least } = parse(body)?;
        let check = VerifyCheck { token, scopes, audience, client_ip };
        check.validate("")?;
        snapshot.knows(at_least.unwrap_or_default().parse()?, [&*check.token])?;
        Ok(json(&check.decide(snapshot, report)?))
    }

    fn error_body(error: &RequestError) -> VerifyError {
        error.into()
    }
}

impl Handler for VerifyBatch {
    const NAME: &'static str = "verify_batch";
    const ROUTE: Route = Route::VerifyBatch;
    const MEDIA_TYPE: &'static str = json::MEDIA_TYPE;
    const MAX_BODY_BYTES: usize = MAX_BATCH_CHECKS * MAX_CHECK_BYTES;

    type Request = VerifyBatchRequest<'static>;
    type Response = VerifyBatchResponse;
    type Error = VerifyError;

    fn respond(
        snapshot: &Snapshot,
        body: &[u8],
        report: &mut dyn FnMut(Outcome),
    ) -> Result<HttpResponse, RequestError> {
        let VerifyBatchRequest { checks, at_least } = parse(body)?;
        if !(1..=MAX_BATCH_CHECKS).contains(&checks.len()) {
            return Err(RequestError::Malformed(
                format!("checks must contain 1 to {MAX_BATCH_CHECKS} checks, not {}", checks.len()).into(),
            ));
        }
        for (position, check) in checks.iter().enumerate() {
            check.validate(&format!("checks[{position}]."))?;
        }
        snapshot.knows(at_least.unwrap_or_default().parse()?, checks.iter().map(|check| &*check.token))?;
        let results = checks.iter().map(|check| check.decide(snapshot, report));
        Ok(json(&VerifyBatchResponse { results: results.collect::<Result<_, Unavailable>>()? }))
    }

    fn error_body(error: &RequestError) -> VerifyError {
        error.into()
    }
}

impl VerifyCheck<'_> {
    /// `field` is the JSON path of this check, with a dot at its end.
    fn validate(&self, field: &str) -> Result<(), RequestError> {
        if self.audience.as_deref() == Some("") {
            let why = format!("{field}audience is empty: leave it out, or name one");
            return Err(RequestError::Malformed(why.into()));
        }
        scope::validate(&self.scopes)
            .map_err(|error| RequestError::Malformed(format!("{field}scopes: {error}").into()))
    }

    fn decide(
        &self,
        snapshot: &Snapshot,
        report: &mut dyn FnMut(Outcome),
    ) -> Result<VerifyResponse, Unavailable> {
        let scopes: Vec<&str> = self.scopes.iter().map(AsRef::as_ref).collect();
        let check = TokenCheck {
            presented: self.token.as_bytes(),
            scopes: &scopes,
            audience: Audience::of(self.audience.as_deref()),
            client: self.client_ip.map(|address| address.to_canonical()),
        };
        snapshot.decide(&check, |decision| {
            report(Outcome::from(&decision));
            match decision {
                Decision::Allow(identity) => {
                    VerifyResponse { valid: true, code: None, token: Some(identity.into()) }
                }
                Decision::Deny(code) => VerifyResponse { valid: false, code: Some(code), token: None },
            }
        })
    }
}

impl From<Identity<'_>> for VerifiedToken {
    fn from(identity: Identity<'_>) -> Self {
        let entry = identity.entry;
        Self {
            id: entry.token_id().to_owned(),
            namespace: entry.namespace().to_owned(),
            name: entry.name().to_owned(),
            key_id: identity.key_id.to_string(),
            scopes: identity.each_scope().map(str::to_owned).collect(),
            audiences: identity.audiences().iter().map(ToString::to_string).collect(),
            issued_at: identity.issued_at(),
            expires_at: identity.ends_at(),
        }
    }
}

impl From<&RequestError> for VerifyError {
    fn from(error: &RequestError) -> Self {
        Self { error: error.code(), message: error.message() }
    }
}
