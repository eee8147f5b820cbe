//! Delegated authentication and authorization of callers, at the endpoints that give the reason of a denial.
//!
//! A caller presents a token of the audience `tokenward`: either a tokenward token with the scope `tokens:verify`, which is
//! checked in memory, or a ServiceAccount token. Kubernetes decides on the latter, unless its signature is forged
//! (`issuer_keys`): a TokenReview authenticates it, and a SubjectAccessReview authorizes its user to `post` to the endpoint's
//! path, as for every delegated server (<https://kubernetes.io/docs/reference/access-authn-authz/webhook/>). Both results are
//! cached for a short time.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use moka::Expiry;
use moka::future::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::warn;
use zeroize::Zeroizing;

use crate::authorization::{Authorization, AuthorizationError, Scheme};
use crate::issuer_keys::{IssuerKeys, Signature};
use crate::jwt::Jwt;
use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::caller::{AUDIENCE, SCOPE};
use tokenward_core::check::{Audience, Code, Decision};
use tokenward_core::token::Token;
use tokenward_runtime::cluster::{access, error};
use tokenward_runtime::sync::lock;

/// How long a caller stays allowed without another review, so for how long a deleted ServiceAccount or binding may still
/// work. Shorter than a kubelet's 2 minutes for authentication and 5 for authorization, because a verifier has few
/// callers; long enough that a busy caller costs the API server two reviews in 30 s.
const ALLOW_TTL: Duration = Duration::from_secs(30);
/// How long a caller stays denied without another review. Short, because somebody who has just created the missing binding
/// is waiting for it to work; a kubelet's is 30 s.
const DENY_TTL: Duration = Duration::from_secs(5);
/// Bounds the memory of the cache. A result has some 300 bytes, so it is about 3 MB when a flood of made-up tokens has
/// filled it. Real callers are some dozens of ServiceAccounts, with three URLs each.
const MAX_CACHED_RESULTS: u64 = 10_000;
/// Bounds the reviews in flight, so that a flood of made-up tokens takes little of the API server: this is about 1% of the
/// 600 requests that it handles at once by default. With 10 ms for a review, it still lets hundreds of new callers a second
/// in. Callers that were allowed before have as many permits of their own, so that no flood holds them up.
const MAX_CONCURRENT_REVIEWS: usize = 8;
/// For how long a caller that was allowed counts as known. A kubelet replaces a token after at most 80 % of its hour.
const KNOWN_TTL: Duration = Duration::from_secs(3600);
/// How long a caller waits for its review, including the wait for a permit. Half of the 10 s that Kubernetes gives its own
/// delegated authentication: the caller serves a request itself, whose client is waiting.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time between two warnings about failed reviews: one an attempt would let any client fill the log.
const MIN_WARN_INTERVAL: Duration = Duration::from_secs(30);

