//! The manifest path, pure: what is observed of a token goes in, the next single write comes out.
//!
//! No clock, no randomness, no client: now is an argument, and what must be drawn is named in the [`Step`] and
//! handed back. Each step is one write, so a crash between any two leaves a state that the next observation
//! continues from. The order that makes a rotation safe: the status makes a version known ([`Step::Announce`]),
//! then the Secret receives it ([`Step::WriteSecret`]), then the status retires its predecessor
//! ([`Step::Record`]). So the Secret never holds a token that the status does not know, and the predecessor's
//! overlap is counted from the delivery of its successor.

mod conditions;
mod finalizer;
mod observed;
mod revoke;
mod rotate;
mod secret;
mod spec;
mod step;
#[cfg(test)]
mod tests;
mod transitions;
mod versions;

pub use finalizer::Handover;
pub use observed::{Observed, OwnSecret, Refusal, RefusalKind, SealedVersion, SecretState};
pub use secret::{DesiredData, SecretMetadata, compose, has_labels_of, inspect, is_controlled_by, wipe};
pub use spec::{InvalidSpec, Spec};
pub use step::{Announcement, Content, Material, Step, announce, next_step, previous_version};
pub use transitions::{Event, EventKind};
