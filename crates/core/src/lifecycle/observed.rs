//! The input of a decision.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::contest::Contest;
use super::finalizer;
use super::secret::{desired_metadata, repairs};
use super::spec::{InvalidSpec, Spec};
use crate::crd::{ApiToken, ApiTokenStatus, CreationPolicy, TokenVersion};
use crate::lock::Locks;
use crate::outbox::events::Receipts;
use crate::outbox::subscription::Subscription;
use crate::proof::Confirmations;
use crate::token::{Hash, KeyId, PepperId, Peppers};
use crate::tombstone::{TokenIdentity, Tombstones};

/// How long until a Secret that could not be read or written is tried again. The watch selects by label, so it does not
/// report the deletion of a foreign Secret.
pub(super) const RETRY: SignedDuration = SignedDuration::from_secs(15);

/// An ApiToken, the state of its Secret, and what only this process has: the undelivered token, receipts, its flags.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The object as last read or written.
    pub token: &'a ApiToken,
    /// Its spec with the defaults applied, or why it is invalid.
    pub spec: Result<Spec, InvalidSpec>,
    /// The Secret that its spec names.
    pub secret: SecretState,
    /// The locks of the cluster.
    pub locks: &'a Locks,
    /// What was revoked before, by the ledger.
    pub tombstones: &'a Tombstones,
    /// The keys of hashes, seals and MACs.
    pub peppers: &'a Peppers,
    /// The key id of the token that this process has in memory: minted and not delivered yet.
    pub minted: Option<KeyId>,
    /// How the API server rejected the last write of the Secret.
    pub rejection: Option<Rejection>,
    /// What somebody else changed back when it was last repaired.
    pub contests: Contests,
    /// How long verifiers have to receive a new version before the Secret does.
    pub propagation: SignedDuration,
    /// The subscriptions of the TokenWebhooks of the namespace.
    pub subscriptions: &'a [Subscription],
    /// The events that they have accepted since the status was written.
    pub receipts: Receipts,
    /// How many verifiers know this object as last read or written. `None`: the controller knows of none.
    pub confirmations: Option<Confirmations>,
    /// How long before `expiresAt` the transition `Expiring` is reported.
    pub expiry_notice: SignedDuration,
}

/// The repairs of what an ApiToken has in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Contests {
    /// Of its Secret.
    pub secret: Option<Contest>,
    /// Of its finalizer.
    pub finalizer: Option<Contest>,
}

impl<'a> Observed<'a> {
    /// The status as last read or written.
    pub fn status(&self) -> Option<&'a ApiTokenStatus> {
        self.token.status.as_ref()
    }

    /// What its tombstones are made of, with `status.tokenId`.
    pub(super) fn identity<'s>(&'s self, token_id: &'s str) -> TokenIdentity<'s> {
        let metadata = &self.token.metadata;
        TokenIdentity {
            namespace: metadata.namespace.as_deref().unwrap_or_default(),
            name: metadata.name.as_deref().unwrap_or_default(),
            token_id,
        }
    }

    /// Whether `spec.revoked` is true.
    pub fn revocation_requested(&self) -> bool {
        self.token.spec.revoked == Some(true)
    }

    /// Whether the token is past its `expiresAt`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.token.spec.expires_at.is_some_and(|at| now >= at)
    }

    /// Whether the spec suspends the token.
    pub fn suspended(&self) -> bool {
        self.token.spec.suspend == Some(true)
    }

    /// What is changed back each time, for people, and until when that is told if it is not any more.
    pub(super) fn contested(&self, now: Timestamp) -> Option<(String, Timestamp)> {
        let spec = self.spec.as_ref().ok()?;
        let needs_repair = || {
            let (_, metadata) = desired_metadata(self, spec)?;
            Some(!repairs(self.secret.ours()?, &metadata).is_empty())
        };
        let secret = self.contests.secret.as_ref().and_then(|contest| contest.told(now));
        let secret = secret.filter(|(_, until)| now < *until || needs_repair() == Some(true));
        let finalizer = self.contests.finalizer.as_ref().filter(|_| finalizer::is_missing(self));
        secret
            .map(|(over, until)| (format!("{} of Secret {}", over.join(", "), spec.secret_name), until))
            .or_else(|| finalizer?.told(now).map(|(over, until)| (over.join(", "), until)))
    }

    /// Whether the Secret that somebody else makes is not there yet.
    pub fn awaits_secret(&self) -> bool {
        matches!(self.secret, SecretState::Absent)
            && self.spec.as_ref().is_ok_and(|spec| spec.creation_policy == CreationPolicy::Merge)
    }

    /// Whether there is a Secret to read and write, or one may be made.
    pub fn can_deliver(&self) -> bool {
        !self.secret.is_inaccessible() && !self.awaits_secret()
    }

    /// Whether the object is being deleted: only the finalizer is left to be handled.
    pub fn deleting(&self) -> bool {
        self.token.metadata.deletion_timestamp.is_some()
    }

    /// `expiresAt`, if it is near but not past.
    pub fn expires_soon(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.token.spec.expires_at.filter(|at| now < *at)?;
        self.expiry_notice_at().filter(|from| now >= *from).map(|_| at)
    }

    /// When the transition `Expiring` is reported.
    pub fn expiry_notice_at(&self) -> Option<Timestamp> {
        let at = self.token.spec.expires_at?;
        Some(at.checked_sub(self.expiry_notice).unwrap_or(Timestamp::MIN))
    }

    /// `rotation.notBefore` of the spec.
    pub fn not_before(&self) -> Option<Timestamp> {
        self.token.spec.rotation.as_ref().and_then(|rotation| rotation.not_before)
    }

    /// Whether the ledger has a secret of the token with this public id: an earlier state of the object was restored.
    pub(super) fn is_in_ledger(&self, token_id: Option<&str>, key_id: &str) -> bool {
        token_id.is_some_and(|token_id| self.tombstones.has_either(self.identity(token_id), key_id))
    }

    /// Whether `rotation.notBefore` has ended a version: that of the spec, or the recorded one.
    pub fn cut_by_not_before(&self, version: &TokenVersion, now: Timestamp) -> bool {
        let recorded = self.status().and_then(|status| status.rotation.as_ref()?.not_before);
        [self.not_before(), recorded].into_iter().flatten().any(|cut| now >= cut && version.issued_at < cut)
    }
}

