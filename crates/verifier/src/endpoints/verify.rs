//! `POST /v1/verify` and `/v1/verify:batch`: the check as JSON, for services that want to know why.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Answer;
use super::authenticated::{Failure, Handler};
use super::json::{json, parse};
use super::schema::{CodeSchema, IpAddress, Scope};
use crate::metrics::Outcome;
use crate::snapshot::{Snapshot, TokenCheck, Unavailable};
use tokenward_core::check::{Code, Decision, Identity};
use tokenward_core::token::scope;

/// The most checks in one batch.
pub(super) const MAX_BATCH: usize = 100;

/// The endpoint for one check.
pub(super) struct Verify;

/// The endpoint for many.
pub(super) struct VerifyBatch;

/// One check. An unknown field is refused: a misspelt `scopes` would ask for nothing.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VerifyRequest<'a> {
    /// What a client presented. Junk is a token that is not found.
    #[serde(borrow)]
    #[schema(value_type = String, example = "tw_…")]
    token: Cow<'a, str>,
    /// The scopes that are needed, all of them. None: any valid token will do.
    #[serde(default)]
    #[schema(value_type = Vec<Scope>, max_items = 64)]
    scopes: Vec<Cow<'a, str>>,
    /// The service for which the token is presented.
    #[schema(value_type = Option<String>)]
    audience: Option<Cow<'a, str>>,
    /// The client's address. Without it a token with `constraints.cidrs` is denied.
    #[schema(value_type = Option<IpAddress>)]
    client_ip: Option<IpAddr>,
}

/// The answer to one check.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct VerifyResponse {
    /// Whether the token is valid for all that was asked.
    valid: bool,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<CodeSchema>)]
    code: Option<Code>,
    /// Whose it is, if it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token: Option<VerifiedToken>,
}

/// A valid token.
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
    /// The scopes that it has now.
    scopes: Vec<String>,
    /// The services that it is meant for; empty: any.
    audiences: Vec<String>,
    /// When this secret was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    issued_at: Option<Timestamp>,
    /// When it ends as things stand: at the token's expiry, or where it has been replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime, nullable = false)]
    expires_at: Option<Timestamp>,
}

/// Several checks.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyBatchRequest<'a> {
    /// The checks, 1 to 100.
    #[serde(borrow)]
    #[schema(value_type = Vec<VerifyRequest>, min_items = 1, max_items = 100)]
    checks: Vec<VerifyRequest<'a>>,
}

/// Their answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerifyBatchResponse {
    /// One for each check, in their order.
    results: Vec<VerifyResponse>,
}

/// Why there is no answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerifyError {
    /// A word for machines.
    #[schema(value_type = String, example = "invalid_request")]
    pub(super) error: &'static str,
    /// A sentence for people.
    #[schema(value_type = String)]
    pub(super) message: Cow<'static, str>,
}

impl Handler for Verify {
    const NAME: &'static str = "verify";
    const NON_RESOURCE_URL: &'static str = "/v1/verify";
    const MEDIA_TYPE: &'static str = "application/json";
    const MAX_BODY: usize = 32 * 1024;

    fn answer(
        snapshot: &Snapshot,
        body: &[u8],
        outcomes: &mut dyn FnMut(Outcome),
    ) -> Result<Answer, Failure> {
        let request: VerifyRequest<'_> = parse(body)?;
        request.validate("")?;
        Ok(json(&request.decide(snapshot, outcomes)?))
    }

    fn failure(failure: &Failure) -> Answer {
        json(&VerifyError::from(failure))
    }
}

impl Handler for VerifyBatch {
    const NAME: &'static str = "verify_batch";
    const NON_RESOURCE_URL: &'static str = Verify::NON_RESOURCE_URL;
    const MEDIA_TYPE: &'static str = Verify::MEDIA_TYPE;
    const MAX_BODY: usize = MAX_BATCH * 10 * 1024;

    fn answer(
        snapshot: &Snapshot,
        body: &[u8],
        outcomes: &mut dyn FnMut(Outcome),
    ) -> Result<Answer, Failure> {
        let VerifyBatchRequest { checks } = parse(body)?;
        if !(1..=MAX_BATCH).contains(&checks.len()) {
            return Err(Failure::Malformed(
                format!("checks must hold 1 to {MAX_BATCH} of them, not {}", checks.len()).into(),
            ));
        }
        for (position, check) in checks.iter().enumerate() {
            check.validate(&format!("checks[{position}]."))?;
        }
        let results = checks.iter().map(|check| check.decide(snapshot, outcomes));
        Ok(json(&VerifyBatchResponse { results: results.collect::<Result<_, Unavailable>>()? }))
    }

    fn failure(failure: &Failure) -> Answer {
        json(&VerifyError::from(failure))
    }
}

impl VerifyRequest<'_> {
    fn validate(&self, place: &str) -> Result<(), Failure> {
        scope::validate(&self.scopes)
            .map_err(|error| Failure::Malformed(format!("{place}scopes: {error}").into()))
    }

    fn decide(
        &self,
        snapshot: &Snapshot,
        outcomes: &mut dyn FnMut(Outcome),
    ) -> Result<VerifyResponse, Unavailable> {
        let scopes: Vec<&str> = self.scopes.iter().map(AsRef::as_ref).collect();
        let check = TokenCheck {
            presented: self.token.as_bytes(),
            scopes: &scopes,
            audience: self.audience.as_deref(),
            client: self.client_ip.map(|address| address.to_canonical()),
        };
        snapshot.decide(&check, |decision| {
            outcomes(Outcome::from(&decision));
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

impl From<&Failure> for VerifyError {
    fn from(failure: &Failure) -> Self {
        Self { error: failure.error(), message: failure.message() }
    }
}
