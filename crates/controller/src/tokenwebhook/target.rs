//! Where and how an endpoint's events are sent: the spec, and the Secrets that it refers to.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::Shared;
use super::delivery;
use super::delivery::connect;
use super::problem::Problem;
use super::signing_key;
use super::signing_key::Signing;
use tokenward_core::crd::{DurationError, DurationString, SecretKeyRef, TokenWebhook};
use tokenward_core::outbox::signature::SigningKeys;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest timeout of an attempt, whatever the spec says.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// The age at which an event is dead-lettered, unless the spec says otherwise.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(75 * 3600);

/// Where and how events are sent.
pub(crate) struct Target {
    pub(crate) endpoint: Arc<delivery::Endpoint>,
    pub(crate) keys: Arc<SigningKeys>,
    pub(crate) secret: SecretKeyRef,
    pub(crate) public_key: Option<String>,
    pub(crate) max_age: Duration,
    /// When the signing keys change by time alone.
    pub(crate) until: Option<Timestamp>,
    /// What was just done to the signing Secret, as the reason and message of an Event.
    pub(crate) done: Option<(&'static str, String)>,
}

/// Resolves the spec, and reads the Secrets that it names.
pub(crate) async fn resolve(shared: &Shared, webhook: &TokenWebhook) -> Result<Target, Problem> {
    let invalid = |message: String| Problem::new("InvalidSpec", message);
    let delivery = webhook.spec.delivery.clone().unwrap_or_default();
    let duration = |text: Option<DurationString>, default: Duration| match text {
        Some(text) => {
            text.parse().map(|d| d.unsigned_abs()).map_err(|e| invalid(format!("spec.delivery: {e}")))
        }
        None => Ok(default),
    };
    let timeout = duration(delivery.timeout, DEFAULT_TIMEOUT)?.clamp(Duration::from_secs(1), MAX_TIMEOUT);
    let max_age = max_age(webhook).map_err(|error| invalid(format!("spec.delivery: {error}")))?;
    let url = match (&webhook.spec.url, &webhook.spec.url_from) {
        (Some(url), None) => Zeroizing::new(url.clone()),
        (None, Some(from)) => signing_key::read_key(&shared.client, webhook, &from.secret_key_ref).await?,
        _ => return Err(invalid("set exactly one of spec.url and spec.urlFrom".to_owned())),
    };
    let endpoint = delivery::Endpoint::new(
        &url,
        delivery.ca_bundle.as_deref(),
        timeout,
        shared.policy.clone(),
        connect::system(),
    );
    let endpoint = endpoint.map_err(|error| match error {
        delivery::EndpointError::Url => Problem::new("InvalidUrl", error.to_string()),
        other => invalid(other.to_string()),
    })?;
    let Signing { keys, secret, until, done } =
        signing_key::provide(&shared.client, webhook, Timestamp::now()).await?;
    Ok(Target {
        endpoint: Arc::new(endpoint),
        public_key: keys.public_key(),
        keys: Arc::new(keys),
        secret,
        max_age,
        until,
        done,
    })
}

/// The age at which an event of this TokenWebhook is dead-lettered.
fn max_age(webhook: &TokenWebhook) -> Result<Duration, DurationError> {
    let asked = webhook.spec.delivery.as_ref().and_then(|delivery| delivery.max_age.as_ref());
    asked.map_or(Ok(DEFAULT_MAX_AGE), |age| Ok(age.parse()?.unsigned_abs()))
}

/// The same where a spec that cannot be read has the default.
pub(crate) fn max_age_or_default(webhook: &TokenWebhook) -> Duration {
    max_age(webhook).unwrap_or(DEFAULT_MAX_AGE)
}
