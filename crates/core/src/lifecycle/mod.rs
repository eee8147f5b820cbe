//! The manifest path, pure: what is observed of a token goes in, the next single write comes out.
//!
//! No clock, no randomness, no client: now is an argument, and what must be drawn is named in the [`Step`] and
//! handed back. Each step is one write, so a crash between any two leaves a state that the next observation
//! continues from. The order that makes a rotation safe: the status makes a version known ([`Step::Announce`]),
//! then the Secret receives it ([`Step::WriteSecret`]), then the status retires its predecessor
//! ([`Step::Record`]). So the Secret never holds a token that the status does not know, and the predecessor's
//! overlap is counted from the delivery of its successor.

mod observed;
mod revoke;
mod rotate;
mod secret;
mod spec;
mod status;
mod step;
mod telling;
#[cfg(test)]
mod tests;
mod versions;

pub use observed::{Observed, OwnSecret, Refusal, RefusalKind, SealedVersion, SecretState};
pub use secret::{
    DesiredData, MANAGED_BY, MANAGED_BY_VALUE, SecretMetadata, TOKEN_LABEL, compose, inspect, wipe,
};
pub use spec::{InvalidSpec, Spec};
pub use status::{Event, EventKind};
pub use step::{Announcement, Content, Material, Step, announce, next_step, previous_version};
pub use telling::{FINALIZER, Handover};
