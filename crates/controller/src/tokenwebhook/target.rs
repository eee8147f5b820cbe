//! Where and how an endpoint's events are sent: the spec, and the Secrets that it refers to.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::Shared;
use super::delivery;
use super::signing_key;
use super::signing_key::Signing;
use tokenward_core::crd::{DurationString, Reason, SecretKeyRef, TokenWebhook};
use tokenward_core::outbox::signature::SigningKeys;

/// How long one attempt may take, unless the spec says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// The least and the most of it, whatever the spec says.
const MIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The age at which an event is dead-lettered, unless the spec says otherwise.
pub(crate) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(75 * 3600);

/// Where and how events are sent.
pub(crate) struct Target {
    pub(crate) endpoint: Arc<delivery::Endpoint>,
    pub(crate) keys: Arc<SigningKeys>,
    /// Where the current signing key is.
    pub(crate) secret: SecretKeyRef,
    pub(crate) public_key: Option<String>,
    /// When the signing keys change by time alone.
    pub(crate) until: Option<Timestamp>,
    /// The Event for what was just done to the signing Secret.
    pub(crate) done: Option<Reason>,
}

/// Resolves the spec, and reads the Secrets that it names.
pub(crate) async fn resolve(shared: &Shared, webhook: &TokenWebhook) -> Result<Target, Reason> {
    let delivery = webhook.spec.delivery.as_ref();
    let timeout = delivery.and_then(|delivery| delivery.timeout.as_ref());
    let timeout = duration(timeout, DEFAULT_TIMEOUT)?.clamp(MIN_TIMEOUT, MAX_TIMEOUT);
    let url = match (&webhook.spec.url, &webhook.spec.url_from) {
        (Some(url), None) => Zeroizing::new(url.clone()),
        (None, Some(from)) => signing_key::read_secret(&shared.client, webhook, &from.secret_key_ref).await?,
        _ => return Err(Reason::new("InvalidSpec", "set exactly one of spec.url and spec.urlFrom")),
    };
    let ca_bundle = delivery.and_then(|delivery| delivery.ca_bundle.as_deref());
    let endpoint =
        delivery::Endpoint::new(&url, ca_bundle, timeout, shared.policy.clone(), shared.resolve.clone());
    let endpoint = endpoint.map_err(|error| {
        let code = match error {
            delivery::EndpointError::Url => "InvalidUrl",
            _ => "InvalidSpec",
        };
        Reason::new(code, error.to_string())
    })?;
    let endpoint = if webhook.spec.url_from.is_some() { endpoint.with_secret_url() } else { endpoint };
    let Signing { keys, secret, until, done } =
        signing_key::provide(&shared.client, webhook, Timestamp::now()).await?;
    Ok(Target {
        endpoint: Arc::new(endpoint),
        public_key: keys.public_key(),
        keys: Arc::new(keys),
        secret,
        until,
        done,
    })
}

/// The age at which an event is dead-lettered.
pub(crate) fn max_age(webhook: &TokenWebhook) -> Result<Duration, Reason> {
    let max_age = webhook.spec.delivery.as_ref().and_then(|delivery| delivery.max_age.as_ref());
    duration(max_age, DEFAULT_MAX_AGE)
}

fn duration(text: Option<&DurationString>, default: Duration) -> Result<Duration, Reason> {
    let Some(text) = text else { return Ok(default) };
    let parsed =
        text.parse().map_err(|error| Reason::new("InvalidSpec", format!("spec.delivery: {error}")))?;
    Ok(parsed.unsigned_abs())
}
