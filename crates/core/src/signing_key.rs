//! The signing key that is generated for a TokenWebhook: what its Secret contains, and the next write to it.
//!
//! Each step is one write, and the Secret contains a usable key after it, so a process may end between any two. A
//! replaced key stays beside the new one, and signs too, until its overlap ends; in between a receiver may change from
//! the one to the other at any time.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube_core::{ObjectMeta, Resource, ResourceExt};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::crd::labels::{
    MANAGED_BY, MANAGED_BY_VALUE, PREVIOUS_UNTIL_ANNOTATION, SIGNING_TRIGGER_ANNOTATION, WEBHOOK_LABEL,
};
use crate::crd::{DurationError, SigningRotation, TokenWebhook};
use crate::lifecycle::is_controlled_by;
use crate::outbox::signature::{self, KeyError, NEW_KEY_BYTES, SigningKeys};

/// The key of the Secret's data that has the current signing key.
pub const CURRENT: &str = "signing-key";
/// The same for the replaced one, while it signs too.
const PREVIOUS: &str = "previous-signing-key";
/// How long both keys sign, unless the spec says otherwise.
const DEFAULT_OVERLAP: SignedDuration = SignedDuration::from_hours(24);

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is a Secret of that name that this TokenWebhook does not control. It is neither used nor written.
    Foreign,
    /// There is no Secret: create it with a new key.
    Create,
    /// The spec requests a new key: put one in, and keep the current one until the overlap ends.
    Rotate,
    /// The overlap has ended: remove the replaced key.
    DropPrevious,
    /// Nothing is to be written: sign with the keys in the Secret.
    Use,
}