/// The state of the Secret that the spec names.
#[derive(Clone, Debug)]
pub enum SecretState {
    /// There is no Secret of that name.
    Absent,
    /// There is a Secret that is not ours. It is never written. What it belongs to, as far as it says.
    Foreign(Option<String>),
    /// There is a Secret of somebody else who agrees that it is written, but these keys of it are theirs already.
    Taken(Vec<String>),
    /// There is a Secret with our seal, made under a pepper that is not known here, so nobody can tell whether it is ours. It
    /// may contain the only copy of a token.
    UnknownPepper(PepperId),
    /// The API server denied the read, with this message. It is never treated as absent.
    Unreadable(String),
    /// There is a Secret of ours, whoever has changed it since.
    Ours(Box<OwnSecret>),
}

impl SecretState {
    /// Whether it can neither be used nor written: it is not ours, or could not be read.
    pub fn is_inaccessible(&self) -> bool {
        match self {
            Self::Foreign(_) | Self::Taken(_) | Self::UnknownPepper(_) | Self::Unreadable(_) => true,
            Self::Absent | Self::Ours(_) => false,
        }
    }

    /// The Secret, if it is ours.
    pub fn ours(&self) -> Option<&OwnSecret> {
        match self {
            Self::Ours(own) => Some(own),
            Self::Absent
            | Self::Foreign(_)
            | Self::Taken(_)
            | Self::UnknownPepper(_)
            | Self::Unreadable(_) => None,
        }
    }

    /// The key id of the token that the Secret contains: verified against the status or, where the status does not
    /// know it, by the seal.
    pub fn key_id(&self) -> Option<KeyId> {
        let own = self.ours()?;
        own.verified.or_else(|| own.sealed.as_ref().map(|sealed| sealed.key_id))
    }
}

/// A Secret of ours.
#[derive(Clone, Debug, Default)]
pub struct OwnSecret {
    /// The metadata, without managed fields.
    pub metadata: ObjectMeta,
    /// The key id of the token that it contains, verified against the status.
    pub verified: Option<KeyId>,
    /// The data keys that lack what the spec puts there: that token, or a constant.
    pub wrong_keys: Vec<String>,
    /// The version that a valid seal authenticates and whose token the Secret contains.
    pub sealed: Option<SealedVersion>,
}

/// A version as a valid seal describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedVersion {
    /// Whether both were restored: the Secret was sealed for an earlier ApiToken of this name, and is itself a copy.
    pub restored: bool,
    /// The public id of the ApiToken, `status.tokenId`.
    pub token_id: String,
    /// The number of the version.
    pub version: i64,
    /// The key id of the version.
    pub key_id: KeyId,
    /// The hash of its token, under the pepper of the seal.
    pub hash: Hash,
    /// When the version was issued.
    pub issued_at: Timestamp,
    /// The scopes that it was issued with. `None`: the seal is of the first form, which does not contain them.
    pub scopes: Option<Vec<String>>,
}

/// The API server rejected a write of the Secret, for a reason that only a person can remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub kind: RejectionKind,
    /// The API server's message.
    pub message: String,
    /// When the write failed. It is retried after `RETRY`.
    pub at: Timestamp,
    /// Whether it was to make the Secret, and not to change one.
    pub creates: bool,
}

impl Rejection {
    /// Whether it says nothing any more: the Secret that could not be changed is gone.
    pub fn is_void(&self, secret: &SecretState) -> bool {
        !self.creates && matches!(secret, SecretState::Absent)
    }

    /// When the write is retried, `RETRY` after it failed.
    pub fn retry_at(&self) -> Timestamp {
        self.at.checked_add(RETRY).unwrap_or(Timestamp::MAX)
    }
}

/// The class of a rejected write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectionKind {
    /// 403: a missing permission, or a quota.
    Forbidden,
    /// 422: the Secret is invalid.
    Invalid,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pods can't start without a Secret, so a new one waits for no next try.
    #[test]
    fn a_change_that_was_rejected_says_nothing_once_the_secret_is_gone() {
        let ours = || SecretState::Ours(Box::default());
        for (creates, secret, expected) in [
            (false, SecretState::Absent, true),
            (false, ours(), false),
            (true, SecretState::Absent, false),
            (true, ours(), false),
        ] {
            let rejection = Rejection {
                kind: RejectionKind::Invalid,
                message: String::new(),
                at: Timestamp::UNIX_EPOCH,
                creates,
            };
            assert_eq!(rejection.is_void(&secret), expected, "{creates} {secret:?}");
        }
    }
}
