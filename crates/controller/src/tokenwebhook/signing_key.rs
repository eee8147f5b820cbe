//! The signing key: read from the Secret that the spec names, or made into a Secret of our own, NAME-signing, and
//! replaced there when the spec asks for it. The replaced key stays beside the new one, and signs too, until the
//! overlap ends.
//!
//! A Secret of that name is ours if the very TokenWebhook owns it. Any other is never written.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use tokenward_core::crd::labels::{
    MANAGED_BY, MANAGED_BY_VALUE, PREVIOUS_UNTIL_ANNOTATION, SIGNING_TRIGGER_ANNOTATION, WEBHOOK_LABEL,
};
use tokenward_core::crd::{Reason, SecretKeyRef, SigningRotation, TokenWebhook};
use tokenward_core::lifecycle::{is_controlled_by, wipe};
use tokenward_core::outbox::signature;
use tokenward_core::outbox::signature::{NEW_KEY_BYTES, SigningKeys};
use tokenward_runtime::cluster::error::{is_not_found, message};
use tokenward_runtime::failpoint;

const KEY: &str = "signing-key";
const PREVIOUS: &str = "previous-signing-key";
/// How long both keys sign, unless the spec says otherwise.
const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// The signing keys of a TokenWebhook.
pub(crate) struct Signing {
    pub(crate) keys: SigningKeys,
    pub(crate) secret: SecretKeyRef,
    /// When something is due to change by time alone.
    pub(crate) until: Option<Timestamp>,
    /// The Event for what was just done to the Secret.
    pub(crate) done: Option<Reason>,
}

/// The next action on our own Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// There is none.
    Create,
    /// There is one that is not ours.
    Foreign,
    /// It is as it should be; something changes by time at this instant.
    Use(Option<Timestamp>),
    /// A new key is asked for.
    Rotate,
    /// The overlap has ended.
    DropPrevious,
}

