//! All that a decision may look at.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::spec::{InvalidSpec, Spec};
use crate::crd::{ApiToken, ApiTokenStatus, TokenVersion};
use crate::outbox::events::Receipts;
use crate::outbox::subscription::Subscription;
use crate::token::{Hash, KeyId};

/// How long until a Secret that could not be read or written is tried again. A foreign Secret carries no label by
/// which its end would be noticed.
pub(super) const RETRY: SignedDuration = SignedDuration::from_secs(15);

/// An ApiToken, what is known of its Secret, and what this process has in hand.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// The object as last read or written.
    pub token: &'a ApiToken,
    /// Its spec with the defaults applied, or why it can't be acted on.
    pub spec: Result<Spec, InvalidSpec>,
    /// The Secret that its spec names.
    pub secret: SecretState,
    /// The token that this process has minted and not delivered yet.
    pub held: Option<KeyId>,
    /// The API server's refusal of the last attempt to write the Secret.
    pub refusal: Option<Refusal>,
    /// How long verifiers are given to learn of a new version before it is put into the Secret.
    pub propagation: SignedDuration,
    /// What the TokenWebhooks of the namespace want to be told of.
    pub subscriptions: &'a [Subscription],
    /// What they have accepted since the status was written.
    pub receipts: Receipts,
    /// How long before its expiry a token is told to expire.
    pub expiry_notice: SignedDuration,
}

impl<'a> Observed<'a> {
    /// The status as it is stored.
    pub fn status(&self) -> Option<&'a ApiTokenStatus> {
        self.token.status.as_ref()
    }

    /// Whether `spec.revoked` asks for the end.
    pub fn revocation_requested(&self) -> bool {
        self.token.spec.revoked == Some(true)
    }

    /// Whether the token is past its `expiresAt`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.token.spec.expires_at.is_some_and(|at| now >= at)
    }

    /// Whether the token is suspended.
    pub fn suspended(&self) -> bool {
        self.token.spec.suspend == Some(true)
    }

    /// Whether the object is being deleted: there is nothing to do for it any more.
    pub fn deleting(&self) -> bool {
        self.token.metadata.deletion_timestamp.is_some()
    }

    /// The `expiresAt` that is near, but not past.
    pub fn expires_soon(&self, now: Timestamp) -> Option<Timestamp> {
        let at = self.token.spec.expires_at.filter(|at| now < *at)?;
        self.told_to_expire_at().filter(|from| now >= *from).map(|_| at)
    }

    /// From when the token is told to expire.
    pub fn told_to_expire_at(&self) -> Option<Timestamp> {
        let at = self.token.spec.expires_at?;
        Some(at.checked_sub(self.expiry_notice).unwrap_or(Timestamp::MIN))
    }

    /// Whether `rotation.notBefore` has put an end to a version.
    pub fn cut_by_not_before(&self, version: &TokenVersion, now: Timestamp) -> bool {
        let not_before = self.token.spec.rotation.as_ref().and_then(|r| r.not_before);
        not_before.is_some_and(|cut| now >= cut && version.issued_at < cut)
    }
}

/// What is known of the Secret.
#[derive(Clone, Debug)]
pub enum SecretState {
    /// There is none of that name.
    Absent,
    /// There is one that is not ours. It is never written.
    Foreign,
    /// There may be one: it may not be read, in the API server's words. It is never taken for an absent one.
    Unreadable(String),
    /// There is one that we wrote, whatever has become of it since.
    Ours(Box<OwnSecret>),
}

impl SecretState {
    /// Whether nothing may be concluded or written: it is not ours, or not to be seen.
    pub fn out_of_reach(&self) -> bool {
        match self {
            Self::Foreign | Self::Unreadable(_) => true,
            Self::Absent | Self::Ours(_) => false,
        }
    }

    /// Our Secret, if that is what there is.
    pub fn ours(&self) -> Option<&OwnSecret> {
        match self {
            Self::Ours(own) => Some(own),
            Self::Absent | Self::Foreign | Self::Unreadable(_) => None,
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
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The key id of the token that it contains, verified against the status.
    pub verified: Option<KeyId>,
    /// Whether that token is under the data key that the spec names.
    pub in_place: bool,
    /// The version whose token the key for the previous token holds.
    pub previous: Option<KeyId>,
    /// The version that a valid seal vouches for and whose token it holds.
    pub sealed: Option<SealedVersion>,
}

/// A version, as a Secret's seal vouches for it.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedVersion {
    /// `status.tokenId`.
    pub token_id: String,
    /// The version's number.
    pub version: i64,
    /// Its key id.
    pub key_id: KeyId,
    /// Its proof.
    pub hash: Hash,
    /// When it was issued.
    pub issued_at: Timestamp,
}

/// The API server refused a write of the Secret in a way that only a person can mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In what way.
    pub kind: RefusalKind,
    /// The API server's message.
    pub message: String,
    /// When; the write is tried again some time later.
    pub at: Timestamp,
}

impl Refusal {
    /// When the write is tried again.
    pub fn retry_at(&self) -> Timestamp {
        self.at.checked_add(RETRY).unwrap_or(Timestamp::MAX)
    }
}

/// In what way a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// 403: a missing right, or a quota.
    Forbidden,
    /// 422: a Secret that the API server does not accept.
    Invalid,
}
