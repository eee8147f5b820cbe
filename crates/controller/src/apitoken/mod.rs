//! ApiTokens: `reconcile` observes and asks for the next step, `apply` makes it, `cache` holds what can be lost.

pub mod apply;
pub mod cache;
pub mod reconcile;