/// Why a caller may not use an endpoint. The texts are for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallerError {
    /// 401: the caller presents no valid credentials.
    Unauthenticated(Cow<'static, str>),
    /// 403: the caller is not authorized.
    Forbidden(Cow<'static, str>),
    /// 503: the caller can't be authenticated or authorized now.
    Unavailable(Cow<'static, str>),
}

/// Authenticates and authorizes callers.
pub struct CallerAuthenticator {
    snapshot: Arc<Snapshot>,
    reviewer: Option<Reviewer>,
}

impl CallerAuthenticator {
    /// Decides on tokenward tokens by a snapshot, and on ServiceAccount tokens by the cluster of a client, if there is one.
    pub fn new(snapshot: Arc<Snapshot>, client: Option<Client>) -> Self {
        Self { snapshot, reviewer: client.map(Reviewer::new) }
    }

    /// Authenticates the caller by the secret that it presents, and authorizes it to use the endpoint with this non-resource
    /// URL. `address` is the caller's, if it is known.
    pub async fn authorize(
        &self,
        secret: &str,
        address: Option<IpAddr>,
        non_resource_url: &'static str,
    ) -> Result<(), CallerError> {
        if Token::parse(secret).is_some() {
            return self.authorize_tokenward_token(secret, address);
        }
        let Some(audiences) = Jwt::parse(secret).and_then(|jwt| jwt.audiences()) else {
            return Err(CallerError::Unauthenticated(
                format!(
                    "present a ServiceAccount token of the audience {AUDIENCE}, or a tokenward token of this audience \
                     with the scope {SCOPE}"
                )
                .into(),
            ));
        };
        // The claim is not verified yet, but a token without it would fail the review, which could not say why.
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(CallerError::Unauthenticated(
                format!("the ServiceAccount token must be projected with `audience: {AUDIENCE}`").into(),
            ));
        }
        match &self.reviewer {
            Some(reviewer) => reviewer.review(secret, non_resource_url).await,
            None => Err(CallerError::Unavailable(
                "this verifier has no API server that could authenticate callers".into(),
            )),
        }
    }

    fn authorize_tokenward_token(&self, token: &str, client: Option<IpAddr>) -> Result<(), CallerError> {
        let check = TokenCheck {
            presented: token.as_bytes(),
            scopes: &[SCOPE],
            audience: Audience::Is(AUDIENCE),
            client,
        };
        let authorized = self.snapshot.decide(&check, |decision| match decision {
            // Without audiences, a token is valid for any.
            Decision::Allow(identity) if !identity.audiences().iter().any(|named| **named == *AUDIENCE) => {
                Err(CallerError::Forbidden(
                    format!("the caller's token must name the audience {AUDIENCE} in spec.audiences").into(),
                ))
            }
            Decision::Allow(_) => Ok(()),
            Decision::Deny(Code::IpNotAllowed) => {
                Err(CallerError::Forbidden("the caller's token may not be used from this address".into()))
            }
            Decision::Deny(Code::InsufficientScope) => {
                Err(CallerError::Forbidden(format!("the caller's token lacks the scope {SCOPE}").into()))
            }
            Decision::Deny(_) => Err(CallerError::Unauthenticated("the caller's token is not valid".into())),
        });
        authorized.unwrap_or_else(|unavailable| Err(CallerError::Unavailable(unavailable.message().into())))
    }
}

/// The result of a TokenReview and a SubjectAccessReview.
type ReviewResult = Result<(), CallerError>;

/// Lets the API server decide on ServiceAccount tokens.
struct Reviewer {
    client: Client,
    issuer_keys: IssuerKeys,
    /// By a digest of non-resource URL and token: the tokens themselves would be worth stealing from memory.
    results: Cache<[u8; 32], ReviewResult>,
    /// The digests of what was allowed within [`KNOWN_TTL`]. It says who need not queue with strangers, and allows nothing.
    known: Cache<[u8; 32], ()>,
    permits: Semaphore,
    permits_of_known: Semaphore,
    last_warning: Mutex<Option<Instant>>,
}

impl Reviewer {
    fn new(client: Client) -> Self {
        let results = Cache::builder().max_capacity(MAX_CACHED_RESULTS).expire_after(ResultTtl).build();
        let known = Cache::builder().max_capacity(MAX_CACHED_RESULTS).time_to_live(KNOWN_TTL).build();
        Self {
            issuer_keys: IssuerKeys::new(client.clone()),
            client,
            results,
            known,
            permits: Semaphore::new(MAX_CONCURRENT_REVIEWS),
            permits_of_known: Semaphore::new(MAX_CONCURRENT_REVIEWS),
            last_warning: Mutex::default(),
        }
    }

    async fn review(&self, token: &str, non_resource_url: &'static str) -> ReviewResult {
        let key: [u8; 32] = Sha256::new()
            .chain_update(non_resource_url)
            .chain_update([0])
            .chain_update(token)
            .finalize()
            .into();
        // Concurrent requests with the same key share one review. An error inside is not cached, so that neither outages nor
        // forged tokens take the place of what the API server has said.
        let result = self.results.try_get_with(key, async {
            let permits = if self.known.contains_key(&key) { &self.permits_of_known } else { &self.permits };
            let review = async {
                if self.issuer_keys.verify(token).await == Signature::Invalid {
                    return Err(invalid_token());
                }
                Ok(self.review_uncached(token, non_resource_url, permits).await)
            };
            let late =
                || CallerError::Unavailable("the API server did not authenticate the caller in time".into());
            match tokio::time::timeout(REVIEW_TIMEOUT, review).await.map_err(|_| late())?? {
                Err(error @ CallerError::Unavailable(_)) => Err(error),
                result => {
                    match &result {
                        Ok(()) => self.known.insert(key, ()).await,
                        Err(_) => self.known.invalidate(&key).await,
                    }
                    Ok(result)
                }
            }
        });
        result.await.unwrap_or_else(|error| Err(CallerError::clone(&error)))
    }

    async fn review_uncached(
        &self,
        token: &str,
        non_resource_url: &'static str,
        permits: &Semaphore,
    ) -> ReviewResult {
        let unavailable = |error| {
            self.warn(&error);
            CallerError::Unavailable(
                "the API server can't authenticate the caller now; the verifier's log says why".into(),
            )
        };
        let _permit = permits.acquire().await;
        let user = self.authenticate(token).await.map_err(unavailable)?;
        let user = user.ok_or_else(invalid_token)?;
        let name = user.username.clone().unwrap_or_default();
        if self.is_authorized(user, non_resource_url).await.map_err(unavailable)? {
            return Ok(());
        }
        Err(CallerError::Forbidden(
            format!("{name} may not post to {non_resource_url}: bind it to the ClusterRole tokenward-caller")
                .into(),
        ))
    }

    async fn authenticate(&self, token: &str) -> kube::Result<Option<UserInfo>> {
        let spec =
            TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: Some(token.to_owned()) };
        let review = TokenReview { spec, ..Default::default() };
        let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(review
            .status
            .filter(|status| {
                // An API server that does not support audiences returns none, so it has not checked this one.
                let has_audience = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
                status.authenticated == Some(true) && has_audience
            })
            .and_then(|status| status.user))
    }

    /// Logs why a review failed. Not in the response, because the caller may be a stranger.
    fn warn(&self, failure: &kube::Error) {
        let mut last_warning = lock(&self.last_warning);
        if last_warning.is_none_or(|last| last.elapsed() >= MIN_WARN_INTERVAL) {
            *last_warning = Some(Instant::now());
            warn!(
                error = error::message(failure),
                "callers with ServiceAccount tokens can't be authenticated; may this verifier create TokenReviews and \
                 SubjectAccessReviews (ClusterRole system:auth-delegator)?"
            );
        }
    }

    async fn is_authorized(&self, user: UserInfo, non_resource_url: &str) -> kube::Result<bool> {
        let attributes =
            NonResourceAttributes { path: Some(non_resource_url.to_owned()), verb: Some("post".to_owned()) };
        let review =
            SubjectAccessReviewSpec { non_resource_attributes: Some(attributes), ..access::about(user) };
        access::is_allowed(&self.client, review).await
    }
}

