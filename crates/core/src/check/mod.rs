//! The request path, pure: an index entry, a request and now go in, the answer comes out.
//!
//! [`decide`] is the one place that allows anything. It knows no clock, no HTTP and no Kubernetes object, so that
//! every door answers alike and every rule can be tested at its very boundary.

mod code;
mod decide;
mod entry;

pub use code::Code;
pub use decide::{Decision, Identity, Request, decide};
pub use entry::scopes::ScopePool;
pub use entry::wire::{Metadata, WireToken};
pub use entry::{Entry, Version};
