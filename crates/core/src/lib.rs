//! Types and decisions: what an API token is, how it is minted, delivered, rotated and revoked, and when it is valid.
//!
//! Pure: by its manifest it has no client and no async runtime, and its `clippy.toml` forbids clocks, randomness, files
//! and the environment. `now` and random bytes are arguments, and a decision names the effect that the caller makes.

// The derives of kube write paths that begin with `::kube`. The crate of that name is no dependency, since Cargo gives
// it the features that the whole workspace asks for, the client among them. So the part of it that the derives need
// is here under its name.
extern crate self as kube;
#[doc(hidden)]
pub use kube_derive::KubeSchema;
#[doc(hidden)]
pub mod core {
    pub use kube_core::*;
}

pub mod admission;
pub mod check;
pub mod crd;
pub mod instant;
pub mod lifecycle;
pub mod lock;
pub mod outbox;
pub mod proof;
pub mod signing_key;
pub mod token;
pub mod tombstone;