/// Why the keys of a Secret can't be used. Contains nothing of a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    #[error("Secret {secret} has no text under the key {key}; delete it to have a new key made")]
    Missing { secret: String, key: &'static str },
    #[error("Secret {secret}, key {key}: {error}")]
    Invalid { secret: String, key: &'static str, error: KeyError },
}

/// The name of the Secret with the generated key of a TokenWebhook.
pub fn secret_name(webhook: &TokenWebhook) -> String {
    format!("{}-signing", webhook.name_any())
}

/// The next step for the Secret of that name. Fails if the spec's overlap is not a duration.
pub fn next_step(
    existing: Option<&Secret>,
    webhook: &TokenWebhook,
    now: Timestamp,
) -> Result<Step, DurationError> {
    let Some(secret) = existing else { return Ok(Step::Create) };
    if !webhook.uid().is_some_and(|uid| is_controlled_by(&secret.metadata, &uid)) {
        return Ok(Step::Foreign);
    }
    let (trigger, overlap) = rotation(webhook)?;
    let is_open = previous_until(secret).is_some_and(|until| now < until);
    // Every key has the annotation, if empty. Without it, a policy has taken it off, and would do so again.
    let handled = secret.annotations().get(SIGNING_TRIGGER_ANNOTATION);
    let is_requested =
        handled.is_some_and(|handled| trigger.as_ref().is_some_and(|trigger| trigger != handled));
    Ok(match (is_requested, is_open) {
        // Only two keys sign at a time, so this waits for the end of the overlap, unless the spec now ends it.
        (true, true) if !overlap.is_zero() => Step::Use,
        (true, _) => Step::Rotate,
        (false, false) if has_previous(secret) => Step::DropPrevious,
        (false, _) => Step::Use,
    })
}

/// A Secret without a key, to be filled by [`put_new_key`].
pub fn new_secret(webhook: &TokenWebhook) -> Secret {
    let labels = [(MANAGED_BY, MANAGED_BY_VALUE.to_owned()), (WEBHOOK_LABEL, webhook.name_any())];
    Secret {
        metadata: ObjectMeta {
            name: Some(secret_name(webhook)),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: webhook.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Puts a new key into the Secret. The current one becomes the previous one for as long as the overlap lasts, and
/// replaces an older one.
pub fn put_new_key(
    secret: &mut Secret,
    webhook: &TokenWebhook,
    random: &[u8; NEW_KEY_BYTES],
    now: Timestamp,
) -> Result<(), DurationError> {
    let (trigger, overlap) = rotation(webhook)?;
    let algorithm = webhook.spec.signing.as_ref().and_then(|signing| signing.algorithm).unwrap_or_default();
    let key = signature::new_key(algorithm, random);
    drop_previous(secret);
    let data = secret.data.get_or_insert_default();
    let replaced = data.insert(CURRENT.to_owned(), ByteString(key.as_bytes().to_vec()));
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

/// Removes the previous key, and wipes it from memory.
pub fn drop_previous(secret: &mut Secret) {
    let previous = secret.data.as_mut().and_then(|data| data.remove(PREVIOUS));
    drop(previous.map(|previous| Zeroizing::new(previous.0)));
    secret.metadata.annotations.get_or_insert_default().remove(PREVIOUS_UNTIL_ANNOTATION);
}

/// The end of the overlap, if there is a previous key.
pub fn previous_until(secret: &Secret) -> Option<Timestamp> {
    secret.annotations().get(PREVIOUS_UNTIL_ANNOTATION)?.parse().ok().filter(|_| has_previous(secret))
}

/// The keys that sign, the current one first.
pub fn signing_keys(secret: &Secret) -> Result<SigningKeys, SecretError> {
    let current = read(secret, CURRENT)?;
    Ok(if has_previous(secret) { current.and(read(secret, PREVIOUS)?) } else { current })
}

fn read(secret: &Secret, key: &'static str) -> Result<SigningKeys, SecretError> {
    let text = secret.data.as_ref().and_then(|data| std::str::from_utf8(&data.get(key)?.0).ok());
    let text = text.ok_or_else(|| SecretError::Missing { secret: secret.name_any(), key })?;
    SigningKeys::parse(text).map_err(|error| SecretError::Invalid { secret: secret.name_any(), key, error })
}

fn has_previous(secret: &Secret) -> bool {
    secret.data.as_ref().is_some_and(|data| data.contains_key(PREVIOUS))
}

/// The trigger and the overlap of the spec.
fn rotation(webhook: &TokenWebhook) -> Result<(Option<String>, SignedDuration), DurationError> {
    let rotation = webhook.spec.signing.as_ref().and_then(|signing| signing.rotation.clone());
    let SigningRotation { trigger, overlap } = rotation.unwrap_or_default();
    Ok((trigger, overlap.map_or(Ok(DEFAULT_OVERLAP), |overlap| overlap.parse())?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::crd::{Signing, TokenWebhookSpec};

    fn webhook(trigger: Option<&str>, overlap: &str) -> TokenWebhook {
        let rotation = SigningRotation { trigger: trigger.map(str::to_owned), overlap: Some(overlap.into()) };
        let signing = Signing { rotation: Some(rotation), ..Default::default() };
        let spec = TokenWebhookSpec { signing: Some(signing), ..Default::default() };
        let mut webhook = TokenWebhook::new("hook", spec);
        webhook.metadata.uid = Some("uid".to_owned());
        webhook
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("an instant")
    }

    fn created(webhook: &TokenWebhook) -> Secret {
        let mut secret = new_secret(webhook);
        put_new_key(&mut secret, webhook, &[1; NEW_KEY_BYTES], at(0)).expect("a key");
        secret
    }

    fn signatures(keys: &SigningKeys) -> Vec<String> {
        keys.sign("evt_1", 1, b"{}").split(' ').map(str::to_owned).collect()
    }

    fn signatures_of(secret: &Secret) -> Vec<String> {
        signatures(&signing_keys(secret).expect("keys"))
    }

    #[test]
    fn both_keys_sign_in_the_overlap_and_no_other_does() {
        let first = webhook(None, "60s");
        let mut secret = created(&first);
        assert_eq!(next_step(Some(&secret), &first, at(1)), Ok(Step::Use));
        let old = signatures_of(&secret);
        let second = webhook(Some("1"), "60s");
        assert_eq!(next_step(Some(&secret), &second, at(1)), Ok(Step::Rotate));
        put_new_key(&mut secret, &second, &[2; NEW_KEY_BYTES], at(1)).expect("a key");
        let both = signatures_of(&secret);
        assert_eq!((both.len(), &both[1]), (2, &old[0]));
        assert_eq!(next_step(Some(&secret), &second, at(2)), Ok(Step::Use));
        assert_eq!(previous_until(&secret), Some(at(61)));
        // A third one waits for the end of the overlap, unless there is to be none.
        let third = webhook(Some("2"), "60s");
        assert_eq!(next_step(Some(&secret), &third, at(60)), Ok(Step::Use));
        assert_eq!(next_step(Some(&secret), &third, at(61)), Ok(Step::Rotate));
        assert_eq!(next_step(Some(&secret), &webhook(Some("2"), "0s"), at(2)), Ok(Step::Rotate));
        assert_eq!(next_step(Some(&secret), &second, at(61)), Ok(Step::DropPrevious));
        drop_previous(&mut secret);
        assert_eq!(signatures_of(&secret), both[..1]);
        assert_eq!(next_step(Some(&secret), &second, at(61)), Ok(Step::Use));
        assert_eq!(previous_until(&secret), None);
        put_new_key(&mut secret, &webhook(Some("2"), "0s"), &[3; NEW_KEY_BYTES], at(70)).expect("a key");
        assert_eq!(signatures_of(&secret).len(), 1);
    }

    #[test]
    fn a_secret_of_another_owner_is_foreign_whatever_its_labels_say() {
        let webhook = webhook(None, "60s");
        let mut secret = created(&webhook);
        secret.metadata.owner_references.as_mut().expect("an owner")[0].uid = "other".to_owned();
        assert_eq!(next_step(Some(&secret), &webhook, at(1)), Ok(Step::Foreign));
        secret.metadata.owner_references = None;
        assert_eq!(next_step(Some(&secret), &webhook, at(1)), Ok(Step::Foreign));
        assert_eq!(next_step(None, &webhook, at(1)), Ok(Step::Create));
    }

    #[test]
    fn the_error_for_a_broken_key_says_what_to_do_and_does_not_repeat_it() {
        let mut secret = created(&webhook(None, "60s"));
        secret.data.as_mut().expect("data").insert(CURRENT.to_owned(), ByteString(b"hunter2".to_vec()));
        let error = signing_keys(&secret).expect_err("no key").to_string();
        assert!(error.starts_with("Secret hook-signing, key signing-key: "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        secret.data = None;
        assert!(signing_keys(&secret).expect_err("no key").to_string().contains("delete it"));
    }

    #[test]
    fn an_overlap_that_is_no_duration_changes_nothing() {
        let broken = webhook(Some("1"), "soon");
        let mut secret = created(&webhook(None, "60s"));
        let before = secret.clone();
        assert!(next_step(Some(&secret), &broken, at(1)).is_err());
        assert!(put_new_key(&mut secret, &broken, &[2; NEW_KEY_BYTES], at(1)).is_err());
        assert_eq!(secret, before);
    }

    /// What happens to a TokenWebhook and its Secret.
    #[derive(Clone, Debug)]
    enum Act {
        SetTrigger(Option<u8>),
        /// In seconds.
        SetOverlap(u8),
        /// In seconds.
        Wait(u8),
        /// A controller reads the Secret and decides. It writes later, or never if it ends before.
        Decide,
        /// The oldest decision is written, unless the Secret has changed since.
        Write,
        Crash,
        /// A controller that is not disturbed.
        Reconcile,
        DeleteSecret,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => proptest::option::of(0u8..4).prop_map(Act::SetTrigger),
            2 => prop_oneof![Just(0), 1u8..60].prop_map(Act::SetOverlap),
            3 => (0u8..60).prop_map(Act::Wait),
            3 => Just(Act::Decide),
            3 => Just(Act::Write),
            1 => Just(Act::Crash),
            3 => Just(Act::Reconcile),
            1 => Just(Act::DeleteSecret),
        ]
    }

    /// A write that is decided on but not made.
    struct Decision {
        step: Step,
        at: Timestamp,
        webhook: TokenWebhook,
        secret: Secret,
        /// The resourceVersion that was read. `None`: there was no Secret.
        read: Option<u64>,
    }

    /// The cluster, and what a receiver may rely on.
    struct World {
        webhook: TokenWebhook,
        now: Timestamp,
        /// The Secret and its resourceVersion.
        stored: Option<(u64, Secret)>,
        writes: u64,
        /// How many keys were generated, also those that were never stored.
        keys: u8,
        decisions: std::collections::VecDeque<Decision>,
        /// The signature by the current key.
        current: Option<String>,
        /// The signature by the replaced key, and until when a receiver that knows only that key must be able to verify.
        replaced: Option<(String, Timestamp)>,
    }

    impl World {
        fn new() -> Self {
            let (webhook, now) = (webhook(None, "60s"), at(0));
            let (stored, current, replaced) = (None, None, None);
            Self {
                webhook,
                now,
                stored,
                writes: 0,
                keys: 0,
                decisions: Default::default(),
                current,
                replaced,
            }
        }

        fn rotation(&mut self) -> &mut SigningRotation {
            self.webhook.spec.signing.get_or_insert_default().rotation.get_or_insert_default()
        }

        fn step(&self) -> Step {
            let secret = self.stored.as_ref().map(|(_, secret)| secret);
            next_step(secret, &self.webhook, self.now).expect("a valid overlap")
        }

        fn decide(&mut self) {
            let step = self.step();
            let mut secret = match &self.stored {
                Some((_, secret)) => secret.clone(),
                None => new_secret(&self.webhook),
            };
            match step {
                Step::Foreign => panic!("nobody else writes it"),
                Step::Use => return,
                Step::Create | Step::Rotate => {
                    self.keys += 1;
                    put_new_key(&mut secret, &self.webhook, &[self.keys; NEW_KEY_BYTES], self.now)
                        .expect("a key");
                }
                Step::DropPrevious => drop_previous(&mut secret),
            }
            let (at, webhook) = (self.now, self.webhook.clone());
            let read = self.stored.as_ref().map(|(version, _)| *version);
            self.decisions.push_back(Decision { step, at, webhook, secret, read });
        }

        fn write(&mut self) {
            let Some(Decision { step, at, webhook, secret, read }) = self.decisions.pop_front() else {
                return;
            };
            if read != self.stored.as_ref().map(|(version, _)| *version) {
                return;
            }
            let (trigger, overlap) = rotation(&webhook).expect("a valid overlap");
            let signatures = signatures_of(&secret);
            let is_over = self.replaced.as_ref().is_none_or(|(_, until)| *until <= at);
            match step {
                Step::Rotate => {
                    let (_, before) = self.stored.as_ref().expect("a Secret");
                    assert_ne!(trigger.as_ref(), before.annotations().get(SIGNING_TRIGGER_ANNOTATION));
                    assert!(trigger.is_some() && (is_over || overlap.is_zero()), "a key loses its overlap");
                    let replaced = self.current.take().expect("a key");
                    self.replaced = (!overlap.is_zero()).then(|| (replaced, at + overlap));
                }
                Step::DropPrevious => assert!(is_over, "a key loses its overlap"),
                _ => self.replaced = None,
            }
            self.current = Some(signatures[0].clone());
            self.writes += 1;
            self.stored = Some((self.writes, secret));
        }

        fn apply(&mut self, act: &Act) {
            match act {
                Act::SetTrigger(trigger) => self.rotation().trigger = trigger.map(|n| n.to_string()),
                Act::SetOverlap(seconds) => self.rotation().overlap = Some((&*format!("{seconds}s")).into()),
                Act::Wait(seconds) => self.now += SignedDuration::from_secs((*seconds).into()),
                Act::Decide => self.decide(),
                Act::Write => self.write(),
                Act::Crash => self.decisions.clear(),
                Act::Reconcile => {
                    self.decisions.clear();
                    self.decide();
                    self.write();
                }
                Act::DeleteSecret => (self.stored, self.current, self.replaced) = (None, None, None),
            }
        }

        /// The signatures that receivers may rely on now.
        fn expected(&self) -> Vec<String> {
            let replaced = self.replaced.iter().filter(|(_, until)| self.now < *until);
            self.current.iter().chain(replaced.map(|(signature, _)| signature)).cloned().collect()
        }
    }

    proptest! {
        /// In any sequence of edits, crashes, late writes and deletions of the Secret: the keys in a stored Secret can be
        /// used; a receiver that knows the current key can verify, and so can one that knows the replaced key, until
        /// its overlap ends. One undisturbed reconciliation then removes any other key, and has nothing left to do.
        #[test]
        fn a_receiver_that_knows_a_published_key_can_verify(acts in proptest::collection::vec(act(), 0..80)) {
            let mut world = World::new();
            for act in &acts {
                world.apply(act);
                if let Some((_, secret)) = &world.stored {
                    let signatures = signatures_of(secret);
                    prop_assert!(signatures.len() <= 2, "{:?}", signatures);
                    prop_assert_eq!(signatures.first(), world.current.as_ref());
                    let missing = world.expected().into_iter().find(|expected| !signatures.contains(expected));
                    prop_assert_eq!(missing, None);
                }
                if matches!(act, Act::Reconcile) {
                    let (version, secret) = world.stored.clone().expect("a Secret");
                    prop_assert_eq!(signatures_of(&secret), world.expected());
                    prop_assert_eq!(previous_until(&secret), world.replaced.as_ref().map(|(_, until)| *until).filter(|until| world.now < *until));
                    prop_assert_eq!(world.step(), Step::Use);
                    world.apply(&Act::Reconcile);
                    prop_assert_eq!(world.stored.as_ref().map(|(version, _)| *version), Some(version));
                }
            }
        }

        /// Once edits end and the overlap has passed, the current trigger has been handled, and one key is left.
        #[test]
        fn a_requested_rotation_is_made(acts in proptest::collection::vec(act(), 0..40)) {
            let mut world = World::new();
            acts.iter().for_each(|act| world.apply(act));
            // The overlap that is open, and that of the rotation that waits for it.
            for _ in 0..3 {
                world.apply(&Act::Reconcile);
                world.apply(&Act::Wait(60));
            }
            world.apply(&Act::Reconcile);
            let (_, secret) = world.stored.as_ref().expect("a Secret");
            let (trigger, _) = rotation(&world.webhook).expect("a valid overlap");
            let handled = secret.annotations().get(SIGNING_TRIGGER_ANNOTATION);
            prop_assert!(trigger.is_none() || trigger.as_ref() == handled);
            prop_assert_eq!(signatures_of(secret).len(), 1);
        }
    }
}