/// Provides the keys of a TokenWebhook.
pub(crate) async fn provide(
    client: &Client,
    webhook: &TokenWebhook,
    now: Timestamp,
) -> Result<Signing, Reason> {
    match webhook.spec.signing.as_ref().and_then(|signing| signing.secret_ref.clone()) {
        Some(reference) => {
            let text = read_secret(client, webhook, &reference).await?;
            let keys = parse(&text, &reference)?;
            Ok(Signing { keys, secret: reference, until: None, done: None })
        }
        None => provide_own(client, webhook, now).await,
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
    let mut secret = match api.get(name).await {
        Ok(secret) => secret,
        Err(error) if is_not_found(&error) => {
            let advice = format!("Secret {name} does not exist; create it, or correct the reference");
            return Err(Reason::new("SecretMissing", advice));
        }
        Err(error) => return Err(unreadable(name, &error)),
    };
    let text = value(&secret, key);
    wipe(&mut secret);
    text.ok_or_else(|| Reason::new("SecretMissing", format!("Secret {name} has no text under the key {key}")))
}

fn value(secret: &Secret, key: &str) -> Option<Zeroizing<String>> {
    let value = secret.data.as_ref()?.get(key)?;
    Some(Zeroizing::new(std::str::from_utf8(&value.0).ok()?.to_owned()))
}

fn parse(text: &str, reference: &SecretKeyRef) -> Result<SigningKeys, Reason> {
    SigningKeys::parse(text).map_err(|error| {
        let SecretKeyRef { name, key } = reference;
        Reason::new("SigningKeyInvalid", format!("Secret {name}, key {key}: {error}"))
    })
}

fn unreadable(name: &str, error: &kube::Error) -> Reason {
    Reason::new("SecretUnreadable", format!("Secret {name} can't be read or written: {}", message(error)))
}

async fn provide_own(client: &Client, webhook: &TokenWebhook, now: Timestamp) -> Result<Signing, Reason> {
    let name = format!("{}-signing", webhook.name_any());
    let api = Api::<Secret>::namespaced(client.clone(), &webhook.namespace().unwrap_or_default());
    let mut existing = api.get_opt(&name).await.map_err(|error| unreadable(&name, &error))?;
    let (reason, sentence) = match plan(existing.as_ref(), webhook, now)? {
        Plan::Foreign => {
            let advice = format!(
                "Secret {name} exists and is not tokenward's, so it is neither used nor written; delete it, or name it in spec.signing.secretRef"
            );
            return Err(Reason::new("SigningSecretConflict", advice));
        }
        Plan::Use(until) => {
            let secret = existing.get_or_insert_default();
            let keys = keys(secret, &name);
            wipe(secret);
            let (secret, keys) = (SecretKeyRef { name, key: KEY.to_owned() }, keys?);
            return Ok(Signing { keys, secret, until, done: None });
        }
        Plan::Create => ("SigningKeyMade", format!("the signing key is in Secret {name}, key {KEY}")),
        Plan::Rotate => ("SigningKeyRotated", format!("a new signing key is in Secret {name}, key {KEY}")),
        Plan::DropPrevious => ("SigningKeyRetired", "the previous signing key no longer signs".to_owned()),
    };
    let created = existing.is_none();
    let mut secret = existing.take().unwrap_or_else(|| blank(&name, webhook));
    if reason == "SigningKeyRetired" {
        drop_previous(&mut secret);
    } else {
        put_new(&mut secret, webhook, now)?;
    }
    failpoint::before("sign");
    let written = if created {
        api.create(&PostParams::default(), &secret).await
    } else {
        api.replace(&name, &PostParams::default(), &secret).await
    };
    failpoint::after("sign");
    wipe(&mut secret);
    let mut secret = written.map_err(|error| unreadable(&name, &error))?;
    let (keys, until) = (keys(&secret, &name), previous_until(&secret));
    wipe(&mut secret);
    let secret = SecretKeyRef { name, key: KEY.to_owned() };
    Ok(Signing { keys: keys?, secret, until, done: Some(Reason::new(reason, sentence)) })
}

fn plan(existing: Option<&Secret>, webhook: &TokenWebhook, now: Timestamp) -> Result<Plan, Reason> {
    let Some(secret) = existing else { return Ok(Plan::Create) };
    if !webhook.uid().is_some_and(|uid| is_controlled_by(&secret.metadata, &uid)) {
        return Ok(Plan::Foreign);
    }
    let (trigger, overlap) = rotation(webhook)?;
    let until = previous_until(secret);
    let open = until.is_some_and(|until| now < until);
    let asked = trigger.is_some() && trigger.as_ref() != secret.annotations().get(SIGNING_TRIGGER_ANNOTATION);
    Ok(match (asked, open) {
        // Only two keys sign at a time; unless the old one is to end at once anyway.
        (true, true) if !overlap.is_zero() => Plan::Use(until),
        (true, _) => Plan::Rotate,
        (false, false) if holds_previous(secret) => Plan::DropPrevious,
        (false, _) => Plan::Use(until.filter(|_| open)),
    })
}

fn rotation(webhook: &TokenWebhook) -> Result<(Option<String>, SignedDuration), Reason> {
    let rotation = webhook.spec.signing.as_ref().and_then(|signing| signing.rotation.clone());
    let SigningRotation { trigger, overlap } = rotation.unwrap_or_default();
    let overlap = overlap.map_or(Ok(DEFAULT_OVERLAP), |overlap| overlap.parse());
    let overlap =
        overlap.map_err(|error| Reason::new("InvalidSpec", format!("spec.signing.rotation: {error}")))?;
    Ok((trigger, overlap))
}

fn holds_previous(secret: &Secret) -> bool {
    secret.data.as_ref().is_some_and(|data| data.contains_key(PREVIOUS))
}

fn previous_until(secret: &Secret) -> Option<Timestamp> {
    secret.annotations().get(PREVIOUS_UNTIL_ANNOTATION)?.parse().ok().filter(|_| holds_previous(secret))
}

fn blank(name: &str, webhook: &TokenWebhook) -> Secret {
    let labels = [(MANAGED_BY, MANAGED_BY_VALUE.to_owned()), (WEBHOOK_LABEL, webhook.name_any())];
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: webhook.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Draws a key and puts it in; the one that was there moves aside for as long as the overlap lasts.
fn put_new(secret: &mut Secret, webhook: &TokenWebhook, now: Timestamp) -> Result<(), Reason> {
    let (trigger, overlap) = rotation(webhook)?;
    let mut random = Zeroizing::new([0; NEW_KEY_BYTES]);
    SysRng
        .try_fill_bytes(&mut *random)
        .map_err(|error| Reason::new("NoRandomBytes", format!("the system gave no random bytes: {error}")))?;
    let algorithm = webhook.spec.signing.as_ref().and_then(|signing| signing.algorithm).unwrap_or_default();
    let key = signature::new_key(algorithm, &random);
    drop_previous(secret);
    let data = secret.data.get_or_insert_default();
    let replaced = data.insert(KEY.to_owned(), ByteString(key.as_bytes().to_vec()));
    let annotations = secret.metadata.annotations.get_or_insert_default();
    annotations.insert(SIGNING_TRIGGER_ANNOTATION.to_owned(), trigger.unwrap_or_default());
    if let Some(replaced) = replaced {
        let replaced = Zeroizing::new(replaced.0);
        if !overlap.is_zero() {
            data.insert(PREVIOUS.to_owned(), ByteString(replaced.to_vec()));
            let until = now.checked_add(overlap).unwrap_or(Timestamp::MAX);
            annotations.insert(PREVIOUS_UNTIL_ANNOTATION.to_owned(), until.to_string());
        }
    }
    Ok(())
}

fn drop_previous(secret: &mut Secret) {
    let previous = secret.data.as_mut().and_then(|data| data.remove(PREVIOUS));
    drop(previous.map(|previous| Zeroizing::new(previous.0)));
    secret.metadata.annotations.get_or_insert_default().remove(PREVIOUS_UNTIL_ANNOTATION);
}

/// The keys in our own Secret, the current one first.
fn keys(secret: &Secret, name: &str) -> Result<SigningKeys, Reason> {
    let read = |key: &str| {
        let reference = SecretKeyRef { name: name.to_owned(), key: key.to_owned() };
        let text = value(secret, key);
        let text = text.ok_or_else(|| {
            let advice =
                format!("Secret {name} has no text under the key {key}; delete it to have a new key made");
            Reason::new("SigningKeyInvalid", advice)
        })?;
        parse(&text, &reference)
    };
    let current = read(KEY)?;
    Ok(if holds_previous(secret) { current.and(read(PREVIOUS)?) } else { current })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenward_core::crd::{Signing as SigningSpec, TokenWebhookSpec};

    fn webhook(trigger: Option<&str>, overlap: &str) -> TokenWebhook {
        let rotation = SigningRotation { trigger: trigger.map(str::to_owned), overlap: Some(overlap.into()) };
        let signing = SigningSpec { rotation: Some(rotation), ..Default::default() };
        let spec = TokenWebhookSpec { signing: Some(signing), ..Default::default() };
        let mut webhook = TokenWebhook::new("hook", spec);
        webhook.metadata.uid = Some("uid".to_owned());
        webhook
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("an instant")
    }

    fn made(webhook: &TokenWebhook) -> Secret {
        let mut secret = blank("hook-signing", webhook);
        put_new(&mut secret, webhook, at(0)).expect("a key");
        secret
    }

    fn signatures(secret: &Secret) -> Vec<String> {
        let signatures = keys(secret, "hook-signing").expect("keys").sign("evt_1", 1, b"{}");
        signatures.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn both_keys_sign_in_the_overlap_and_no_other_does() {
        let first = webhook(None, "60s");
        let mut secret = made(&first);
        assert_eq!(plan(Some(&secret), &first, at(1)), Ok(Plan::Use(None)));
        let old = signatures(&secret);
        let second = webhook(Some("1"), "60s");
        assert_eq!(plan(Some(&secret), &second, at(1)), Ok(Plan::Rotate));
        put_new(&mut secret, &second, at(1)).expect("a key");
        let both = signatures(&secret);
        assert_eq!((both.len(), &both[1]), (2, &old[0]));
        assert_eq!(plan(Some(&secret), &second, at(2)), Ok(Plan::Use(Some(at(61)))));
        // A third one waits for the end of the overlap, unless it is to be at once.
        let third = webhook(Some("2"), "60s");
        assert_eq!(plan(Some(&secret), &third, at(60)), Ok(Plan::Use(Some(at(61)))));
        assert_eq!(plan(Some(&secret), &third, at(61)), Ok(Plan::Rotate));
        assert_eq!(plan(Some(&secret), &webhook(Some("2"), "0s"), at(2)), Ok(Plan::Rotate));
        assert_eq!(plan(Some(&secret), &second, at(61)), Ok(Plan::DropPrevious));
        drop_previous(&mut secret);
        assert_eq!(signatures(&secret), both[..1]);
        assert_eq!(plan(Some(&secret), &second, at(61)), Ok(Plan::Use(None)));
        put_new(&mut secret, &webhook(Some("2"), "0s"), at(70)).expect("a key");
        assert_eq!(signatures(&secret).len(), 1);
    }

    #[test]
    fn a_secret_of_another_owner_is_foreign_whatever_its_labels_say() {
        let webhook = webhook(None, "60s");
        let mut secret = made(&webhook);
        secret.metadata.owner_references.as_mut().expect("an owner")[0].uid = "other".to_owned();
        assert_eq!(plan(Some(&secret), &webhook, at(1)), Ok(Plan::Foreign));
        secret.metadata.owner_references = None;
        assert_eq!(plan(Some(&secret), &webhook, at(1)), Ok(Plan::Foreign));
        assert_eq!(plan(None, &webhook, at(1)), Ok(Plan::Create));
    }

    #[test]
    fn a_broken_key_says_what_to_do() {
        let webhook = webhook(None, "60s");
        let mut secret = made(&webhook);
        secret.data.as_mut().expect("data").insert(KEY.to_owned(), ByteString(b"hunter2".to_vec()));
        let problem = keys(&secret, "hook-signing").expect_err("no key");
        assert_eq!(problem.code, "SigningKeyInvalid");
        assert!(!problem.message.contains("hunter2"), "{}", problem.message);
        secret.data = None;
        assert!(keys(&secret, "hook-signing").expect_err("no key").message.contains("delete it"));
    }
}
