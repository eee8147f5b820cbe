//! Authentication and authorization of callers, at the endpoints that say why a token is refused.
//!
//! A caller presents either a token of ours with the scope `tokens:verify`, which is decided on from memory, or a
//! ServiceAccount token of the audience `tokenward`. The latter is Kubernetes' to judge: a TokenReview says whose it
//! is, a SubjectAccessReview whether its owner may `post` to the endpoint's path, as with every delegated server
//! (<https://kubernetes.io/docs/reference/access-authn-authz/webhook/>). Verdicts are cached for a short time.

use std::borrow::Cow;
use std::net::IpAddr;
use std::str;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{NonResourceAttributes, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use moka::Expiry;
use moka::future::Cache;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::warn;
use zeroize::Zeroizing;

use crate::snapshot::{Snapshot, TokenCheck};
use tokenward_core::check::{Code, Decision};
use tokenward_core::token::Token;
use tokenward_runtime::cluster::{access, error};

/// The audience that a caller's ServiceAccount token must have.
pub const AUDIENCE: &str = "tokenward";
/// The scope that a caller's token of ours must have.
pub const SCOPE: &str = "tokens:verify";

/// How long a verdict is believed. It bounds how long a deleted ServiceAccount may still ask.
const ADMITTED_FOR: Duration = Duration::from_secs(30);
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// The number of cached verdicts, so that a flood of tokens cannot fill the memory.
const VERDICTS: u64 = 10_000;
/// Reviews at once, so that a flood can't reach the API server.
const REVIEWS: usize = 8;
const WARN_EVERY: Duration = Duration::from_secs(30);
/// How long a review may take, the wait for its turn included.
const REVIEW_TIME: Duration = Duration::from_secs(5);

/// Why a caller is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// 401: it did not show who it is.
    Unauthenticated(Cow<'static, str>),
    /// 403: it may not ask.
    Forbidden(Cow<'static, str>),
    /// 503: it cannot be decided now.
    Unavailable(Cow<'static, str>),
}

/// The callers.
pub struct CallerAuthenticator {
    snapshot: Arc<Snapshot>,
    reviewer: Option<Reviewer>,
}

impl CallerAuthenticator {
    /// Knows callers by a snapshot of our tokens, and by a cluster if there is one to be asked.
    pub fn new(snapshot: Arc<Snapshot>, client: Option<Client>) -> Self {
        Self { snapshot, reviewer: client.map(Reviewer::new) }
    }

    /// Admits whoever presents these headers to the endpoint at `path`, or says why not. `address` is the caller's, where
    /// it is known.
    pub async fn admit(
        &self,
        headers: &HeaderMap,
        address: Option<IpAddr>,
        path: &'static str,
    ) -> Result<(), Refused> {
        let credentials = credentials(headers)?;
        if Token::parse(&credentials).is_some() {
            return self.admit_token(&credentials, address);
        }
        let Some(audiences) = jwt_audiences(&credentials) else {
            return Err(Refused::Unauthenticated(
                format!(
                    "present a ServiceAccount token of the audience {AUDIENCE}, or a tokenward token with the scope \
                     {SCOPE}"
                )
                .into(),
            ));
        };
        // Not proven yet; but it spares the API server what it would not accept, and can say why.
        if !audiences.iter().any(|audience| audience == AUDIENCE) {
            return Err(Refused::Unauthenticated(
                format!("the ServiceAccount token must be projected with `audience: {AUDIENCE}`").into(),
            ));
        }
        match &self.reviewer {
            Some(reviewer) => reviewer.admit(&credentials, path).await,
            None => Err(Refused::Unavailable("this verifier has no API server to ask about callers".into())),
        }
    }

    fn admit_token(&self, token: &str, client: Option<IpAddr>) -> Result<(), Refused> {
        // Its audiences bind where it may be presented: here, that is to us.
        let check =
            TokenCheck { presented: token.as_bytes(), scopes: &[SCOPE], audience: Some(AUDIENCE), client };
        let admitted = self.snapshot.decide(&check, |decision| match decision {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(Code::IpNotAllowed) => {
                Err(Refused::Forbidden("the caller's token may not be used from this address".into()))
            }
            Decision::Deny(Code::InsufficientScope) => {
                Err(Refused::Forbidden(format!("the caller's token lacks the scope {SCOPE}").into()))
            }
            Decision::Deny(_) => Err(Refused::Unauthenticated("the caller's token is not valid".into())),
        });
        admitted.unwrap_or_else(|unavailable| Err(Refused::Unavailable(unavailable.message().into())))
    }
}

/// What Kubernetes said of a caller.
type Verdict = Result<(), Refused>;

/// Asks the API server about ServiceAccount tokens.
struct Reviewer {
    client: Client,
    /// By the digest of token and path: a cache of tokens would be worth stealing.
    verdicts: Cache<[u8; 32], Verdict>,
    turns: Semaphore,
    warned: Mutex<Option<Instant>>,
}

impl Reviewer {
    fn new(client: Client) -> Self {
        let verdicts = Cache::builder().max_capacity(VERDICTS).expire_after(VerdictTtl).build();
        Self { client, verdicts, turns: Semaphore::new(REVIEWS), warned: Mutex::default() }
    }

    async fn admit(&self, token: &str, path: &'static str) -> Verdict {
        let key = Sha256::new().chain_update(path).chain_update([0]).chain_update(token).finalize();
        // One review for all who ask at the same time.
        let verdict = self.verdicts.try_get_with(key.into(), async {
            match tokio::time::timeout(REVIEW_TIME, self.review(token, path)).await {
                Ok(Err(Refused::Unavailable(why))) => Err(why),
                Ok(verdict) => Ok(verdict),
                Err(_) => Err("the API server did not say in time who the caller is".into()),
            }
        });
        verdict.await.unwrap_or_else(|why| Err(Refused::Unavailable(Cow::clone(&why))))
    }

    async fn review(&self, token: &str, path: &'static str) -> Verdict {
        let unavailable = |error| {
            self.warn(&error);
            Refused::Unavailable(
                "the API server can't be asked who the caller is; the verifier's log says why".into(),
            )
        };
        let _turn = self.turns.acquire().await;
        let user = self.authenticate(token).await.map_err(unavailable)?;
        let user = user.ok_or(Refused::Unauthenticated("the ServiceAccount token is not valid".into()))?;
        let name = user.username.clone().unwrap_or_default();
        if self.authorize(user, path).await.map_err(unavailable)? {
            return Ok(());
        }
        Err(Refused::Forbidden(
            format!("{name} may not post to {path}: bind it to the ClusterRole tokenward-caller").into(),
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
                // An API server that does not know audiences returns none, and has not checked ours.
                let meant_for_us = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
                status.authenticated == Some(true) && meant_for_us
            })
            .and_then(|status| status.user))
    }

    /// Tells why a review failed: to the log, as strangers need not know, and not once for each of them.
    fn warn(&self, failure: &kube::Error) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|before| before.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            warn!(
                error = error::message(failure),
                "callers with ServiceAccount tokens can't be admitted; may this verifier create TokenReviews and \
                 SubjectAccessReviews (ClusterRole system:auth-delegator)?"
            );
        }
    }

    async fn authorize(&self, user: UserInfo, path: &str) -> kube::Result<bool> {
        let attributes = NonResourceAttributes { path: Some(path.to_owned()), verb: Some("post".to_owned()) };
        let check =
            SubjectAccessReviewSpec { non_resource_attributes: Some(attributes), ..access::about(user) };
        access::is_allowed(&self.client, check).await
    }
}

