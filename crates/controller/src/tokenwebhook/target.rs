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
use tokenward_core::crd::{DurationString, SecretKeyRef, TokenWebhook};
use tokenward_core::outbox::signature::SigningKeys;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Whatever a spec says, an attempt takes no longer.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an event is tried, unless the spec says otherwise.
pub(crate) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(75 * 3600);

/// Where and how events are sent.
pub(crate) struct Target {
    pub(crate) endpoint: Arc<delivery::Endpoint>,
    pub(crate) keys: Arc<SigningKeys>,
    pub(crate) secret: SecretKeyRef,
    pub(crate) public_key: Option<String>,
    pub(crate) max_age: Duration,
    pub(crate) until: Option<Timestamp>,
    pub(crate) done: Option<(&'static str, String)>,
}

/// Reads what the spec refers to.
pub(crate) async fn look(shared: &Shared, webhook: &TokenWebhook) -> Result<Target, Problem> {
    let invalid = |message: String| Problem::new("InvalidSpec", message);
    let delivery = webhook.spec.delivery.clone().unwrap_or_default();
    let duration = |text: Option<DurationString>, default: Duration| match text {
        Some(text) => {
            text.parse().map(|d| d.unsigned_abs()).map_err(|e| invalid(format!("spec.delivery: {e}")))
        }
        None => Ok(default),
    };
    let timeout = duration(delivery.timeout, DEFAULT_TIMEOUT)?.clamp(Duration::from_secs(1), LONGEST_TIMEOUT);
    let max_age = duration(delivery.max_age, DEFAULT_MAX_AGE)?;
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
