//! A token: its text, its hash, its seal, its scopes and the MAC of its versions. Pure: no clock, no randomness, no I/O.
//!
//! `<prefix>_<keyId><secret><crc>`. The key id names the version and may be logged; the whole text is the
//! secret. Only a hash of it is stored, keyed with the pepper and bound to the object that it belongs to.

pub mod format;
pub mod hash;
pub mod pepper;
pub mod plaintext;
pub mod scope;
pub mod seal;
pub mod segment_mac;
pub mod statement;
pub mod version_mac;

pub use format::{KeyId, Prefix, Token};
pub use hash::Hash;
pub use pepper::{PepperError, PepperId, Peppers};
pub use plaintext::Plaintext;
pub use segment_mac::Segment;
pub use version_mac::{MacCheck, Owner, VersionFacts};