/// A right that was just granted should soon work; one that was taken away should soon not.
struct VerdictTtl;

impl Expiry<[u8; 32], Verdict> for VerdictTtl {
    fn expire_after_create(&self, _key: &[u8; 32], verdict: &Verdict, _created: Instant) -> Option<Duration> {
        Some(if verdict.is_ok() { ADMITTED_FOR } else { REFUSED_FOR })
    }
}

/// What a caller presents: `Bearer`, or `Basic`, which is how most introspection clients send their secret. The
/// user name of the latter is ignored: the secret names its owner.
fn credentials(headers: &HeaderMap) -> Result<Zeroizing<String>, Refused> {
    let refused = |why: &'static str| Refused::Unauthenticated(why.into());
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().map(HeaderValue::as_bytes).ok_or(refused(
        "say who asks: Authorization: Bearer, with a ServiceAccount token or a tokenward token",
    ))?;
    if values.next().is_some() {
        return Err(refused("more than one Authorization header"));
    }
    let unreadable = || refused("the Authorization header can't be read");
    let value = str::from_utf8(value).map_err(|_| unreadable())?.trim();
    let (scheme, rest) = value.split_once(' ').ok_or_else(unreadable)?;
    let rest = rest.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => Ok(Zeroizing::new(rest.to_owned())),
        "basic" => {
            let decoded = Zeroizing::new(STANDARD.decode(rest).map_err(|_| unreadable())?);
            let (_, secret) =
                str::from_utf8(&decoded).ok().and_then(|pair| pair.split_once(':')).ok_or_else(unreadable)?;
            Ok(Zeroizing::new(secret.to_owned()))
        }
        _ => Err(refused("the Authorization header must be of the scheme Bearer or Basic")),
    }
}

/// The audiences that a JWT claims (RFC 7519 section 4.1.3). `None`: it is no JWT.
fn jwt_audiences(text: &str) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(default)]
        aud: Audiences,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audiences {
        One(String),
        Many(Vec<String>),
    }
    impl Default for Audiences {
        fn default() -> Self {
            Self::Many(Vec::new())
        }
    }
    let mut parts = text.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = parts.next().is_none().then(|| URL_SAFE_NO_PAD.decode(claims).ok())??;
    match serde_json::from_slice::<Claims>(&claims).ok()?.aud {
        Audiences::One(audience) => Some(vec![audience]),
        Audiences::Many(audiences) => Some(audiences),
    }
}
