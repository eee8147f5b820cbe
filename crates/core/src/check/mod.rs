//! The request path, pure: from an index entry, a request and the time to a decision.
//!
//! Only [`decide`] allows anything. It depends on no clock, no HTTP and no Kubernetes object, so all endpoints decide
//! alike, and every rule can be tested at its exact boundary.

pub mod caller;
mod code;
mod decide;
mod entry;

pub use code::Code;
pub use decide::{Audience, Decision, Identity, Request, decide};
pub use entry::packed::{FORM, NotAnEntry};
pub use entry::scopes::ScopePool;
pub use entry::wire::{Metadata, WireToken};
pub use entry::{Entry, Indexed, Version};