fn invalid_token() -> CallerError {
    CallerError::Unauthenticated("the ServiceAccount token is not valid".into())
}

/// Expires results of the cache.
struct ResultTtl;

impl Expiry<[u8; 32], ReviewResult> for ResultTtl {
    fn expire_after_create(
        &self,
        _key: &[u8; 32],
        result: &ReviewResult,
        _created: Instant,
    ) -> Option<Duration> {
        Some(if result.is_ok() { ALLOW_TTL } else { DENY_TTL })
    }
}

/// The secret that a caller presents: the credentials of `Bearer`, or the password of `Basic`, by which most
/// introspection clients send theirs. The user name is ignored, because the secret identifies the caller.
pub(crate) fn presented_secret(headers: &HeaderMap) -> Result<Zeroizing<String>, CallerError> {
    let unauthenticated = |why: &'static str| CallerError::Unauthenticated(why.into());
    let unreadable = || unauthenticated("the Authorization header can't be read");
    let Authorization { scheme, credentials } =
        Authorization::parse(headers, &[Scheme::Bearer, Scheme::Basic]).map_err(|error| {
            unauthenticated(match error {
                AuthorizationError::Missing => {
                    "the Authorization header is missing: present a ServiceAccount token or a tokenward token as Bearer"
                }
                AuthorizationError::Repeated => "more than one Authorization header",
                AuthorizationError::UnacceptedScheme => {
                    "the Authorization header must be of the scheme Bearer or Basic"
                }
            })
        })?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| unreadable());
    match scheme {
        Scheme::Bearer => Ok(Zeroizing::new(text(credentials)?.to_owned())),
        Scheme::Basic => {
            let decoded = Zeroizing::new(STANDARD.decode(credentials).map_err(|_| unreadable())?);
            let (_user, password) = text(&decoded)?.split_once(':').ok_or_else(unreadable)?;
            Ok(Zeroizing::new(password.to_owned()))
        }
    }
}
