//! Where and how an endpoint's events are sent: the spec, and the Secrets that it refers to.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use zeroize::Zeroizing;

use super::Shared;
use super::problem::Problem;
use super::signing::{self, Signing};
use crate::crd::{DurationString, SecretKeyRef, TokenWebhook};
use crate::webhook::sign::SigningKeys;
use crate::webhook::{connect, deliver};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);
/// Whatever a spec says, an attempt takes no longer.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an event is tried, unless the spec says otherwise.
pub(super) const DEFAULT_MAX_AGE: Duration = Duration::from_secs(75 * 3600);

/// Where and how events are sent.
pub(super) struct Target {
    pub(super) endpoint: Arc<deliver::Endpoint>,
    pub(super) keys: Arc<SigningKeys>,
    pub(super) secret: SecretKeyRef,
    pub(super) public_key: Option<String>,
    pub(super) max_age: Duration,
    pub(super) until: Option<Timestamp>,
    pub(super) done: Option<(&'static str, String)>,
}

/// Reads what the spec refers to.
pub(super) async fn look(shared: &Shared, webhook: &TokenWebhook) -> Result<Target, Problem> {
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
        (None, Some(from)) => signing::read_key(&shared.client, webhook, &from.secret_key_ref).await?,
        _ => return Err(invalid("set exactly one of spec.url and spec.urlFrom".to_owned())),
    };
    let endpoint = deliver::Endpoint::new(
        &url,
        delivery.ca_bundle.as_deref(),
        timeout,
        shared.policy.clone(),
        connect::system(),
    );
    let endpoint = endpoint.map_err(|error| match error {
        deliver::EndpointError::Url => Problem::new("InvalidUrl", error.to_string()),
        other => invalid(other.to_string()),
    })?;
    let Signing { keys, secret, until, done } =
        signing::provide(&shared.client, webhook, Timestamp::now()).await?;
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
