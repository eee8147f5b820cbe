//! A step: one write, or waiting.

use jiff::Timestamp;

use super::transitions::Transition;
use crate::crd::{ApiTokenStatus, OutboxEvent, RotationReason};
use crate::token::{Hash, KeyId};
use crate::tombstone::Tombstone;

/// One write, or waiting.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Enter these into the ledger, where what was revoked outlives the object.
    EnterIntoLedger(Vec<Tombstone>),
    /// Generate a token, and record its version by [`announce`](super::announce) and a status write.
    Announce(Box<Announcement>),
    /// Write this status, then report these transitions as Kubernetes Events.
    Record(Box<ApiTokenStatus>, Vec<Transition>),
    /// Write the Secret with the token of this version.
    WriteSecret {
        /// The key id of the version.
        key_id: String,
        /// Where its token comes from.
        content: Content,
    },
    /// Delete the Secret, which is ours.
    DeleteSecret,
    /// Add the finalizer, so that a deletion is not missed.
    AddFinalizer,
    /// Store the undelivered events in their TokenWebhooks, then remove the finalizer.
    RemoveFinalizer(Handover),
    /// Nothing to do, until something changes or this instant.
    Wait(Option<Timestamp>),
}

/// Where the token that is written into the Secret comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It was minted just now, and is in memory.
    Minted,
    /// The Secret contains it already.
    Existing,
}

/// A new version, for which the caller generates a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    /// The number of the version.
    pub version: i64,
    /// Why it is issued.
    pub reason: RotationReason,
    pub(super) status: ApiTokenStatus,
    pub(super) transitions: Vec<Transition>,
}

/// What was generated for an [`Announcement`].
#[derive(Clone, Debug)]
pub struct Material {
    /// The version's key id.
    pub key_id: KeyId,
    /// The hash of its token.
    pub hash: Hash,
}

/// What the TokenWebhooks take over from a deleted token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Handover {
    /// Undelivered events, each with the TokenWebhooks that it is for.
    pub undelivered: Vec<OutboxEvent>,
    /// Whether the finalizer is removed even if they can't be stored.
    pub best_effort: bool,
}
