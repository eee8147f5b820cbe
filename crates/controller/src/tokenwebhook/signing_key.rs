//! Provides the signing keys of a TokenWebhook: reads the Secret that the spec names, or makes the next step for the one
//! with the generated key, as [`tokenward_core::signing_key`] decides.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use zeroize::Zeroizing;

use tokenward_core::crd::{DurationError, Reason, SecretKeyRef, TokenWebhook};
use tokenward_core::lifecycle::wipe;
use tokenward_core::outbox::signature::SigningKeys;
use tokenward_core::signing_key::{
    CURRENT, Step, drop_previous, new_secret, next_step, previous_until, put_new_key, secret_name,
    signing_keys,
};
use tokenward_runtime::cluster::error::{is_not_found, message};
use tokenward_runtime::entropy::random_bytes;
use tokenward_runtime::failpoint;

/// The signing keys of a TokenWebhook.
pub(crate) struct Signing {
    pub(crate) keys: SigningKeys,
    /// Where the current key is.
    pub(crate) secret: SecretKeyRef,
    /// When the keys change by time alone.
    pub(crate) until: Option<Timestamp>,
    /// The Event for what was just done to the Secret.
    pub(crate) done: Option<Reason>,
}

/// Provides the keys of a TokenWebhook.
pub(crate) async fn provide(
    client: &Client,
    webhook: &TokenWebhook,
    now: Timestamp,
) -> Result<Signing, Reason> {
    match webhook.spec.signing.as_ref().and_then(|signing| signing.secret_ref.clone()) {
        Some(secret) => {
            let text = read_secret(client, webhook, &secret).await?;
            let keys = SigningKeys::parse(&text).map_err(|error| {
                let SecretKeyRef { name, key } = &secret;
                Reason::new("SigningKeyInvalid", format!("Secret {name}, key {key}: {error}"))
            })?;
            Ok(Signing { keys, secret, until: None, done: None })
        }
        None => provide_generated(client, webhook, now).await,
    }
}

/// Reads a value of a Secret of the TokenWebhook's namespace.
pub(crate) async fn read_secret(
    client: &Client,
    webhook: &TokenWebhook,
    reference: &SecretKeyRef,
) -> Result<Zeroizing<String>, Reason> {
    let SecretKeyRef { name, key } = reference;
    let api = Api::<Secret>::namespaced(client.clone(), &webhook.namespace().unwrap_or_default());
    let secret = match api.get(name).await {
        Ok(secret) => WipedSecret(secret),
        Err(error) if is_not_found(&error) => {
            let advice = format!("Secret {name} does not exist; create it, or correct the reference");
            return Err(Reason::new("SecretMissing", advice));
        }
        Err(error) => return Err(unreadable(name, &error)),
    };
    let text = secret.0.data.as_ref().and_then(|data| std::str::from_utf8(&data.get(key)?.0).ok());
    text.map(|text| Zeroizing::new(text.to_owned()))
        .ok_or_else(|| Reason::new("SecretMissing", format!("Secret {name} has no text under the key {key}")))
}

async fn provide_generated(
    client: &Client,
    webhook: &TokenWebhook,
    now: Timestamp,
) -> Result<Signing, Reason> {
    let name = secret_name(webhook);
    let api = Api::<Secret>::namespaced(client.clone(), &webhook.namespace().unwrap_or_default());
    let existing = api.get_opt(&name).await.map_err(|error| unreadable(&name, &error))?.map(WipedSecret);
    let step = next_step(existing.as_ref().map(|secret| &secret.0), webhook, now).map_err(invalid_overlap)?;
    let mut secret = existing.unwrap_or_else(|| WipedSecret(new_secret(webhook)));
    let done = change(&mut secret.0, step, webhook, now)?;
    if done.is_some() {
        failpoint::before("sign");
        let written = match step {
            Step::Create => api.create(&PostParams::default(), &secret.0).await,
            _ => api.replace(&name, &PostParams::default(), &secret.0).await,
        };
        failpoint::after("sign");
        secret = WipedSecret(written.map_err(|error| unreadable(&name, &error))?);
    }
    let keys =
        signing_keys(&secret.0).map_err(|error| Reason::new("SigningKeyInvalid", error.to_string()))?;
    let until = previous_until(&secret.0);
    Ok(Signing { keys, secret: SecretKeyRef { name, key: CURRENT.to_owned() }, until, done })
}

/// Makes the change that a step asks for. Returns the Event for it, unless nothing is to be written.
fn change(
    secret: &mut Secret,
    step: Step,
    webhook: &TokenWebhook,
    now: Timestamp,
) -> Result<Option<Reason>, Reason> {
    let name = secret.name_any();
    let event = match step {
        Step::Foreign => {
            let advice = format!(
                "Secret {name} exists and is not tokenward's, so it is neither used nor written; delete it, or name it in spec.signing.secretRef"
            );
            return Err(Reason::new("SigningSecretConflict", advice));
        }
        Step::Use => return Ok(None),
        Step::Create => {
            Reason::new("SigningKeyMade", format!("the signing key is in Secret {name}, key {CURRENT}"))
        }
        Step::Rotate => {
            Reason::new("SigningKeyRotated", format!("a new signing key is in Secret {name}, key {CURRENT}"))
        }
        Step::DropPrevious => {
            drop_previous(secret);
            Reason::new("SigningKeyRetired", "the previous signing key no longer signs")
        }
    };
    if matches!(step, Step::Create | Step::Rotate) {
        let random = random_bytes().map_err(|error| Reason::new("NoRandomBytes", error.to_string()))?;
        put_new_key(secret, webhook, &random, now).map_err(invalid_overlap)?;
    }
    Ok(Some(event))
}

fn invalid_overlap(error: DurationError) -> Reason {
    Reason::new("InvalidSpec", format!("spec.signing.rotation: {error}"))
}

fn unreadable(name: &str, error: &kube::Error) -> Reason {
    Reason::new("SecretUnreadable", format!("Secret {name} can't be read or written: {}", message(error)))
}

/// A Secret whose data is wiped from memory when it is dropped.
struct WipedSecret(Secret);

impl Drop for WipedSecret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}
